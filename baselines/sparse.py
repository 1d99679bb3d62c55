"""Sparse codes with gradients: the only dense product of a training step is the encoder's.

Codes are (row, latent, value) triples sorted by row. Decoding them and the gradients of both weight matrices
cost B·k·d each instead of B·m·d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baselines import ops

_SLACK = 0.93  # of the last batch's smallest code: lets through about 1.5 times as many candidates as are wanted
_LOWER = 0.7  # the bound is lowered by this factor when too few candidates came through
_SAMPLE = 16  # every 16th token is looked at for a first guess
_EARLY = 0.05  # share of tokens whose k-th largest may lie below the guess; they are encoded once more

Found = tuple[Tensor, Tensor]  # flat indices, ascending, and values
Rule = Callable[[Tensor, Tensor, Tensor], Found]


@dataclass(frozen=True)
class SparseBatch:
    """Codes of a batch.

    Args:
        rows: [nnz] token of each code, ascending.
        cols: [nnz] latent of each code.
        values: [nnz] code, with gradient.
        n: Tokens in the batch.
        floor: About the smallest code that was selected: where the selection of the next batch may start to look.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    n: int
    floor: float = 0.0

    def below(self, latents: int) -> SparseBatch:
        """Only the codes of the first `latents` latents."""
        keep = self.cols < latents
        return SparseBatch(self.rows[keep], self.cols[keep], self.values[keep], self.n)

    def valued(self, values: Tensor) -> SparseBatch:
        """Other values at the same places."""
        return SparseBatch(self.rows, self.cols, values, self.n, self.floor)


def batch_top(x: Tensor, w_enc: Tensor, b_enc: Tensor, k: int, centre: Tensor | None = None, floor: float = 0.0) -> SparseBatch:
    """The n·k largest positive pre-activations of a batch (BatchTopK, Bussmann et al. 2024).

    Among equal pre-activations the first are taken.

    Args:
        x: [n, d] inputs.
        w_enc: [m, d] encoder, one row per latent.
        b_enc: [m].
        k: Mean number of codes per token.
        centre: [d] subtracted from the inputs first. Its gradient costs one pass over `w_enc`; subtracted by
            the caller it would cost one row per code.
        floor: `floor` of an earlier batch, a guess that saves time; what is selected does not depend on it.
    """

    def rule(centred: Tensor, w: Tensor, b: Tensor) -> Found:
        count = k * len(centred)
        bound = _SLACK * floor if floor > 0 else _guess(centred, w, b, k)
        flat, values = ops.encode_above(centred, w, b, bound)
        while len(flat) < count and bound > 0:
            bound = bound * _LOWER if bound > 1e-3 * max(floor, 1e-3) else 0.0
            flat, values = ops.encode_above(centred, w, b, bound)
        keep = _largest(values, count)
        return flat[keep], values[keep]

    codes = _select(x, w_enc, b_enc, centre, rule)
    return _with_floor(codes, codes.values.detach())


