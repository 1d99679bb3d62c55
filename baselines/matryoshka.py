"""Matryoshka SAE (Bussmann et al. 2025, arXiv 2503.17547): the first latents alone must reconstruct too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from baselines.dead import AUX_WEIGHT, dead_latent_loss
from baselines.nested import nested_error
from baselines.parts import Forward, State, Usual, Weights
from baselines.sparse import batch_top

FRACTIONS = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
PARETO = 0.5


@dataclass(frozen=True)
class Matryoshka(Usual):
    """BatchTopK codes; the mean over prefixes of the MSE of their latents alone + α · auxiliary loss.

    The paper sums over prefixes; the mean keeps the size of the loss, so α and penalties weigh five times as much
    against it as there.

    Args:
        d_sae: Number of latents m.
        k: Mean number of active latents per token.
        aux_weight: α.
        prefixes: `fixed` takes 1/32, 3/32, 7/32, 15/32 and all of the latents; `random` draws sizes anew at every step
            from a truncated Pareto distribution, and always takes all latents too.
        drawn: Prefixes of a step with `random`.
    """

    name: ClassVar[str] = "matryoshka"
    divisible: ClassVar[bool] = True
    d_sae: int = 4608
    k: int = 32
    aux_weight: float = AUX_WEIGHT
    prefixes: Literal["fixed", "random"] = "fixed"
    drawn: int = 10

    def sizes(self, rng: torch.Generator) -> tuple[int, ...]:
        """Sizes of the prefixes of one step, ascending, the last all latents."""
        if self.prefixes == "fixed":
            found = [round(f * self.d_sae) for f in FRACTIONS]
        else:
            u = torch.rand(self.drawn - 1, generator=rng, dtype=torch.float64)
            tail = 1 - (1 / self.d_sae) ** PARETO  # inverse of the distribution function on [1, m]
            found = [*((1 - u * tail) ** (-1 / PARETO)).int().tolist(), self.d_sae]
        return tuple(sorted({min(max(1, s), self.d_sae) for s in found}))

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        codes = batch_top(x, w.W_enc, w.b_enc, self.k, w.b_dec, state.floor, state.shards)
        error, xhat = nested_error(codes, w.W_dec, x - w.b_dec, self.sizes(rng))
        xhat = xhat + w.b_dec.detach()
        aux = dead_latent_loss(w, x, xhat, state, k_aux=x.shape[1] // 2)
        return {"mse": error, "aux": self.aux_weight * aux}, Forward(codes, xhat)
