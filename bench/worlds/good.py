"""The near-ideal SAE of a planted world, and the ballast that lets its copies keep their L0.

Behind the features' latents lie a few ballast latents: random directions whose codes are too small to explain
anything. Their thresholds set the mean L0, so that no metric can tell a good SAE from a defective one by L0.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from bench.rng import numpy_rng
from bench.sae.activations import JumpReLU
from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.worlds.planted import World

BALLAST = 0.25  # share of the features' L0 that ballast latents add
_BALLAST_CODE = 0.01  # scale of their codes
_CALIBRATION = 8192  # tokens on which L0 is set and true rates are measured


def good_sae(world: World) -> DenseSAE:
    """The near-ideal SAE of a world: true directions, and the linear detector of each feature.

    The encoder is the minimum-variance filter with unit response to its feature, Σ⁻¹W_i / (W_iᵀΣ⁻¹W_i) with Σ the
    covariance of independent features plus noise (Capon 1969). Its threshold is that of two normal classes with
    priors 1 − p and p, and lies above the response to any exclusive sibling.

    Returns:
        n latents for the n features in their order, then the ballast.
    """
    w, p, mu, variance = world.dictionary.astype(np.float64), world.probabilities, world.mean_magnitude, world.variances.copy()
    for points in map(world.children, range(world.spec.circles)):  # alike, so that no filter leans towards a neighbour
        variance[points] = variance[points].mean()
    floor = max(world.spec.noise**2, 1e-3) / world.d
    filters = np.linalg.solve((w.T * variance) @ w + floor * np.eye(world.d), w.T)
    power = np.einsum("ij,ji->i", w, filters)
    encoder = filters / power
    other = np.maximum(1 / power - variance, 0)  # variance of what else the filter sees
    theta = np.clip(mu / 2 + other * np.log((1 - p) / p) / mu, 0.3 * mu, 0.8 * mu)
    theta = np.maximum(theta, mu * (1 + _sibling_response(world, encoder)) / 2)
    rows = numpy_rng(world.spec.seed, "good", "ballast").standard_normal((max(8, world.n_features // 32), world.d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    none = np.zeros(len(rows))
    sae = DenseSAE(
        tensor(np.concatenate([encoder, _BALLAST_CODE * rows.T], 1)),
        tensor(np.concatenate([p * mu, none])),
        tensor(np.concatenate([w, rows])),
        torch.zeros(world.d),
        tensor(world.mean),
        JumpReLU(tensor(np.concatenate([theta, none]))),
    )
    return levelled(sae, world, (1 + BALLAST) * _feature_l0(sae, world))


def levelled(sae: DenseSAE, world: World, l0: float) -> DenseSAE:
    """The SAE with ballast thresholds at which the mean L0 is this; silent ballast where the features alone have more."""
    assert isinstance(sae.act, JumpReLU)
    x, n = calibration_sample(world)[0], world.n_features
    share = float(np.clip((l0 - _feature_l0(sae, world)) / (sae.d_sae - n), 0, 0.5))
    pre = np.sort((x - sae.b_pre.numpy()) @ sae.W_enc.numpy()[:, n:] + sae.b_enc.numpy()[n:], axis=0)
    theta = sae.act.threshold.clone()
    theta[n:] = torch.from_numpy(pre[len(x) - 1 - round(share * len(x))])
    return replace(sae, act=JumpReLU(theta))


@lru_cache(maxsize=2)
def calibration_sample(world: World) -> tuple[np.ndarray, Codes]:
    """8,192 tokens of a world, always the same."""
    return world.sample(_CALIBRATION, numpy_rng(world.spec.seed, "good", "sample"))


def tensor(a: np.ndarray) -> torch.Tensor:
    """A float32 tensor of its own."""
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))


def _feature_l0(sae: DenseSAE, world: World) -> float:
    """Mean number of active latents per token, ballast left out."""
    x = calibration_sample(world)[0]
    return float(sae.encode_sparse(x).firing_counts()[: world.n_features].sum() / len(x))


def _sibling_response(world: World, encoder: np.ndarray) -> np.ndarray:
    """[n] largest response of each feature's filter to an exclusive sibling's direction, 0 where it has none."""
    out = np.zeros(world.n_features)
    if not world.spec.exclusive:
        return out
    for parent in world.concepts:
        kids = world.children(parent)
        response = encoder[:, kids].T @ world.dictionary[kids].T
        np.fill_diagonal(response, 0)
        out[kids] = np.maximum(response.max(1), 0)
    return out
