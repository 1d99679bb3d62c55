"""C2R (arXiv 2606.30609): any base method + a penalty on decoder cosines that weighs each latent by how strongly it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines.over import Over
from baselines.parts import Forward, State, Weights
from baselines.sparse import SparseBatch
from bench.kernels.orthogonality import chunks_of, nearest

TOKENS, LATENTS = 2048, 65_536  # batch and width for which the paper states its weight
_DELTA = 1e-8


@dataclass(frozen=True)
class C2R(Over):
    """The base's loss + λ · (1/m) Σ_i (‖f_i‖ + ‖f_n(i)‖)^α · max(0, cos(W_i, W_n(i)))².

    n(i) is the latent whose decoder row is nearest to that of i among those of the same random chunk, ‖f_i‖ the norm of
    latent i's codes over the batch. The gradient flows through norms and cosines, not through the choice of n(i).
    A norm over a batch of B tokens grows with √B, so λ = weight · √(2048/B) · √(m/65536).

    Args:
        base: Method whose codes, other losses and export are kept.
        weight: λ at B = 2,048 and m = 65,536; 5 in the paper.
        alpha: α; 1 in the paper.
        chunk_size: Rows compared with one another.
        every: The penalty enters every so many steps, times `every`.
    """

    name: ClassVar[str] = "c2r"
    sharing: ClassVar[bool] = True
    weight: float = 5.0
    alpha: float = 1.0
    chunk_size: int = 8192
    every: int = 5

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        terms, forward = self.base.loss(w, x, state, rng)
        if state.step % self.every == 0:
            rows, used = state.shards.assembled(w.W_dec), state.shards.assembled(norms(forward.codes, len(w.W_dec)))
            m = len(rows)
            strength = self.weight * (TOKENS / (len(x) * state.shards.data_count)) ** 0.5 * (m / LATENTS) ** 0.5
            penalty = redundancy(rows, used, chunks_of(m, self.chunk_size, rng), self.alpha)
            terms["c2r"] = self.every * strength * penalty
        return terms, forward


def norms(codes: SparseBatch, m: int) -> Tensor:
    """[m] ‖f_i‖, the norm of each latent's codes over the whole batch, with gradient; that of a silent latent is 0."""
    squares = codes.values.new_zeros(m).index_add(0, codes.cols, codes.values.square())
    shards = codes.shards
    return _power(shards.averaged(squares) * shards.data_count, 0.5)


def redundancy(w: Tensor, strength: Tensor, chunks: tuple[Tensor, ...], alpha: float) -> Tensor:
    """(1/m) Σ_i (s_i + s_n(i))^α · max(0, cos(w_i, w_n(i)))², n(i) the nearest row of the same chunk.

    Args:
        w: [m, d] rows, any norm.
        strength: [m] s.
        chunks: Index tensors that partition the rows.
        alpha: α.
    """
    unit = w / w.norm(dim=1, keepdim=True).clamp(min=_DELTA)
    total = w.new_zeros(())
    for c in chunks:
        v, s = unit[c], strength[c]
        best, at = nearest(v.detach())
        cosine = (v * v[at]).sum(1) * (best > 0)  # a row alone in its chunk has no neighbour
        total = total + (_power(s + s[at], alpha) * cosine.square()).sum()
    return total / len(w)


def _power(t: Tensor, exponent: float) -> Tensor:
    """t^exponent of numbers of at least 0, with gradient 0 at 0, where that of a root is not finite."""
    some = t > 0
    return torch.where(some, t, 1.0).pow(exponent) * some
