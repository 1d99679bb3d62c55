"""Control `frozen_decoder`: the decoder keeps its random directions, everything else is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from baselines.over import Over
from baselines.parts import Weights


@dataclass(frozen=True)
class FrozenDecoder(Over):
    """A base method whose decoder rows never move from their random start.

    Args:
        base: Method that trains the rest.
        start: `isotropic` takes all directions alike; `covariance` draws rows from a normal distribution with the
            covariance of the activations, so that they point where the data are (the published figures are of this one).
    """

    name: ClassVar[str] = "frozen_decoder"
    sharing: ClassVar[bool] = True
    start: Literal["isotropic", "covariance"] = "isotropic"

    def prepare(self, w: Weights, sample: Callable[[], Tensor], rng: torch.Generator) -> Weights:
        w = super().prepare(w, sample, rng)
        if self.start == "isotropic":
            return w
        rows = covariance_rows(sample(), len(w.W_dec), rng).to(w.W_dec)
        return replace(w, W_dec=rows, W_enc=rows[: len(w.W_enc)].clone())  # a pursuit has no encoder rows

    def project_grad(self, w: Weights) -> None:
        w.W_dec.grad = None
        self.base.project_grad(w)

    @torch.no_grad()
    def constrain(self, w: Weights) -> None:
        """The decoder does not move; what else the base constrains stays constrained."""
        kept = w.W_dec.clone()
        self.base.constrain(w)
        w.W_dec.copy_(kept)


def covariance_rows(x: Tensor, m: int, rng: torch.Generator) -> Tensor:
    """[m, d] unit rows drawn from a normal distribution with the covariance of [n, d] tokens."""
    centred = (x - x.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    rows = torch.randn(m, x.shape[1], generator=rng, dtype=torch.float64) * values.clamp(min=0).sqrt() @ vectors.T
    return (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).to(x.dtype)
