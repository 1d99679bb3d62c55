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


Activation = ReLU | TopK | JumpReLU
