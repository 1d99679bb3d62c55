"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014): one encoder decides which latents fire, and how strongly apart from that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import above, decode
from baselines.sparsity import steered, strength
from bench.sae.activations import JumpReLU as JumpReLUActivation
from bench.types import SAE


@dataclass(frozen=True)
class Gated(Usual):
    """MSE + λ · Σ relu(π) + MSE of reconstructing from relu(π) through a frozen decoder; π are the gate's pre-activations.

    The gate is W_enc and b_enc; magnitudes share W_enc, scaled by r = e^`log_scale` per latent, with a bias of their
    own. λ is found while training. At inference it is a JumpReLU with θ = b_mag − r · b_gate.

    Args:
        d_sae: Number of latents m.
        k: Target L0.
    """

    name: ClassVar[str] = "gated"
    divisible: ClassVar[bool] = True
    d_sae: int = 4608
    k: int = 32

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        start = parts.tied_init(self.d_sae, mean, rng)
        return replace(start, extra={"log_scale": torch.zeros(self.d_sae), "b_mag": torch.zeros(self.d_sae)})

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        gate = above(x, w.W_enc, w.b_enc, 0.0, w.b_dec, state.shards)
        projection = gate.values - w.b_enc[gate.cols]
        values = torch.relu(projection * w.extra["log_scale"].exp()[gate.cols] + w.extra["b_mag"][gate.cols])
        on = values.detach() > 0
        codes = gate.valued(values).only(on)
        xhat = parts.reconstruction(w, codes)
        by_gate = decode(gate, w.W_dec.detach()) + w.b_dec.detach()
        l1 = strength(state) * state.shards.summed(gate.values.sum()) / len(x)
        return {"mse": parts.mse(x, xhat), "l1": l1, "gate": parts.mse(x, by_gate)}, Forward(codes, xhat)

    def update(self, state: State, forward: Forward) -> State:
        return steered(parts.count_silence(state, forward), forward.codes.l0, self.k)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        w = w.map(Tensor.detach)
        r = w.extra["log_scale"].exp()
        theta = (w.extra["b_mag"] - r * w.b_enc) / scale
        merged = replace(w, W_enc=w.W_enc * r[:, None], b_enc=w.extra["b_mag"])
        return parts.inference(merged, scale, JumpReLUActivation(theta))
