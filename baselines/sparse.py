"""Sparse codes with gradients: the only dense product of a training step is the encoder's.

Codes are (row, latent, value) triples sorted by row. Decoding them and the gradients of both weight matrices
cost B·k·d each instead of B·m·d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from baselines import ops
from baselines.shards import ALONE, Shards
from bench.kernels import arrays

_SLACK = 0.93  # of the last batch's smallest code: lets through about 1.5 times as many candidates as are wanted
_LOWER, _LEAST = 0.7, 0.01  # factor by which the bound is lowered when too few candidates came through; then its square, and so on
_SAMPLE = 16  # every 16th token is looked at for a first guess

Found = tuple[Tensor, Tensor]  # flat indices, ascending, and values
Rule = Callable[[Tensor, Tensor, Tensor], Found]


@dataclass(frozen=True)
class ByLatent:
    """The order of codes by latent: worked out once, used by the gradients of codes and of both matrices.

    Args:
        cols: [nnz] latent of each code.
        m: Number of latents.
    """

    cols: Tensor
    m: int

    @cached_property
    def order(self) -> Tensor:
        """[nnz] places of the codes, by latent, then by token."""
        return ops.by_latent(self.cols, self.m)

    @cached_property
    def latents(self) -> Tensor:
        """[nnz] latent of each code in that order."""
        return self.cols.index_select(0, self.order)


@dataclass(frozen=True)
class SparseBatch:
    """Codes of a batch.

    Args:
        rows: [nnz] token of each code, ascending.
        cols: [nnz] latent of each code.
        values: [nnz] code, with gradient.
        n: Tokens in the batch.
        floor: About the smallest code that was selected: where the selection of the next batch may start to look.
        by_latent: Order of `cols`, if something else has use for it too.
        shards: Whose latents these are, if several processes share the dictionary: `cols` are numbers of this one's.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    n: int
    floor: float = 0.0
    by_latent: ByLatent | None = field(default=None, repr=False, compare=False)
    shards: Shards = field(default=ALONE, repr=False, compare=False)

    @property
    def l0(self) -> float:
        """Mean number of codes per token, of all processes."""
        return self.shards.total(len(self.rows)) / (self.n * self.shards.data_count)

    def only(self, keep: Tensor) -> SparseBatch:
        """The codes of a mask."""
        return replace(self, rows=self.rows[keep], cols=self.cols[keep], values=self.values[keep], by_latent=None)

    def below(self, latents: int) -> SparseBatch:
        """Only the codes of the first `latents` latents."""
        return self.only(self.cols < latents)

    def valued(self, values: Tensor) -> SparseBatch:
        """Other values at the same places."""
        return replace(self, values=values)


