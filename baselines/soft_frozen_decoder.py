"""Control `soft_frozen_decoder`: the decoder may turn a little from its random directions, everything else is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from baselines.over import Over
from baselines.parts import Weights

START = "decoder_start"  # name of the rows' start among the weights; no loss depends on it, so it has no gradient


@dataclass(frozen=True)
class SoftFrozenDecoder(Over):
    """A base method whose decoder rows stay within a cone around their isotropic random start, by projection after each step.

    Args:
        base: Method that trains within these bounds.
        cosine: Smallest cosine of a row to its start.
    """

    name: ClassVar[str] = "soft_frozen_decoder"
    sharing: ClassVar[bool] = True
    cosine: float = 0.8

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        w = self.base.init(mean, rng)
        return replace(w, extra={**w.extra, START: w.W_dec.clone()})

    def prepare(self, w: Weights, sample: Callable[[], Tensor], rng: torch.Generator) -> Weights:
        w = super().prepare(w, sample, rng)
        return replace(w, extra={**w.extra, START: w.W_dec.clone()})  # the base may have chosen another start

    @torch.no_grad()
    def constrain(self, w: Weights) -> None:
        self.base.constrain(w)
        w.W_dec.copy_(within(w.W_dec, w.extra[START], self.cosine))


def within(rows: Tensor, start: Tensor, cosine: float) -> Tensor:
    """The nearest unit rows at a cosine of at least `cosine` to their start.

    Args:
        rows: [m, d] unit rows.
        start: [m, d] unit rows.
        cosine: In (0, 1].
    """
    along = (rows * start).sum(1, keepdim=True)
    across = rows - along * start
    length = across.norm(dim=1, keepdim=True)
    edge = cosine * start + (1 - cosine**2) ** 0.5 * across / length.clamp(min=1e-12)
    outside = (along < cosine) & (length > 0)  # a row opposite to its start has no nearest one: it starts again
    return torch.where(outside, edge, torch.where(along < cosine, start, rows))
