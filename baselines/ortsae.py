"""OrtSAE (Korznikov et al. 2025, arXiv 2509.22033): any base method + a penalty on decoder cosines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.over import Over
from baselines.parts import Forward, State, Weights
from bench.kernels.orthogonality import chunks_of, orthogonality


@dataclass(frozen=True)
class OrtSAE(Over):
    """The base's loss + γ · L_orth (Eq. 4), on a fresh random partition of the latents each time.

    Args:
        base: Method whose codes, other losses and export are kept.
        gamma: γ = 0.25 in the paper.
        chunk_size: Rows compared with one another; 8,192 in the paper. Another size is a variant.
        every: The penalty enters every so many steps, times `every`: 1 is the paper's main form, 5 its cheaper one.
    """

    name: ClassVar[str] = "ortsae"
    sharing: ClassVar[bool] = True
    gamma: float = 0.25
    chunk_size: int = 8192
    every: int = 5

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        terms, forward = self.base.loss(w, x, state, rng)
        if state.step % self.every == 0:
            rows = state.shards.assembled(w.W_dec)
            penalty = _Penalty.apply(rows, chunks_of(len(rows), self.chunk_size, rng))
            terms["orth"] = self.gamma * self.every * penalty
        return terms, forward


class _Penalty(torch.autograd.Function):
    """L_orth with the analytic gradient that its kernel returns."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, chunks: tuple[Tensor, ...]) -> Tensor:
        value, gradient = orthogonality(w, chunks)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None
