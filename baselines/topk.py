"""TopK (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.dead import AUX_WEIGHT, dead_latent_loss
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import token_top
from bench.sae.activations import TopK as TopKActivation
from bench.types import SAE


@dataclass(frozen=True)
class TopK(Usual):
    """MSE + α · auxiliary loss on dead latents.

    Args:
        d_sae: Number of latents m.
        k: Latents selected per token; fewer are active where fewer pre-activations are positive.
        aux_weight: α.
    """

    name: ClassVar[str] = "topk"
    divisible: ClassVar[bool] = True
    d_sae: int = 4608
    k: int = 32
    aux_weight: float = AUX_WEIGHT

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        codes = token_top(x, w.W_enc, w.b_enc, self.k, w.b_dec, state.floor, state.shards)
        xhat = parts.reconstruction(w, codes)
        aux = dead_latent_loss(w, x, xhat, state, k_aux=x.shape[1] // 2)
        return {"mse": parts.mse(x, xhat), "aux": self.aux_weight * aux}, Forward(codes, xhat)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        return parts.inference(w, scale, TopKActivation(self.k))
