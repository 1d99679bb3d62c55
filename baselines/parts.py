"""Pieces that methods share: weights, state, reconstruction, the dead-latent loss, constraints, export.

A method is a frozen dataclass with the functions of `Trainer`, and picks from these pieces. Losses are stated for inputs
scaled to total variance 1, where MSE (summed over dimensions, mean over tokens) is the fraction of variance unexplained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from baselines.shards import ALONE, Shards
from baselines.sparse import SparseBatch, decode
from bench.errors import VerificationError
from bench.kernels.topk import calibrated_threshold
from bench.sae.activations import Activation, JumpReLU
from bench.sae.dense import DenseSAE
from bench.types import SAE

SPARSITY_WARMUP = 0.05
_CALIBRATION_BLOCK = 1024


@dataclass(frozen=True)
class Weights:
    """Parameters, one row per latent.

    Args:
        W_enc: [m, d] (transposed against the inference form, so that a latent's row is contiguous).
        b_enc: [m].
        W_dec: [m, d], unit rows.
        b_dec: [d], subtracted before the encoder and added by the decoder.
        extra: What a method trains beyond these: thresholds, gates.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def named(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec, **self.extra}

    def map(self, change: Callable[[Tensor], Tensor], shared: Callable[[Tensor], Tensor] | None = None) -> Weights:
        """The same weights with every tensor changed; b_dec, which has no row per latent, by `shared` if given."""
        changed = {name: (shared or change)(t) if name == "b_dec" else change(t) for name, t in self.named().items()}
        return Weights(*(changed.pop(n) for n in ("W_enc", "b_enc", "W_dec", "b_dec")), extra=changed)


@dataclass(frozen=True)
class State:
    """What training remembers besides weights.

    Args:
        step: Steps done.
        total: Steps in all.
        silent: [m] tokens since each latent last fired.
        dead_after: A latent silent for this many tokens counts as dead.
        floor: About the smallest code of the last batch: where the next selection starts to look.
        extra: What a method's controllers remember.
        shards: This process among those that train the SAE; `silent` is about its own latents.
    """

    step: int
    total: int
    silent: Tensor
    dead_after: int
    floor: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)
    shards: Shards = ALONE

    @property
    def warm(self) -> float:
        """Share of a sparsity penalty that counts by now: it rises from 0 to 1 over the first 5 % of the steps."""
        return min(1.0, self.step / max(1.0, SPARSITY_WARMUP * self.total))

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
    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE: ...


class Usual:
    """The functions that most methods share; a method overrides what it does otherwise. `d_sae` and `k` are its fields."""

    d_sae: int
    k: int

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        """Random unit decoder rows, the encoder equal to them."""
        return tied_init(self.d_sae, mean, rng)

    def project_grad(self, w: Weights) -> None:
        """Rows of unit norm: no gradient along them."""
        remove_parallel_gradient(w)

    def constrain(self, w: Weights) -> None:
        """Rows of unit norm."""
        unit_rows(w)

    def update(self, state: State, forward: Forward) -> State:
        """Count the tokens since each latent fired."""
        return count_silence(state, forward)

    def export(self, w: Weights, scale: float, calibration: Tensor) -> SAE:
        """Inference form with a threshold calibrated to the target L0."""
        return export_with_threshold(w, scale, calibration, self.k)


def prepared(method: Trainer, w: Weights, sample: Callable[[], Tensor], rng: torch.Generator) -> Weights:
    """The weights of step 0: those of `init`, or what a method with a function `prepare` makes of them after a look at the data.

    Args:
        method: Any; few have `prepare`.
        w: Of `init`.
        sample: Gives [n, d] scaled training tokens.
        rng: For the method's own draws.
    """
    look = getattr(method, "prepare", None)
    return look(w, sample, rng) if look else w


def tied_init(d_sae: int, mean: Tensor, rng: torch.Generator) -> Weights:
    """Random unit decoder rows, encoder equal to the decoder, b_enc = 0, b_dec = the data's mean."""
    rows = torch.randn(d_sae, len(mean), generator=rng)
    rows /= rows.norm(dim=1, keepdim=True)
    return Weights(rows.clone(), torch.zeros(d_sae), rows, mean.clone())


def mse(x: Tensor, xhat: Tensor) -> Tensor:
    """Squared error summed over dimensions, mean over tokens."""
    return mse_loss(xhat, x, reduction="sum") / len(x)


def reconstruction(w: Weights, codes: SparseBatch) -> Tensor:
    """[n, d] reconstruction with bias."""
    return decode(codes, w.W_dec) + w.b_dec


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
    silent = state.silent + forward.codes.n * state.shards.data_count
    silent.index_fill_(0, forward.codes.cols.to(silent.device), 0)
    return replace(state, step=state.step + 1, silent=state.shards.least_(silent), floor=forward.codes.floor)


def descend(
    method: Trainer, w: Weights, opt: torch.optim.Optimizer, x: Tensor, state: State, rng: torch.Generator, lr: float, clip: float
) -> tuple[State, dict[str, Tensor], Forward]:
    """One step on a batch: gradient, its projection, clipping, update, constraints. Changes `w` and `opt` in place.

    Args:
        method: Whose loss goes down.
        w: Weights that want gradients.
        opt: Optimiser of them.
        x: [n, d] inputs.
        state: What the method remembers.
        rng: Generator of this step alone.
        lr: Rate of this step.
        clip: Largest gradient norm.

    Raises:
        VerificationError: The loss stopped being finite.
    """
    from baselines.descent import move  # it knows the classes of this module

    opt.zero_grad(set_to_none=True)
    terms, forward = method.loss(w, x, state, rng)
    terms = {name: state.shards.averaged(term) for name, term in terms.items()}
    loss = torch.stack(list(terms.values())).sum()
    if state.shards.total(float(not torch.isfinite(loss))):
        raise VerificationError(f"the loss is not finite at step {state.step}", "lower the learning rate")
    loss.backward()
    opt.param_groups[0]["lr"] = lr
    move(method, w, opt, clip, state.shards)
    return method.update(state, forward), terms, forward


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
    return inference(w, scale, JumpReLU(torch.full((len(w.W_dec),), theta)))


def inference(w: Weights, scale: float, act: Activation) -> DenseSAE:
    """The inference form on raw activations: biases divided by the input scale, which leaves the matrices as they are.

    Args:
        w: Trained weights, for scaled inputs.
        scale: Input scale of training.
        act: Activation function, for raw activations.
    """
    b_dec = w.b_dec.detach() / scale
    w_enc, b_enc = w.W_enc.detach().T.contiguous(), w.b_enc.detach() / scale
    return DenseSAE(w_enc, b_enc, w.W_dec.detach().clone(), b_dec, b_dec.clone(), act)


def describe(method: Any) -> dict[str, Any]:
    """A method's name and parameters as plain data, nested methods included."""
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    return {"method": method.name, **{k: describe(v) if hasattr(v, "loss") else v for k, v in values.items()}}
