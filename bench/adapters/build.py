"""What many formats share: checked parts put together to the one inference form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.adapters import Given
from bench.adapters.files import DAMAGED, finite, only, take
from bench.errors import CheckpointError
from bench.sae.activations import JumpReLU, RankedTopK, TopK
from bench.sae.checkpoint import Form
from bench.sae.dense import DenseSAE
from bench.sae.normalisation import PerToken

_MIN_NORM = 1e-8


def checked(sae: Form) -> Form:
    """The SAE, if shapes agree and all numbers are finite; folding can overflow where the file's numbers did not.

    Raises:
        CheckpointError: They do not.
    """
    d_sae, d_in = sae.W_dec.shape
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "b_pre": (d_in,)}
    parts = {n: (getattr(sae, n), s) for n, s in shapes.items() if isinstance(sae, DenseSAE) or n in ("W_dec", "b_dec")}
    if isinstance(sae.act, JumpReLU | RankedTopK):
        parts["threshold"] = (sae.act.threshold if isinstance(sae.act, JumpReLU) else sae.act.weight, (d_sae,))
    for name, (t, shape) in parts.items():
        if tuple(t.shape) != shape or not finite(t):
            raise CheckpointError(f"{name} is not a finite array of shape {list(shape)}", DAMAGED)
    return sae


def gated(parts: Mapping[str, Tensor], b_pre: Tensor) -> DenseSAE:
    """A gated SAE as the per-latent JumpReLU it is.

    Args:
        parts: `W_enc` [d_in, d_sae], `W_dec` [d_sae, d_in], `b_dec` [d_in], `b_gate`, `b_mag`, `r_mag` [d_sae].
        b_pre: [d_in] subtracted from the input.

    With p = (x − b_pre) W_enc and r = exp(r_mag) > 0, the gate p + b_gate > 0 opens exactly where
    r p + b_mag > b_mag − r b_gate, so the magnitude's pre-activation decides both.
    """
    r = parts["r_mag"].exp()
    act = JumpReLU(parts["b_mag"] - r * parts["b_gate"])
    return DenseSAE(parts["W_enc"] * r, parts["b_mag"], parts["W_dec"], parts["b_dec"], b_pre, act)


def norms_folded(sae: DenseSAE) -> DenseSAE:
    """Unit decoder rows; pre-activations (and so codes) times the old row norms. The threshold is left as it is."""
    n = sae.W_dec.norm(dim=1)
    W_dec = sae.W_dec / n.clamp(min=_MIN_NORM)[:, None]
    return replace(sae, W_enc=sae.W_enc * n, b_enc=sae.b_enc * n, W_dec=W_dec)


def scale_folded(sae: DenseSAE, s: float) -> DenseSAE:
    """An SAE of s·x as an SAE of x with the same codes.

    (s x − b) W = (x − b / s) (s W) for what the encoder subtracts; what the decoder returns is divided by s.
    """
    if s == 1:
        return sae
    return replace(sae, W_enc=sae.W_enc * s, W_dec=sae.W_dec / s, b_dec=sae.b_dec / s, b_pre=sae.b_pre / s)


def input_scale(kind: object, given: Given, remedy: str = "") -> tuple[float, str]:
    """The factor on the input that a file's normalisation asks for, and what to say of it.

    Args:
        kind: The file's word for it; None, False and "none" are none, True is the older word for the average.
        given: The user's facts.
        remedy: What else is known about the missing factor.

    Raises:
        CheckpointError: It is not a fixed factor, or the factor is stored nowhere and not given.
    """
    if kind in (None, False, "none"):
        return 1.0, "none"
    name = "expected_average_only_in" if kind is True else str(kind)
    if name != "expected_average_only_in":
        raise CheckpointError(f"input normalisation {name!r} cannot be folded into the weights", "give an SAE without it")
    s = given.norm_scale
    if s is None:
        raise CheckpointError(
            f"normalisation {name} needs a factor that the file does not hold", f"give --norm-scale, or --norm-scale estimate{remedy}"
        )
    if not math.isfinite(s) or s <= 0:
        raise CheckpointError(f"--norm-scale {s} is not a positive number", "give sqrt(d_in) / mean activation norm")
    return s, f"{name}: factor {s:g} {given.scale_source}, folded into the weights"


def per_token(kind: object) -> PerToken | None:
    """The normalisation that no weights can absorb, by SAELens' word for it; None for any other."""
    known: dict[object, PerToken] = {"layer_norm": PerToken("layer_norm"), "constant_norm_rescale": PerToken("unit_norm")}
    return known.get(kind) if isinstance(kind, str) else None


def in_frames(sae: DenseSAE, norm: PerToken | None) -> tuple[DenseSAE, str]:
    """The SAE inside the frame of each token, and what to say of it."""
    if norm is None:
        return sae, "none"
    said = {"layer_norm": "layer norm of each token", "unit_norm": "each token to norm sqrt(d_in)"}[norm.kind]
    return replace(sae, norm=norm), f"{said}, undone on the reconstruction"


def topk(k: object, given: Given, d_sae: int) -> TopK:
    """Top-k with the file's k, or the given one where the file has none. Raises as `count` does."""
    return TopK(count(k, given, d_sae))


