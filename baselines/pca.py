"""Control `pca`: principal directions as latents, TopK(k) of the projections of x − μ, one latent for each sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines.identity import Identity, both_signs
from baselines.parts import Weights
from bench.types import SAE


@dataclass(frozen=True)
class PCA(Identity):
    """What the covariance alone gives: 2 · d_in latents, the principal directions of the calibration tokens and their opposites.

    Args:
        k: Latents selected per token. With k = d_in the reconstruction is exact.
    """

    name: ClassVar[str] = "pca"

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        mean = w.b_dec.detach()
        return super().export(both_signs(principal_directions(calibration - mean), mean), scale, calibration)


def principal_directions(x: Tensor) -> Tensor:
    """[d, d] orthonormal principal directions of [n, d] centred tokens, that of largest variance first."""
    vectors = torch.linalg.eigh(x.double().T @ x.double()).eigenvectors
    return vectors.flip(1).T.to(x.dtype).contiguous()
