"""Activation functions of linear-encoder SAEs: what turns pre-activations into codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReLU:
    """f = max(pre, 0)."""

    name = "relu"

    def __call__(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each token, then ReLU: a token may have fewer than k active latents."""

    k: int
    name = "topk"

    def __call__(self, pre: Tensor) -> Tensor:
        top = pre.topk(min(self.k, pre.shape[-1]), dim=-1)
        return torch.zeros_like(pre).scatter_(-1, top.indices, torch.relu(top.values))


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """f = relu(pre) where pre > threshold, strictly; `threshold` is [d_sae] or a scalar tensor."""

    threshold: Tensor
    name = "jumprelu"

    def __call__(self, pre: Tensor) -> Tensor:
        return torch.relu(pre) * (pre > self.threshold)


@dataclass(frozen=True)
class AbsTopK:
    """The k pre-activations of largest absolute value of each token, with their signs."""

    k: int
    name = "abstopk"

    def __call__(self, pre: Tensor) -> Tensor:
        return _kept(pre, pre.abs(), self.k)


@dataclass(frozen=True)
class SignedTopK:
    """The k largest pre-activations of each token without a ReLU: where fewer than k are positive, codes are negative."""

    k: int
    name = "signed_topk"

    def __call__(self, pre: Tensor) -> Tensor:
        return _kept(pre, pre, self.k)


@dataclass(frozen=True)
class GroupMax:
    """The largest pre-activation of each of k groups of neighbouring latents, then ReLU; k divides d_sae."""

    k: int
    name = "groupmax"

    def __call__(self, pre: Tensor) -> Tensor:
        best = pre.unflatten(-1, (self.k, -1)).max(-1)
        first = torch.arange(self.k, device=pre.device) * (pre.shape[-1] // self.k)
        return torch.zeros_like(pre).scatter_(-1, best.indices + first, torch.relu(best.values))


@dataclass(frozen=True, eq=False)
class RankedTopK:
    """The k largest of pre · weight of each token, then ReLU of the pre-activations themselves; `weight` is [d_sae], not negative."""

    k: int
    weight: Tensor
    name = "ranked_topk"

    def __call__(self, pre: Tensor) -> Tensor:
        return torch.relu(_kept(pre, pre * self.weight, self.k))


@dataclass(frozen=True)
class TanhReLU:
    """f = tanh(max(pre, 0))."""

    name = "tanh_relu"

    def __call__(self, pre: Tensor) -> Tensor:
        return torch.tanh(torch.relu(pre))


def _kept(pre: Tensor, rank: Tensor, k: int) -> Tensor:
    at = rank.topk(min(k, pre.shape[-1]), dim=-1).indices
    return torch.zeros_like(pre).scatter_(-1, at, pre.gather(-1, at))


Activation = ReLU | TopK | JumpReLU | AbsTopK | SignedTopK | GroupMax | RankedTopK | TanhReLU
Common = ReLU | TopK | JumpReLU  # those with ways of encoding of their own; the others are applied to blocks of pre-activations
WITH_K: dict[str, type[AbsTopK] | type[SignedTopK] | type[GroupMax]] = {a.name: a for a in (AbsTopK, SignedTopK, GroupMax)}


def vector_of(act: Activation) -> tuple[str, Tensor] | None:
    """The tensor that belongs to an activation, and its name; None where it has none."""
    if isinstance(act, JumpReLU):
        return "threshold", act.threshold
    return ("rank_weight", act.weight) if isinstance(act, RankedTopK) else None


def parts(act: Activation) -> list[Tensor]:
    """The numbers that, with the weights, decide the function; an activation beyond the common ones is named first."""
    if isinstance(act, ReLU | TopK | JumpReLU):
        return [act.threshold if isinstance(act, JumpReLU) else torch.tensor([getattr(act, "k", 0)])]
    named = [torch.tensor([ord(c) for c in act.name]), torch.tensor([getattr(act, "k", 0)])]
    return [*named, act.weight] if isinstance(act, RankedTopK) else named


def moved(act: Activation, device: str) -> Activation:
    """The same activation on another device."""
    if isinstance(act, JumpReLU):
        return JumpReLU(act.threshold.to(device))
    return RankedTopK(act.k, act.weight.to(device)) if isinstance(act, RankedTopK) else act