def count(k: object, given: Given, d_sae: int) -> int:
    """The file's k, or the given one where the file has none.

    Raises:
        CheckpointError: No k, a k out of range, or two that differ.
    """
    stored = _whole(k)
    if stored is None and k is not None:
        raise CheckpointError(f"the file says k = {k!r}, not a whole number", DAMAGED)
    if stored is None and given.k is None:
        raise CheckpointError("the file does not say k, the number of active latents", "give --k")
    if stored is not None and given.k not in (None, stored):
        raise CheckpointError(f"the file says k = {stored}, but --k is {given.k}", "leave out --k")
    chosen = stored if stored is not None else int(given.k or 0)
    if not 1 <= chosen <= d_sae:
        raise CheckpointError(f"k = {chosen} is not between 1 and the {d_sae} latents", DAMAGED if given.k is None else "give another --k")
    return chosen


def _whole(k: object) -> int | None:
    """A whole number from a config or a one-element tensor; None where there is none."""
    value = k.item() if isinstance(k, Tensor) and k.numel() == 1 else k
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer() else None


def above_norms(threshold: Tensor, W_dec: Tensor) -> JumpReLU:
    """For a file that compares pre · ‖W_i‖ with thresholds [d_sae]: pre is compared with the threshold over the norm.

    A row of norm 0 has 0 on the left, which lies above no threshold that is 0 or more.
    """
    n = W_dec.norm(dim=1)
    return JumpReLU(torch.where(n > 0, threshold / n.clamp(min=torch.finfo(n.dtype).tiny), torch.finfo(n.dtype).max))


def inclusive(threshold: Tensor) -> JumpReLU:
    """For a file whose latents fire at the threshold itself: strictly above the next smaller float32."""
    return JumpReLU(torch.nextafter(threshold.float(), torch.tensor(-math.inf)))


def transposed(tensors: Mapping[str, object], encoder: str, decoder: str, d_in: int, d_sae: int) -> tuple[Tensor, Tensor]:
    """W_enc [d_in, d_sae] and W_dec [d_sae, d_in] of two `nn.Linear` layers, which store their transposes."""
    W_enc, W_dec = take(tensors, encoder, (d_sae, d_in)), take(tensors, decoder, (d_in, d_sae))
    return W_enc.T.contiguous(), W_dec.T.contiguous()


def four(tensors: Mapping[str, object], *more: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`W_enc` [d_in, d_sae], `b_enc`, `W_dec` [d_sae, d_in], `b_dec` by these names, with no other tensors than `more`."""
    only(tensors, "W_enc", "b_enc", "W_dec", "b_dec", *more)
    b_enc, b_dec = take(tensors, "b_enc", (None,)), take(tensors, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    return take(tensors, "W_enc", (d_in, d_sae)), b_enc, take(tensors, "W_dec", (d_sae, d_in)), b_dec


def batch_threshold(stored: float | None, given: Given, d_sae: int) -> JumpReLU:
    """The inference threshold of a BatchTopK SAE, [d_sae].

    Args:
        stored: The file's, or None where it was never set: then every positive pre-activation would fire.
        given: The user's facts.
        d_sae: Number of latents.

    Raises:
        CheckpointError: None at all, or two that differ.
    """
    chosen = stored if stored is not None else given.threshold
    if chosen is None:
        raise CheckpointError("the BatchTopK threshold was never set in this file", "give --threshold, or the checkpoint of a later step")
    if given.threshold is not None and not math.isclose(given.threshold, chosen, rel_tol=1e-6):  # the file has float32
        raise CheckpointError(f"the file says threshold = {chosen:g}, but --threshold is {given.threshold:g}", "leave out --threshold")
    if not math.isfinite(chosen) or chosen < 0:
        raise CheckpointError(f"threshold {chosen} is not a number of at least 0", "give another --threshold")
    return JumpReLU(torch.full((d_sae,), chosen))


def agree(config: Mapping[str, Any], key: str, actual: float) -> None:
    """Refuse a config that contradicts the tensors."""
    said = config.get(key)
    said = int(said) if isinstance(said, str) and said.isdecimal() else said  # some libraries spell all values as text
    if isinstance(said, int | float) and said != actual:
        raise CheckpointError(f"the config says {key} = {said}, the tensors say {actual:g}", DAMAGED)


def switch(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A config's yes or no; any other value is refused, because a wrong guess would change every number."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"the config's {key} is {value!r}, neither true nor false", DAMAGED)
    return value


def spelled_switch(cfg: Mapping[str, Any], key: str) -> bool:
    """A config's yes or no, also where it is written as Python prints it; there is no default."""
    found = {"True": True, "False": False}.get(str(cfg.get(key)))
    if found is None:
        raise CheckpointError(
            f"the config's {key} is {cfg.get(key)!r}, neither true nor false", f"put {key}, true or false, into the config"
        )
    return found


def word(value: object) -> str:
    """A config's string, or "" for anything else."""
    return value if isinstance(value, str) else ""


def precision(weights: object) -> tuple[str, ...]:
    """An oddity where weights are stored in less (or more) than float32."""
    if isinstance(weights, Tensor) and weights.dtype != torch.float32:
        return (f"weights are stored as {str(weights.dtype).removeprefix('torch.')}; computed in float32",)
    return ()


def name_of(folder: Path, parts: int = 1) -> str:
    """A short name for tables: the last parts of the folder's path."""
    return "-".join(folder.absolute().parts[-parts:]).strip("/") or "sae"
