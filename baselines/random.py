"""Control `random`: nothing is learned. Random unit decoder rows, tied encoder, threshold calibrated to the target L0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.parts import Forward, State, Weights
from baselines.sparse import batch_top
from bench.sae.dense import DenseSAE


@dataclass(frozen=True)
class Random:
    """A dictionary of random directions; every step leaves it as it is.

    Args:
        d_sae: Number of latents.
        k: Mean number of active latents per token after calibration.
    """

    name: ClassVar[str] = "random"
    trains: ClassVar[bool] = False
    d_sae: int = 4608
    k: int = 32

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        return parts.tied_init(self.d_sae, mean, rng)

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        codes = batch_top(x, w.W_enc, w.b_enc, self.k, w.b_dec, state.floor)
        xhat = parts.reconstruction(w, codes)
        return {"mse": parts.mse(x, xhat)}, Forward(codes, xhat)

    def project_grad(self, w: Weights) -> None:
        for t in w.named().values():
            if t.grad is not None:
                t.grad.zero_()

    def constrain(self, w: Weights) -> None:
        """Nothing moves, so nothing is to be constrained."""

    def update(self, state: State, forward: Forward) -> State:
        return parts.count_silence(state, forward)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> DenseSAE:
        return parts.export_with_threshold(w, scale, calibration, self.k)
