"""Matching pursuit as other libraries run it: rows of any norm, a fixed number of picks, and their own rules for stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.sae.pursuit import Pursuit, PursuitSAE
from bench.store import array_sha256

_NUMBERS = 2**22  # inner products held at a time


@dataclass(frozen=True)
class Greedy(Pursuit):
    """At most k picks per token: latent j with the largest D_jᵀ r, f_j += v, r −= v D_j, with v = D_jᵀ r whatever the norm of D_j.

    Args:
        k: Picks per token.
        positive: v = max(D_jᵀ r, 0).
        residual: Stop once ‖r‖ is below this; 0: never.
        distinct: Stop after a pick that adds no latent to those with a code.
    """

    positive: bool = False
    residual: float = 0.0
    distinct: bool = False
    name: ClassVar[str] = "greedy_pursuit"


@dataclass(frozen=True, eq=False)
class GreedySAE(PursuitSAE):
    """Codes by the rules of `rule`;  x̂ = f W_dec + b_dec. Rows may have any norm; `k` is the rule's."""

    rule: Greedy = Greedy(1)

    @property
    def act(self) -> Greedy:
        """What takes the place of an activation function."""
        return self.rule

    @property
    def encode_flop(self) -> float:
        """Multiplications and additions for the codes of one token, if it takes all its picks."""
        return 2.0 * self.k * self.d_sae * self.d_in

    @property
    def sha256(self) -> str:
        """Identity of the function: the float32 weights and the rule."""
        r = self.rule
        numbers = torch.tensor([r.k, r.positive, r.residual, r.distinct], dtype=torch.float64)
        tensors = (torch.tensor([ord(c) for c in r.name]), self.W_dec, self.b_dec, numbers)
        return array_sha256(*(t.detach().float().cpu().numpy() for t in tensors))

    @torch.no_grad()
    def picks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, k] latents and [n, k] what each pick adds (0: no pick), in the order of picking; memory O(n·k + n·d)."""
        r, rows, rule = x - self.b_dec, self.W_dec, self.rule
        cols, values = torch.zeros(len(x), self.k, dtype=torch.long, device=x.device), r.new_zeros(len(x), self.k)
        block = max(1, _NUMBERS // len(rows))
        for i in range(0, len(x), block):
            _pursue(r[i : i + block], rows, rule, cols[i : i + block], values[i : i + block])
        return cols, values


def _pursue(r: Tensor, rows: Tensor, rule: Greedy, cols: Tensor, values: Tensor) -> None:
    """Fill in the picks of a few tokens; `r` [n, d] becomes what is left of them."""
    going = torch.ones(len(r), dtype=torch.bool, device=r.device)
    for t in range(rule.k):
        best, at = (r @ rows.T).max(1)
        best = (best.relu() if rule.positive else best) * going
        known = ((cols[:, :t] == at[:, None]) & (values[:, :t] != 0)).any(1)
        cols[:, t], values[:, t] = at, best
        r.addcmul_(rows[at], best[:, None], value=-1)
        if rule.distinct:
            going &= ~(known | (best == 0))
        if rule.residual > 0:
            going &= ~(r.norm(dim=1) < rule.residual)
        if not bool(going.any()):
            return
