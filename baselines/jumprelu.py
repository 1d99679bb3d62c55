"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a threshold per latent, trained through a straight-through estimator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import above
from bench.sae.activations import JumpReLU as JumpReLUActivation
from bench.types import SAE


@dataclass(frozen=True)
class JumpReLU(Usual):
    """MSE + weight · (L0 / target − 1)², warmed up; L0 is the mean of the batch.

    Args:
        d_sae: Number of latents m.
        k: Target L0.
        weight: Of the sparsity term.
        bandwidth: ε of the estimator's rectangular kernel, for inputs of total variance 1.
        threshold: θ of every latent at the start.
    """

    name: ClassVar[str] = "jumprelu"
    divisible: ClassVar[bool] = True
    d_sae: int = 4608
    k: int = 32
    weight: float = 1.0
    bandwidth: float = 1e-3
    threshold: float = 1e-3

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        start = parts.tied_init(self.d_sae, mean, rng)
        return replace(start, extra={"threshold": torch.full((self.d_sae,), self.threshold)})

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        theta = w.extra["threshold"]
        near = above(x, w.W_enc, w.b_enc, theta.detach() - self.bandwidth / 2, w.b_dec, state.shards)  # those just below θ move it
        values, active = _Jump.apply(near.values, theta[near.cols], self.bandwidth)
        xhat = parts.reconstruction(w, near.valued(values))
        l0 = state.shards.averaged(state.shards.summed(active.sum()) / len(x))
        codes = near.valued(values).only(active.detach() > 0)
        sparsity = self.weight * state.warm * (l0 / self.k - 1).square()
        return {"mse": parts.mse(x, xhat), "sparsity": sparsity}, Forward(codes, xhat)

    @torch.no_grad()
    def constrain(self, w: Weights) -> None:
        parts.unit_rows(w)
        w.extra["threshold"].clamp_(min=0)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        return parts.inference(w, scale, JumpReLUActivation(w.extra["threshold"].detach() / scale))


class _Jump(torch.autograd.Function):
    """(pre · 1{pre > θ}, 1{pre > θ}); θ gets −(θ/ε) and −(1/ε) of their gradients where |pre − θ| < ε/2."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> tuple[Tensor, Tensor]:
        on = (pre > theta).to(pre.dtype)
        ctx.save_for_backward(pre, theta, on)
        ctx.width = width
        return pre * on, on.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta, on = ctx.saved_tensors
        near = ((pre - theta).abs() < ctx.width / 2).to(pre.dtype)
        return grads[0] * on, -(theta * grads[0] + grads[1]) * near / ctx.width, None
