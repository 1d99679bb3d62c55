"""What the two generations of SAELens files share: files, names of tensors, and the function without normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import agree, batch_threshold, gated, norms_folded, precision, scale_folded, switch, word
from bench.adapters.files import folder_of, only, peek_json, take
from bench.errors import CheckpointError
from bench.sae.activations import Activation, JumpReLU, ReLU
from bench.sae.dense import DenseSAE

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
_OTHER_OUTPUT = ("d_out", "hook_name_out", "hook_point_out", "out_hook_point")
_GATED = ("b_gate", "b_mag", "r_mag")


def generation(path: Path) -> str:
    """`v6`, `legacy`, or "" where this is no SAELens checkpoint; an unreadable config counts as v6."""
    folder = folder_of(path, WEIGHTS, CONFIG)
    if folder is None:
        return ""
    cfg = peek_json(folder, CONFIG)
    return "legacy" if cfg and "metadata" not in cfg else "v6"


def refuse_other_output(cfg: Mapping[str, Any], hook: str) -> None:
    """A transcoder can have exactly the tensors of an SAE; only the config tells."""
    for key in _OTHER_OUTPUT:
        if (out := cfg.get(key)) not in (None, hook, cfg.get("d_in")):
            raise CheckpointError(f"the config's {key} is {out!r}: a transcoder, not an SAE", "give an SAE")
    if cfg.get("is_transcoder"):
        raise CheckpointError("is_transcoder is set: it maps one site to another, so it is not an SAE", "give an SAE")
    if "transcoder" in word(cfg.get("architecture")):
        raise CheckpointError(f"architecture {cfg['architecture']!r} maps one site to another, so it is not an SAE", "give an SAE")


def base(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any], act: Activation, *extra: str) -> DenseSAE:
    """f = act((x − b_dec) W_enc + b_enc), with the subtraction left out where the config says so.

    Args:
        tensors: The file's.
        cfg: Its config; lengths must agree.
        act: Activation.
        extra: Names of further tensors that the caller reads.
    """
    only(tensors, "W_enc", "b_enc", "W_dec", "b_dec", *extra)
    b_enc = take(tensors, "b_enc", (None,))
    W_enc, W_dec, b_dec, b_pre = _matrices(tensors, cfg, len(b_enc))
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, b_pre, act)


def plain(architecture: str, tensors: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> DenseSAE | None:
    """The three architectures that need nothing but their tensors; None for any other."""
    if architecture == "standard":
        return base(tensors, cfg, ReLU())
    if architecture == "jumprelu":
        d_sae = len(take(tensors, "b_enc", (None,)))
        return base(tensors, cfg, JumpReLU(take(tensors, "threshold", (d_sae,))), "threshold")
    if architecture == "gated":
        only(tensors, "W_enc", "W_dec", "b_dec", *_GATED)
        d_sae = len(take(tensors, "b_gate", (None,)))
        W_enc, W_dec, b_dec, b_pre = _matrices(tensors, cfg, d_sae)
        biases = {n: take(tensors, n, (d_sae,)) for n in _GATED}
        return gated({"W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec, **biases}, b_pre)
    return None


def trained_in_batches(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any], given: Given, s: float) -> DenseSAE:
    """A training save of BatchTopK or Matryoshka, of s·x, with the threshold that its inference form would have."""
    rescale = switch(cfg, "rescale_acts_by_decoder_norm")
    sae = scale_folded(base(tensors, cfg, ReLU(), "topk_threshold"), s)
    stored = float(take(tensors, "topk_threshold", ())) / (s if rescale else 1.0) if "topk_threshold" in tensors else 0.0
    sae = replace(sae, act=batch_threshold(stored if stored > 0 else None, given, sae.d_sae))  # training starts from 0
    return norms_folded(sae) if rescale else sae


def finetuned(cfg: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None, tuple[str, ...]]:
    """The other tensors, the fine-tuning factor [d_sae] if it changes something, and what to say of it."""
    rest, factor = {k: v for k, v in tensors.items() if k not in _FINETUNED}, None
    odd = precision(tensors.get("W_dec"))
    for name in (n for n in _FINETUNED if n in tensors):
        found = take(tensors, name, (None,))
        if not bool((found != 1).any()):
            odd = (*odd, f"{name} is 1 for all latents and ignored")
        elif switch(cfg, _FINETUNED[1]):
            factor, odd = found, (*odd, f"{name} is folded into W_dec")
        else:
            raise CheckpointError(f"the file holds a {name} other than 1, which its config leaves unused", "save the SAE without it")
    return rest, factor, odd


def _matrices(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any], d_sae: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b_dec = take(tensors, "b_dec", (None,))
    d_in = len(b_dec)
    agree(cfg, "d_in", d_in)
    agree(cfg, "d_sae", d_sae)
    b_pre = b_dec if switch(cfg, "apply_b_dec_to_input", True) else torch.zeros_like(b_dec)
    return take(tensors, "W_enc", (d_in, d_sae)), take(tensors, "W_dec", (d_sae, d_in)), b_dec, b_pre
