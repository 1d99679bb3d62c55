"""ReLU with an L1 penalty (Cunningham et al. 2023; Bricken et al. 2023), steered to a target L0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import above
from baselines.sparsity import steered, strength
from bench.sae.activations import ReLU as ReLUActivation
from bench.types import SAE


@dataclass(frozen=True)
class ReLU(Usual):
    """MSE + λ · Σ codes × decoder norms (which are 1); no auxiliary loss. λ is found while training.

    Args:
        d_sae: Number of latents m.
        k: Target L0.
    """

    name: ClassVar[str] = "relu"
    divisible: ClassVar[bool] = True
    d_sae: int = 4608
    k: int = 32

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        codes = above(x, w.W_enc, w.b_enc, 0.0, w.b_dec, state.shards)
        xhat = parts.reconstruction(w, codes)
        l1 = state.shards.summed(codes.values.sum()) / len(x)
        return {"mse": parts.mse(x, xhat), "l1": strength(state) * l1}, Forward(codes, xhat)

    def update(self, state: State, forward: Forward) -> State:
        return steered(parts.count_silence(state, forward), forward.codes.l0, self.k)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        return parts.inference(w, scale, ReLUActivation())