def token_top(x: Tensor, w_enc: Tensor, b_enc: Tensor, k: int, centre: Tensor | None = None, floor: float = 0.0) -> SparseBatch:
    """The k largest pre-activations of every token, then ReLU (TopK, Gao et al. 2024). Arguments as in `batch_top`."""

    def rule(centred: Tensor, w: Tensor, b: Tensor) -> Found:
        bound = _SLACK * floor if floor > 0 else _guess(centred, w, b, 2 * k)
        flat, values = ops.encode_above(centred, w, b, bound)
        few = torch.bincount(flat // len(w), minlength=len(centred)) < k
        if bound > 0 and bool(few.any()):
            again = torch.nonzero(few).squeeze(1)
            at, more = ops.encode_above(centred[again], w, b, 0.0)
            at = again[at // len(w)] * len(w) + at % len(w)
            rest = ~few[flat // len(w)]
            flat, order = torch.cat([flat[rest], at]).sort()
            values = torch.cat([values[rest], more])[order]
        return _top_of_each(flat, values, flat // len(w), k, len(centred))

    codes = _select(x, w_enc, b_enc, centre, rule)
    smallest = codes.values.detach().new_full((codes.n,), torch.inf).scatter_reduce_(0, codes.rows, codes.values.detach(), "amin")
    return _with_floor(codes, smallest.kthvalue(max(1, int(_EARLY * codes.n))).values)


def above(x: Tensor, w_enc: Tensor, b_enc: Tensor, bound: float | Tensor = 0.0, centre: Tensor | None = None) -> SparseBatch:
    """All pre-activations above a bound (one number, or [m]; without gradient). Other arguments as in `batch_top`."""
    fixed = bound.detach() if isinstance(bound, Tensor) else bound
    return _select(x, w_enc, b_enc, centre, lambda centred, w, b: ops.encode_above(centred, w, b, fixed))


def decode(codes: SparseBatch, w_dec: Tensor) -> Tensor:
    """[n, d] sums of decoder rows weighted by codes, without bias."""
    return _Decode.apply(codes.values, w_dec, codes.rows, codes.cols, codes.n)


def _select(x: Tensor, w: Tensor, b: Tensor, centre: Tensor | None, rule: Rule) -> SparseBatch:
    rows, cols, values = _Select.apply(x, w, b, centre, rule)
    return SparseBatch(rows, cols, values, len(x))


def _with_floor(codes: SparseBatch, smallest: Tensor) -> SparseBatch:
    floor = float(smallest.min()) if smallest.numel() else 0.0
    return SparseBatch(codes.rows, codes.cols, codes.values, codes.n, floor if floor < torch.inf else 0.0)


def _guess(centred: Tensor, w: Tensor, b: Tensor, k: int) -> float:
    """A bound that lets through about 1.5 · k codes per token, from a sixteenth of the tokens; 0 where too few are positive."""
    sample = centred[::_SAMPLE]
    _, values = ops.encode_above(sample, w, b, 0.0)
    rank = int(1.5 * k * len(sample)) + 8
    return float(values.kthvalue(len(values) - rank + 1).values) if rank <= len(values) else 0.0


def _largest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest; among equal ones the first."""
    if len(values) <= count:
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    if count == 0:
        return torch.zeros(len(values), dtype=torch.bool, device=values.device)
    smallest = values.kthvalue(len(values) - count + 1).values
    keep = values > smallest
    equal = torch.nonzero(values == smallest).squeeze(1)
    keep[equal[: count - int(keep.sum())]] = True
    return keep


def _top_of_each(flat: Tensor, values: Tensor, row: Tensor, k: int, n: int) -> Found:
    """The k largest of every row's entries; among equal ones the first."""
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    size = torch.bincount(row, minlength=n)
    rank = torch.arange(len(row), device=row.device) - torch.repeat_interleave(torch.cumsum(size, 0) - size, size)
    keep = order[rank < k].sort().values
    return flat[keep], values[keep]


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, centre: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        centred = x if centre is None else x - centre
        flat, values = rule(centred, w, b)
        rows = flat // len(w)
        cols = flat - rows * len(w)
        ctx.save_for_backward(centred, w, rows, cols)
        ctx.mark_non_differentiable(rows, cols)
        return rows, cols, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, None]:
        x, w, rows, cols = ctx.saved_tensors
        g = grads[2]
        gb = torch.zeros(len(w), dtype=g.dtype, device=g.device).index_add_(0, cols, g)
        gx = ops.sums_of_rows(rows, cols, g, w, len(x)) if ctx.needs_input_grad[0] else None
        g_centre = -(gb @ w) if ctx.needs_input_grad[3] else None
        return gx, _gradient_of_rows(rows, cols, g, x, len(w)), gb, g_centre, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w: Tensor, rows: Tensor, cols: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(values, w, rows, cols)
        return ops.sums_of_rows(rows, cols, values, w, n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        values, w, rows, cols = ctx.saved_tensors
        g = grads[0].contiguous()
        return ops.dots_of_rows(rows, cols, g, w), _gradient_of_rows(rows, cols, values, g, len(w)), None, None, None


def _gradient_of_rows(rows: Tensor, cols: Tensor, weights: Tensor, table: Tensor, m: int) -> Tensor:
    """[m, d] Σ over the entries of each latent of weight · table[row]."""
    if ops.dense_is_cheaper(len(rows), len(table), m):
        return ops.scattered(rows, cols, weights, len(table), m).T @ table
    order = ops.by_latent(cols, m)
    return ops.sums_of_rows(cols[order], rows[order], weights[order], table, m)
