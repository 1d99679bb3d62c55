"""MP-SAE (Costa et al. 2025, arXiv 2506.03093): the encoder is matching pursuit, unrolled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.parts import Forward, State, Usual, Weights
from baselines.shards import Shards
from baselines.sparse import SparseBatch
from bench.sae.pursuit import GRAM, PursuitSAE, gram_of, pursue, summed_picks
from bench.types import SAE


@dataclass(frozen=True)
class MP(Usual):
    """MSE of what is left of x − b_dec after k picks; there is no encoder beside the unit decoder rows.

    Up to 8,192 latents a step holds the inner products of all pairs of rows; above, it takes k products with all rows.

    Args:
        d_sae: Number of latents m.
        k: Picks per token; L0 is smaller where a latent is picked twice.
    """

    name: ClassVar[str] = "mp"
    d_sae: int = 4608
    k: int = 32

    @property
    def remark(self) -> str:
        """What is slow about these sizes, or nothing."""
        times = f"each token costs {self.k} products with all {self.d_sae:,} rows, {self.k} times what topk costs"
        return f"above {GRAM:,} latents inner products of rows are not held: {times}" if self.d_sae > GRAM else ""

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        rows = parts.tied_init(self.d_sae, mean, rng).W_dec
        return Weights(rows[:0], rows.new_zeros(0), rows, mean.clone())

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        left, cols, picks = _Pursuit.apply(x, w.W_dec, w.b_dec, self.k)
        return {"mse": left.square().sum() / len(x)}, Forward(_codes(cols, picks, len(w.W_dec), state.shards), x - left)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        return PursuitSAE(w.W_dec.detach().clone(), w.b_dec.detach() / scale, self.k)


def _codes(cols: Tensor, picks: Tensor, m: int, shards: Shards) -> SparseBatch:
    """Codes that are not 0, with the gradient of the picks."""
    flat, values = summed_picks(cols, picks, m)
    some = values.detach() != 0
    rows = flat[some] // m
    return SparseBatch(rows, flat[some] - rows * m, values[some], len(cols), shards=shards)


class _Pursuit(torch.autograd.Function):
    """Residuals [n, d], picked latents [n, k] and their inner products [n, k], with the gradient of the last two for given
    picks. Going back, a residual is the next one with the pick put in again, so none is kept: memory is O(n·k + n·d)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, centre: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        cols, picks, left = pursue(x - centre, rows, k, gram_of(rows))
        ctx.save_for_backward(rows, cols, picks, left)
        ctx.mark_non_differentiable(cols)
        return left, cols, picks

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, cols, picks, left = ctx.saved_tensors
        r, g, g_rows = left.clone(), grads[0].clone(), torch.zeros_like(rows)
        for t in reversed(range(cols.shape[1])):  # r' = r − c d with c = ⟨d, r⟩; g is the gradient with respect to r'
            c, d = picks[:, t, None], rows[cols[:, t]]
            r.addcmul_(c, d)
            g_c = (grads[2][:, t, None] - (d * g).sum(1, keepdim=True)) * (c != 0)
            g_rows.index_add_(0, cols[:, t], g_c * r - c * g)
            g.addcmul_(g_c, d)
        return g, g_rows, -g.sum(0), None
