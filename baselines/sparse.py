"""Sparse codes with gradients: the only dense product of a training step is the encoder's.

Codes are (row, latent, value) triples sorted by row. Decoding them and the gradients of both weight matrices
cost B·k·d each instead of B·m·d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bench.kernels.topk import largest

_RADIX = 2**16  # NumPy sorts 16-bit integers by radix, ten times as fast as torch sorts 64-bit ones


@dataclass(frozen=True)
class SparseBatch:
    """Codes of a batch.

    Args:
        rows: [nnz] token of each code, ascending.
        cols: [nnz] latent of each code.
        values: [nnz] code, with gradient.
        n: Tokens in the batch.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    n: int

    def below(self, latents: int) -> SparseBatch:
        """Only the codes of the first `latents` latents."""
        keep = self.cols < latents
        return SparseBatch(self.rows[keep], self.cols[keep], self.values[keep], self.n)


def batch_top(x: Tensor, w_enc: Tensor, b_enc: Tensor, k: int, centre: Tensor | None = None) -> SparseBatch:
    """The n·k largest positive pre-activations of a batch (BatchTopK, Bussmann et al. 2024).

    Args:
        x: [n, d] inputs.
        w_enc: [m, d] encoder, one row per latent.
        b_enc: [m].
        k: Mean number of codes per token.
        centre: [d] subtracted from the inputs first. Its gradient costs one pass over `w_enc`; subtracted by
            the caller it would cost one row per code.
    """
    rows, cols, values = _BatchTop.apply(x, w_enc, b_enc, k, centre)
    return SparseBatch(rows, cols, values, len(x))


def decode(codes: SparseBatch, w_dec: Tensor) -> Tensor:
    """[n, d] sums of decoder rows weighted by codes, without bias."""
    return _Decode.apply(codes.values, w_dec, codes.rows, codes.cols, codes.n)


class _BatchTop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, k: int, centre: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        centred = x if centre is None else x - centre
        pre = torch.addmm(b, centred, w.T)
        flat = largest(pre, k * len(x))
        rows, cols = flat // len(w), flat % len(w)
        ctx.save_for_backward(centred, w, rows, cols)
        ctx.mark_non_differentiable(rows, cols)
        return rows, cols, pre.reshape(-1)[flat]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, Tensor | None]:
        x, w, rows, cols = ctx.saved_tensors
        g = grads[2]
        gb = torch.zeros(len(w), dtype=g.dtype, device=g.device).index_add_(0, cols, g)
        gx = _gather(cols, rows, g, w, len(x)) if ctx.needs_input_grad[0] else None
        g_centre = -(gb @ w) if ctx.needs_input_grad[4] else None
        order = _by_latent(cols, len(w))
        return gx, _gather(rows[order], cols[order], g[order], x, len(w)), gb, None, g_centre


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w: Tensor, rows: Tensor, cols: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(values, w, rows, cols)
        return _gather(cols, rows, values, w, n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        values, w, rows, cols = ctx.saved_tensors
        g = grads[0].contiguous()
        # ⟨g_row, w_col⟩ of every entry, without copies of the rows; 0 stands for bags that are summed
        gv = torch.ops.aten._embedding_bag_per_sample_weights_backward(g, w, cols, _starts(rows, len(g)), rows, 0)
        order = _by_latent(cols, len(w))
        return gv, _gather(rows[order], cols[order], values[order], g, len(w)), None, None, None


def _by_latent(cols: Tensor, m: int) -> Tensor:
    """Order of the entries by latent, then by token."""
    if cols.device.type == "cpu" and m <= _RADIX:
        return torch.from_numpy(np.argsort(cols.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(cols, stable=True)


def _starts(bags: Tensor, n: int) -> Tensor:
    """[n] first entry of each bag; `bags` ascending."""
    sizes = torch.bincount(bags, minlength=n)
    return torch.cumsum(sizes, 0) - sizes


def _gather(indices: Tensor, bags: Tensor, weights: Tensor, table: Tensor, n: int) -> Tensor:
    """out[b] = Σ over entries of bag b of weight · table[index]; `bags` ascending, [n, d]."""
    # detached: no gradient flows through here, and a table that wants one takes a slower path
    return embedding_bag(indices, table.detach(), _starts(bags, n), mode="sum", per_sample_weights=weights)
