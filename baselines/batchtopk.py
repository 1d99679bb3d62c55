"""BatchTopK (Bussmann, Leask, Nanda 2024, arXiv 2412.06410): the B·k largest pre-activations of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.dead import AUX_WEIGHT, dead_latent_loss
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import batch_top


@dataclass(frozen=True)
class BatchTopK(Usual):
    """MSE + α · auxiliary loss on dead latents; exported with a calibrated threshold.

    Args:
        d_sae: Number of latents m.
        k: Mean number of active latents per token.
        aux_weight: α.
    """

    name: ClassVar[str] = "batchtopk"
    divisible: ClassVar[bool] = True
    d_sae: int = 4608
    k: int = 32
    aux_weight: float = AUX_WEIGHT

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        codes = batch_top(x, w.W_enc, w.b_enc, self.k, w.b_dec, state.floor, state.shards)
        xhat = parts.reconstruction(w, codes)
        aux = dead_latent_loss(w, x, xhat, state, k_aux=x.shape[1] // 2)
        return {"mse": parts.mse(x, xhat), "aux": self.aux_weight * aux}, Forward(codes, xhat)
