"""Input normalisation that depends on the token, which no weights can absorb: layer norm, and a fixed norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EPS = 1e-5  # added to the standard deviation of the input, not of the output, by every library that has this


@dataclass(frozen=True)
class PerToken:
    """z = (x − shift) / scale for the encoder, x̂ = ẑ · scale + shift after the decoder; both numbers are a token's own.

    Args:
        kind: `layer_norm`: the token's mean, and its standard deviation with d − 1 in the denominator; `unit_norm`: 0 and
            ‖x‖ / √d, so that every z has norm √d. A token of scale 0 has z = 0.
    """

    kind: Literal["layer_norm", "unit_norm"]

    def frame(self, x: Tensor) -> Tensor:
        """[n, 2] shift and scale of each token of [n, d] inputs."""
        if self.kind == "layer_norm":
            return torch.stack([x.mean(-1), x.std(-1)], -1)
        return torch.stack([torch.zeros_like(x[..., 0]), x.norm(dim=-1) / x.shape[-1] ** 0.5], -1)

    def apply(self, x: Tensor, frame: Tensor) -> Tensor:
        """[n, d] inputs in their frames."""
        shift, scale = frame[..., :1], frame[..., 1:]
        divisor = scale + EPS if self.kind == "layer_norm" else torch.where(scale == 0, 1, scale)
        return (x - shift) / divisor
