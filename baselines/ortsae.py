"""OrtSAE (Korznikov et al. 2025, arXiv 2509.22033): any base method + a penalty on decoder cosines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.batchtopk import BatchTopK
from baselines.parts import Forward, State, Trainer, Weights
from bench.kernels.orthogonality import chunks_of, orthogonality
from bench.sae.dense import DenseSAE


@dataclass(frozen=True)
class OrtSAE:
    """The base's loss + γ · L_orth (Eq. 4), on a fresh random partition of the latents each time.

    Args:
        base: Method whose codes, other losses and export are kept.
        gamma: γ = 0.25 in the paper.
        chunk_size: Rows compared with one another; 8,192 in the paper. Another size is a variant.
        every: The penalty enters every so many steps, times `every`: 1 is the paper's main form, 5 its cheaper one.
    """

    name: ClassVar[str] = "ortsae"
    base: Trainer = field(default_factory=BatchTopK)
    gamma: float = 0.25
    chunk_size: int = 8192
    every: int = 5

    @property
    def d_sae(self) -> int:
        return self.base.d_sae

    @property
    def k(self) -> int:
        return self.base.k

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        return self.base.init(mean, rng)

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        terms, forward = self.base.loss(w, x, state, rng)
        if state.step % self.every == 0:
            penalty = _Penalty.apply(w.W_dec, chunks_of(self.d_sae, self.chunk_size, rng))
            terms["orth"] = self.gamma * self.every * penalty
        return terms, forward

    def project_grad(self, w: Weights) -> None:
        self.base.project_grad(w)

    def constrain(self, w: Weights) -> None:
        self.base.constrain(w)

    def update(self, state: State, forward: Forward) -> State:
        return self.base.update(state, forward)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> DenseSAE:
        return self.base.export(w, scale, calibration)


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
