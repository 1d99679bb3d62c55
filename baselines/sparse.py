"""Sparse codes with gradients: the only dense product of a training step is the encoder's.

Codes are (row, latent, value) triples sorted by row. Decoding them and the gradients of both weight matrices
cost B·k·d each instead of B·m·d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bench.kernels.topk import largest

_PIECE = 8192


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


def batch_top(x: Tensor, w_enc: Tensor, b_enc: Tensor, k: int) -> SparseBatch:
    """The n·k largest positive pre-activations of a batch (BatchTopK, Bussmann et al. 2024).

    Args:
        x: [n, d] centred inputs.
        w_enc: [m, d] encoder, one row per latent.
        b_enc: [m].
        k: Mean number of codes per token.
    """
    rows, cols, values = _BatchTop.apply(x, w_enc, b_enc, k)
    return SparseBatch(rows, cols, values, len(x))


def decode(codes: SparseBatch, w_dec: Tensor) -> Tensor:
    """[n, d] sums of decoder rows weighted by codes, without bias."""
    return _Decode.apply(codes.values, w_dec, codes.rows, codes.cols, codes.n)


class _BatchTop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        pre = torch.addmm(b, x, w.T)
        flat = largest(pre, k * len(x))
        rows, cols = flat // len(w), flat % len(w)
        ctx.save_for_backward(x, w, rows, cols)
        ctx.mark_non_differentiable(rows, cols)
        return rows, cols, pre.reshape(-1)[flat]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, w, rows, cols = ctx.saved_tensors
        g = grads[2]
        gb = torch.zeros(len(w), dtype=g.dtype, device=g.device).index_add_(0, cols, g)
        gx = _gather(cols, rows, g, w, len(x)) if ctx.needs_input_grad[0] else None
        order = torch.argsort(cols)
        return gx, _gather(rows[order], cols[order], g[order], x, len(w)), gb, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w: Tensor, rows: Tensor, cols: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(values, w, rows, cols)
        return _gather(cols, rows, values, w, n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        values, w, rows, cols = ctx.saved_tensors
        g = grads[0].contiguous()
        pieces = [(g[rows[i : i + _PIECE]] * w[cols[i : i + _PIECE]]).sum(1) for i in range(0, len(rows), _PIECE)]
        gv = torch.cat(pieces) if pieces else values.new_zeros(0)
        order = torch.argsort(cols)
        return gv, _gather(rows[order], cols[order], values[order], g, len(w)), None, None, None


def _gather(indices: Tensor, bags: Tensor, weights: Tensor, table: Tensor, n: int) -> Tensor:
    """out[b] = Σ over entries of bag b of weight · table[index]; `bags` ascending, [n, d]."""
    offsets = torch.zeros(n, dtype=torch.long, device=bags.device)
    torch.cumsum(torch.bincount(bags, minlength=n)[:-1], 0, out=offsets[1:])
    return embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)
