"""Pieces that methods share: weights, state, reconstruction, the dead-latent loss, constraints, export.

A method is a frozen dataclass with the five functions of `Trainer`; it picks from these pieces and inherits
nothing. All losses are stated for inputs scaled to total variance 1, where MSE (summed over dimensions, mean
over tokens) equals the fraction of variance unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from baselines.sparse import SparseBatch, decode
from bench.kernels.topk import calibrated_threshold
from bench.sae.activations import JumpReLU
from bench.sae.dense import DenseSAE

AUX_WEIGHT = 1 / 32
_CALIBRATION_BLOCK = 1024


@dataclass(frozen=True)
class Weights:
    """Parameters, one row per latent.

    Args:
        W_enc: [m, d] (transposed against the inference form, so that a latent's row is contiguous).
        b_enc: [m].
        W_dec: [m, d], unit rows.
        b_dec: [d], subtracted before the encoder and added by the decoder.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def named(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class State:
    """What training remembers besides weights.

    Args:
        step: Steps done.
        total: Steps in all.
        silent: [m] tokens since each latent last fired.
        dead_after: A latent silent for this many tokens counts as dead.
    """

    step: int
    total: int
    silent: Tensor
    dead_after: int

    @property
    def dead(self) -> Tensor:
        """Indices of dead latents."""
        return torch.nonzero(self.silent > self.dead_after).squeeze(1)


@dataclass(frozen=True)
class Forward:
    """What one step computed: codes [n tokens] and reconstruction [n, d]."""

    codes: SparseBatch
    xhat: Tensor


@runtime_checkable
class Trainer(Protocol):
    """A method: pure functions of weights, data and state. `rng` is a generator for this step alone."""

    @property
    def k(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    def init(self, mean: Tensor, rng: torch.Generator) -> Weights: ...
    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]: ...
    def project_grad(self, w: Weights) -> None: ...
    def constrain(self, w: Weights) -> None: ...
    def update(self, state: State, forward: Forward) -> State: ...
    def export(self, w: Weights, scale: float, calibration: Tensor) -> DenseSAE: ...


def tied_init(d_sae: int, mean: Tensor, rng: torch.Generator) -> Weights:
    """Random unit decoder rows, encoder equal to the decoder, b_enc = 0, b_dec = the data's mean."""
    rows = torch.randn(d_sae, len(mean), generator=rng)
    rows /= rows.norm(dim=1, keepdim=True)
    return Weights(rows.clone(), torch.zeros(d_sae), rows, mean.clone())


def mse(x: Tensor, xhat: Tensor) -> Tensor:
    """Squared error summed over dimensions, mean over tokens."""
    return (x - xhat).square().sum() / len(x)


def reconstruction(w: Weights, codes: SparseBatch) -> Tensor:
    """[n, d] reconstruction with bias."""
    return decode(codes, w.W_dec) + w.b_dec


def dead_latent_loss(w: Weights, x: Tensor, xhat: Tensor, state: State, k_aux: int) -> Tensor:
    """How much of the residual the dead latents leave unexplained (auxiliary loss, Gao et al. 2024).

    Σ‖e − ê‖² / Σ‖e − mean e‖² with e the detached residual and ê the k_aux largest relu pre-activations of dead
    latents times their decoder rows, no bias; 0 when no latent is dead.
    """
    dead = state.dead.to(x.device)
    if len(dead) == 0:
        return x.new_zeros(())
    e = (x - xhat).detach()
    pre = torch.relu(torch.addmm(w.b_enc[dead], x - w.b_dec, w.W_enc[dead].T))
    if len(dead) > k_aux:
        top = pre.topk(k_aux, dim=1, sorted=False)
        pre = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return (e - pre @ w.W_dec[dead]).square().sum() / (e - e.mean(0)).square().sum()


@torch.no_grad()
def remove_parallel_gradient(w: Weights) -> None:
    """Remove from each decoder row's gradient the component along the row."""
    g = w.W_dec.grad
    if g is not None:
        g.addcmul_(w.W_dec, (w.W_dec * g).sum(1, keepdim=True), value=-1)


@torch.no_grad()
def unit_rows(w: Weights) -> None:
    """Scale decoder rows back to unit norm."""
    w.W_dec.div_(w.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))


def count_silence(state: State, forward: Forward) -> State:
    """The state after a step: latents that fired start counting again."""
    silent = state.silent + forward.codes.n
    silent[forward.codes.cols.unique().to(silent.device)] = 0
    return replace(state, step=state.step + 1, silent=silent)


@torch.no_grad()
def export_with_threshold(w: Weights, scale: float, calibration: Tensor, k: int) -> DenseSAE:
    """The inference form of a method with a batch-level top-k, on raw activations.

    θ is the value at which k pre-activations per calibration token exceed it on average. With inputs scaled by s
    in training, codes, biases and θ are divided by s, which leaves the weights as they are.

    Args:
        w: Trained weights, for scaled inputs.
        scale: s.
        calibration: [n, d] scaled training activations.
        k: Target L0.
    """
    blocks = (torch.addmm(w.b_enc, x - w.b_dec, w.W_enc.T) for x in calibration.split(_CALIBRATION_BLOCK))
    theta = calibrated_threshold(blocks, k) / scale
    b_dec = w.b_dec.detach() / scale
    threshold = torch.full((len(w.W_dec),), theta)
    return DenseSAE(
        w.W_enc.detach().T.contiguous(), w.b_enc.detach() / scale, w.W_dec.detach().clone(), b_dec, b_dec.clone(), JumpReLU(threshold)
    )


def describe(method: Any) -> dict[str, Any]:
    """A method's name and parameters as plain data, nested methods included."""
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    return {"method": method.name, **{k: describe(v) if hasattr(v, "loss") else v for k, v in values.items()}}
