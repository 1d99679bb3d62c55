"""Control `identity`: the activation's own dimensions as latents, TopK(k) of ±(x − μ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import token_top
from bench.sae.activations import TopK
from bench.types import SAE


@dataclass(frozen=True)
class Identity(Usual):
    """Two latents per dimension, one for each sign: neurons where the hook lies behind a nonlinearity. Nothing is learned.

    Args:
        k: Latents selected per token.
    """

    name: ClassVar[str] = "identity"
    divisible: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    d_sae: ClassVar[int] = 0  # pyright: ignore[reportIncompatibleVariableOverride]  # no choice: 2 · d_in, known with the data
    k: int = 32

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        return both_signs(torch.eye(len(mean)), mean)

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        codes = token_top(x, w.W_enc, w.b_enc, self.k, w.b_dec, state.floor, state.shards)
        xhat = parts.reconstruction(w, codes)
        return {"mse": parts.mse(x, xhat)}, Forward(codes, xhat)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        return parts.inference(w, scale, TopK(self.k))


def both_signs(directions: Tensor, mean: Tensor) -> Weights:
    """A tied dictionary of [r, d] orthonormal directions and their opposites, around the mean [d]."""
    rows = torch.cat([directions, -directions])
    return Weights(rows.clone(), rows.new_zeros(len(rows)), rows, mean.clone())
