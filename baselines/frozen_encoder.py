"""Control `frozen_encoder`: which latents a token excites is decided by random directions, everything else is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from baselines.mp import MP
from baselines.over import Over
from baselines.parts import Weights
from bench.errors import UsageError


@dataclass(frozen=True)
class FrozenEncoder(Over):
    """A base method whose encoder, W_enc and b_enc, never moves from its random start; b_dec and thresholds do.

    Args:
        base: Method that trains the rest.
    """

    name: ClassVar[str] = "frozen_encoder"
    sharing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.base, MP):
            raise UsageError("frozen_encoder over mp: matching pursuit has no encoder to freeze", "choose another base")

    def project_grad(self, w: Weights) -> None:
        w.W_enc.grad = w.b_enc.grad = None
        self.base.project_grad(w)
