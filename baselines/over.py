"""What every wrapper hands on to the method it wraps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from baselines import parts
from baselines.batchtopk import BatchTopK
from baselines.parts import Forward, State, Trainer, Weights
from bench.types import SAE


@dataclass(frozen=True)
class Over:
    """A method that changes one thing about its base; everything else is the base's.

    Args:
        base: Method whose codes, losses, constraints and export are kept where the wrapper says nothing.
        sharing: Whether what the wrapper does is right where each of several processes holds a part of the latents.
    """

    sharing: ClassVar[bool] = False
    base: Trainer = field(default_factory=BatchTopK)

    @property
    def d_sae(self) -> int:
        return self.base.d_sae

    @property
    def k(self) -> int:
        return self.base.k

    @property
    def trains(self) -> bool:
        return getattr(self.base, "trains", True)

    @property
    def divisible(self) -> bool:
        return self.sharing and getattr(self.base, "divisible", False)

    @property
    def remark(self) -> str:
        return getattr(self.base, "remark", "")

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        return self.base.init(mean, rng)

    def prepare(self, w: Weights, sample: Callable[[], Tensor], rng: torch.Generator) -> Weights:
        return parts.prepared(self.base, w, sample, rng)

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        return self.base.loss(w, x, state, rng)

    def project_grad(self, w: Weights) -> None:
        self.base.project_grad(w)

    def constrain(self, w: Weights) -> None:
        self.base.constrain(w)

    def update(self, state: State, forward: Forward) -> State:
        return self.base.update(state, forward)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        return self.base.export(w, scale, calibration)
