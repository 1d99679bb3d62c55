"""Control `permuted`: a trained SAE on activations whose dimensions are shuffled. Marginals stay, meaning goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from baselines.over import Over
from baselines.parts import Weights
from bench.kernels.topk import calibrated_threshold
from bench.rng import torch_rng
from bench.sae.activations import JumpReLU, TopK
from bench.sae.dense import DenseSAE
from bench.types import SAE

_BLOCK = 1024


@dataclass(frozen=True)
class Permuted(Over):
    """The base is trained as ever; what is exported encodes P x and gives back Pᵀ x̂, with P a random permutation of dimensions.

    Codes above a threshold get a new one, the same for all latents, at which the mean L0 of real tokens is the target.

    Args:
        base: Method that trains.
        permutation: Which; the root of its draw.
    """

    name: ClassVar[str] = "permuted"
    sharing: ClassVar[bool] = True
    permutation: int = 0

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        back = torch.argsort(torch.randperm(len(w.b_dec), generator=torch_rng(self.permutation, "permutation")))
        shuffled = replace(w, W_enc=w.W_enc[:, back], W_dec=w.W_dec[:, back], b_dec=w.b_dec[back])
        sae = self.base.export(shuffled, scale, calibration)  # a threshold that it sets is set again below
        return calibrated(sae, calibration / scale, self.k) if isinstance(sae, DenseSAE) and not isinstance(sae.act, TopK) else sae


@torch.no_grad()
def calibrated(sae: DenseSAE, x: Tensor, k: int) -> DenseSAE:
    """The SAE with one threshold for all latents, at which k of them exceed it per token of [n, d] on average."""
    theta = calibrated_threshold((sae.pre_activations(part) for part in x.split(_BLOCK)), k)
    return replace(sae, act=JumpReLU(torch.full((sae.d_sae,), theta)))
