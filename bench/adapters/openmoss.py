"""What the three generations of OpenMOSS files share: an SAE of normalised activations as one of raw activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import above_norms, batch_threshold, count, in_frames, scale_folded, switch, word
from bench.adapters.files import DAMAGED, take
from bench.errors import CheckpointError
from bench.sae.activations import Activation, JumpReLU, RankedTopK, ReLU, TopK
from bench.sae.dense import DenseSAE
from bench.sae.normalisation import PerToken

NORM = "dataset_average_activation_norm"
_PLAUSIBLE = 1e-6, 1e9  # the library leaves whatever was in memory where the norm was never set


def refuse(cfg: Mapping[str, Any]) -> None:
    """Everything that is not an SAE of one site with a linear encoder, by name."""
    kind, site, out = cfg.get("sae_type", "sae"), cfg.get("hook_point_in"), cfg.get("hook_point_out")
    if kind != "sae":
        raise CheckpointError(f"sae_type is {kind!r}, not 'sae': its codes do not belong to one site", "give an SAE")
    if out not in (None, site):
        raise CheckpointError(f"reads {site} and writes {out}: a transcoder, not an SAE", "give an SAE")
    if switch(cfg, "use_glu_encoder"):
        raise CheckpointError("use_glu_encoder is set: its encoder is not linear", "give an SAE without it")


def activation(cfg: Mapping[str, Any], log_threshold: Tensor | None, given: Given, W_dec: Tensor) -> Activation:
    """The activation of pre-activations of normalised inputs; with decoder norms where the config counts them in.

    Args:
        cfg: The config.
        log_threshold: [d_sae], or None.
        given: The user's facts.
        W_dec: [d_sae, d_in] as stored.
    """
    kind, d_sae = word(cfg.get("act_fn")).lower(), len(W_dec)
    with_norms = counts_norms(cfg)
    if kind == "relu":
        return ReLU()
    if kind == "topk":
        k = count(cfg.get("top_k"), given, d_sae)
        return RankedTopK(k, W_dec.norm(dim=1)) if with_norms else TopK(k)
    if kind == "jumprelu" and log_threshold is not None:
        threshold = log_threshold.exp()
    elif kind == "batchtopk":
        threshold = batch_threshold(None, given, d_sae).threshold
    else:
        raise CheckpointError(f"act_fn {cfg.get('act_fn')!r} is not supported", "supported: relu, jumprelu, topk, batchtopk")
    return above_norms(threshold, W_dec) if with_norms else JumpReLU(threshold)


def counts_norms(cfg: Mapping[str, Any]) -> bool:
    """Whether pre-activations are multiplied by decoder norms before the activation; the default has changed, so the key is needed."""
    if "sparsity_include_decoder_norm" not in cfg:
        raise CheckpointError("the config does not say sparsity_include_decoder_norm", "add it to the config, true or false")
    return switch(cfg, "sparsity_include_decoder_norm")


def of_one_threshold(cfg: Mapping[str, Any], given: Given, d_sae: int) -> Activation:
    """One threshold for all latents, compared with pre-activations of raw inputs; the library runs top k with one as JumpReLU."""
    kind, threshold = word(cfg.get("act_fn")).lower(), cfg.get("jump_relu_threshold")
    if kind == "relu":
        return ReLU()
    if kind == "topk" and threshold in (None, 0):
        return TopK(count(cfg.get("top_k"), given, d_sae))
    if kind not in ("jumprelu", "topk"):
        raise CheckpointError(f"act_fn {cfg.get('act_fn')!r} is not supported", "supported: relu, jumprelu, topk")
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 <= threshold < math.inf:
        raise CheckpointError(f"jump_relu_threshold is {threshold!r}, not a number of at least 0", DAMAGED)
    return JumpReLU(torch.full((d_sae,), float(threshold)))


def of_raw_inputs(sae: DenseSAE, kind: object, average: object, given: Given) -> tuple[DenseSAE, str]:
    """The SAE of raw x with the same codes, and what to say of it. Arguments as of `scale_of`."""
    if kind == "token-wise":
        return in_frames(sae, PerToken("unit_norm"))
    s, said = scale_of(kind, average, sae.d_in, given)
    return scale_folded(sae, s), said


def scale_of(kind: object, average: object, d_in: int, given: Given) -> tuple[float, str]:
    """The factor that brings raw activations to the norm that the SAE knows, and what to say of it.

    Args:
        kind: The config's `norm_activation`.
        average: Mean norm of activations in training; normalised ones have norm √d. Not a number above 0: never set.
        d_in: d.
        given: The user's facts.
    """
    if kind == "inference":
        return 1.0, "none"
    if kind != "dataset-wise":
        raise CheckpointError(f"norm_activation {kind!r} is no fixed factor", "give an SAE with dataset-wise normalisation")
    known = isinstance(average, int | float) and not isinstance(average, bool) and _PLAUSIBLE[0] < average < _PLAUSIBLE[1]
    stored = math.sqrt(d_in) / float(average) if known and isinstance(average, int | float) else None
    s = stored if stored is not None else given.norm_scale
    if s is None or not 0 < s < math.inf:
        raise CheckpointError(
            f"the file's {NORM} was never set", "give --norm-scale (sqrt(d_in) / mean activation norm), or --norm-scale estimate"
        )
    if given.norm_scale is not None and not math.isclose(given.norm_scale, s, rel_tol=1e-3):
        raise CheckpointError(f"the file says a scale of {s:g}, but --norm-scale is {given.norm_scale:g}", "leave out --norm-scale")
    return s, f"dataset-wise: factor {s:g} {given.scale_source if stored is None else 'of the file'}, folded into the weights"


def average_of(tensors: Mapping[str, Tensor], hook: str) -> float | None:
    """The mean norm stored beside the weights for a hook; None where there is none or it is no number."""
    found = tensors.get(f"{NORM}.{hook}")
    if found is None or found.numel() != 1 or not found.is_floating_point():
        return None
    value = float(found)
    return value if math.isfinite(value) else None


def bias(tensors: Mapping[str, Tensor], name: str, cfg: Mapping[str, Any], d_in: int) -> Tensor:
    """The decoder's bias, zeros where the config says that there is none."""
    if switch(cfg, "use_decoder_bias", True):
        return take(tensors, name, (d_in,))
    if name in tensors:
        raise CheckpointError(f"the file holds {name}, but its config says use_decoder_bias = false", DAMAGED)
    return torch.zeros(d_in)
