"""Control `frozen_decoder`: the decoder keeps its random directions, everything else is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from baselines.batchtopk import BatchTopK
from baselines.parts import Forward, State, Trainer, Weights
from bench.sae.dense import DenseSAE


@dataclass(frozen=True)
class FrozenDecoder:
    """A base method whose decoder rows never move from their isotropic random start.

    Args:
        base: Method that trains the rest.
    """

    name: ClassVar[str] = "frozen_decoder"
    base: Trainer = field(default_factory=BatchTopK)

    @property
    def d_sae(self) -> int:
        return self.base.d_sae

    @property
    def k(self) -> int:
        return self.base.k

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        return self.base.init(mean, rng)

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        return self.base.loss(w, x, state, rng)

    def project_grad(self, w: Weights) -> None:
        if w.W_dec.grad is not None:
            w.W_dec.grad.zero_()

    def constrain(self, w: Weights) -> None:
        """The decoder does not move, so its rows stay unit."""

    def update(self, state: State, forward: Forward) -> State:
        return self.base.update(state, forward)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> DenseSAE:
        return self.base.export(w, scale, calibration)