def batch_top(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, k: int, centre: Tensor | None = None, floor: float = 0.0, shards: Shards = ALONE
) -> SparseBatch:
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
        shards: Processes that share the latents, or the tokens: the largest of all are selected.
    """

    def rule(centred: Tensor, w: Tensor, b: Tensor) -> Found:
        count = k * len(centred) * shards.data_count
        bound, lower = _SLACK * floor if floor > 0 else _guess(centred, w, b, k, shards), _LOWER
        flat, values = ops.encode_above(centred, w, b, bound)
        while (found := int(shards.total(len(flat)))) < count and bound > 0:
            bound, lower = bound * lower if lower > _LEAST else 0.0, lower * lower
            flat, values = ops.encode_above(centred, w, b, bound)
        keep = _largest(values, count) if shards.alone else arrays.nonzero(shards.largest(values, min(count, found)))
        return flat.index_select(0, keep), values.index_select(0, keep)

    codes = _select(x, w_enc, b_enc, centre, rule, shards)
    smallest = float(codes.values.detach().min()) if len(codes.values) else torch.inf
    smallest = shards.smallest(smallest)
    return replace(codes, floor=smallest if smallest < torch.inf else 0.0)


def token_top(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, k: int, centre: Tensor | None = None, floor: float = 0.0, shards: Shards = ALONE
) -> SparseBatch:
    """The k largest pre-activations of every token, then ReLU (TopK, Gao et al. 2024). Arguments as in `batch_top`."""

    def rule(centred: Tensor, w: Tensor, b: Tensor) -> Found:
        flat, values = ops.encode_top(centred, w, b, k)
        row = flat // len(w)
        keep = arrays.largest_of_each(values, row, k, len(centred))
        if shards.count > 1:
            keep = _largest_of_all(values, row, keep, k, len(centred), shards)
        return flat.index_select(0, keep), values.index_select(0, keep)

    return _select(x, w_enc, b_enc, centre, rule, shards)


def above(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, bound: float | Tensor = 0.0, centre: Tensor | None = None, shards: Shards = ALONE
) -> SparseBatch:
    """All pre-activations above a bound (one number, or [m]; without gradient). Other arguments as in `batch_top`."""
    fixed = bound.detach() if isinstance(bound, Tensor) else bound
    return _select(x, w_enc, b_enc, centre, lambda centred, w, b: ops.encode_above(centred, w, b, fixed), shards)


def decode(codes: SparseBatch, w_dec: Tensor) -> Tensor:
    """[n, d] sums of decoder rows weighted by codes, without bias; over the latents of all processes."""
    by_latent = codes.by_latent or ByLatent(codes.cols, len(w_dec))
    return codes.shards.summed(_Decode.apply(codes.values, w_dec, codes.rows, codes.n, by_latent))


def _select(x: Tensor, w: Tensor, b: Tensor, centre: Tensor | None, rule: Rule, shards: Shards) -> SparseBatch:
    with torch.no_grad():
        centred = x if centre is None else x - centre
        flat, found = rule(centred, w, b)
        rows = flat // len(w)
        by_latent = ByLatent(flat - rows * len(w), len(w))
    shared = centre if centre is None else shards.common(centre)
    values = _Encode.apply(x, w, b, shared, found, centred.detach(), rows, by_latent)
    return SparseBatch(rows, by_latent.cols, values, len(x), by_latent=by_latent, shards=shards)


def _guess(centred: Tensor, w: Tensor, b: Tensor, k: int, shards: Shards) -> float:
    """A bound that lets through about 1.5 · k codes per token, from a sixteenth of the tokens; 0 where too few are positive."""
    sample = centred[::_SAMPLE]
    _, values = ops.encode_above(sample, w, b, 0.0)
    rank = int(1.5 * k * len(sample) / shards.count) + 8
    return shards.smallest(float(arrays.kth_largest(values, rank)) if rank <= len(values) else 0.0)


def _largest(values: Tensor, count: int) -> Tensor:
    """[min(nnz, count)] places of the largest, ascending; among equal ones the first."""
    if len(values) <= count:
        return torch.arange(len(values), device=values.device)
    smallest = arrays.kth_largest(values, count) if count else values.new_full((), torch.inf)
    keep = values > smallest
    equal = arrays.nonzero(values == smallest)
    keep[equal[: count - int(keep.sum())]] = True
    return arrays.nonzero(keep)


def _largest_of_all(values: Tensor, row: Tensor, kept: Tensor, k: int, n: int, shards: Shards) -> Tensor:
    """Of [nnz] places of at most k values a row those that are among the k largest of all processes' values of the row."""
    mine = row.index_select(0, kept)
    size = torch.bincount(mine, minlength=n)
    at = mine * k + torch.arange(len(mine), device=mine.device) - (torch.cumsum(size, 0) - size).index_select(0, mine)
    table = values.new_zeros(n * k).index_put_((at,), values.index_select(0, kept)).view(n, k)
    return kept[shards.largest_of_each(table).view(-1)[at]]


def dots(rows: Tensor, by_latent: ByLatent, g: Tensor, w: Tensor) -> Tensor:
    """[nnz] ⟨g[row], w[latent]⟩ of every entry. In order of latents the rows of `w` are read once each."""
    if ops.dense_is_cheaper(len(rows), len(g), len(w)):
        return ops.dots_of_rows(rows, by_latent.cols, g, w)
    order = by_latent.order
    dots = ops.dots_of_rows(by_latent.latents, rows.index_select(0, order), w, g)
    return torch.empty_like(dots).index_copy_(0, order, dots)


def gradient_of_rows(rows: Tensor, by_latent: ByLatent, weights: Tensor, table: Tensor) -> Tensor:
    """[m, d] Σ over the entries of each latent of weight · table[row]."""
    if ops.dense_is_cheaper(len(rows), len(table), by_latent.m):
        return ops.scattered(rows, by_latent.cols, weights, len(table), by_latent.m).T @ table
    order = by_latent.order
    return ops.sums_of_rows(by_latent.latents, rows.index_select(0, order), weights.index_select(0, order), table, by_latent.m)


class _Encode(torch.autograd.Function):
    """Gives selected pre-activations their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor,
        centre: Tensor | None,
        values: Tensor,
        centred: Tensor,
        rows: Tensor,
        by_latent: ByLatent,
    ) -> Tensor:
        ctx.save_for_backward(w, centred, rows)
        ctx.by_latent = by_latent
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, centred, rows = ctx.saved_tensors
        (g,), by_latent = grads, ctx.by_latent
        gb = g.new_zeros(len(w)).index_add_(0, by_latent.cols, g)
        gx = ops.sums_of_rows(rows, by_latent.cols, g, w, len(centred)) if ctx.needs_input_grad[0] else None
        gw = gradient_of_rows(rows, by_latent, g, centred) if ctx.needs_input_grad[1] else None
        g_centre = -(gb @ w) if ctx.needs_input_grad[3] else None
        return gx, gw, gb, g_centre, None, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w: Tensor, rows: Tensor, n: int, by_latent: ByLatent) -> Tensor:
        ctx.save_for_backward(values, w, rows)
        ctx.by_latent = by_latent
        return ops.sums_of_rows(rows, by_latent.cols, values, w, n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, w, rows = ctx.saved_tensors
        g, by_latent = grads[0].contiguous(), ctx.by_latent
        g_values = dots(rows, by_latent, g, w) if ctx.needs_input_grad[0] else None
        g_w = gradient_of_rows(rows, by_latent, values, g) if ctx.needs_input_grad[1] else None
        return g_values, g_w, None, None, None
