"""Control `random`: nothing is learned. Random unit decoder rows, tied encoder, threshold calibrated to the target L0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import batch_top


@dataclass(frozen=True)
class Random(Usual):
    """A dictionary of random directions, exported as it starts.

    Args:
        d_sae: Number of latents.
        k: Mean number of active latents per token after calibration.
    """

    name: ClassVar[str] = "random"
    divisible: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    d_sae: int = 4608
    k: int = 32

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        codes = batch_top(x, w.W_enc, w.b_enc, self.k, w.b_dec, state.floor, state.shards)
        xhat = parts.reconstruction(w, codes)
        return {"mse": parts.mse(x, xhat)}, Forward(codes, xhat)
