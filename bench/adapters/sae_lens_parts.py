"""What the two generations of SAELens files share: files, names of tensors, and the function without normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.adapters.build import agree, gated, switch, word
from bench.adapters.files import folder_of, only, peek_json, take
from bench.errors import CheckpointError
from bench.sae.activations import Activation, JumpReLU, ReLU
from bench.sae.dense import DenseSAE

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_OTHER_OUTPUT = ("d_out", "hook_name_out", "hook_point_out")
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


def _matrices(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any], d_sae: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b_dec = take(tensors, "b_dec", (None,))
    d_in = len(b_dec)
    agree(cfg, "d_in", d_in)
    agree(cfg, "d_sae", d_sae)
    b_pre = b_dec if switch(cfg, "apply_b_dec_to_input", True) else torch.zeros_like(b_dec)
    return take(tensors, "W_enc", (d_in, d_sae)), take(tensors, "W_dec", (d_sae, d_in)), b_dec, b_pre
