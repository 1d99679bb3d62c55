"""Gemma Scope 2: `params.safetensors` with lower-case names and, in most folders, `config.json`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from bench.adapters import Given
from bench.adapters.build import agree, name_of, precision, switch, word
from bench.adapters.files import holds, only, read_json, read_safetensors, take, weights_file
from bench.errors import CheckpointError
from bench.sae.activations import JumpReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "gemma_scope_2"
_WEIGHTS, _CONFIG = "params.safetensors", "config.json"
_NAMES = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def _weights(path: Path) -> Path | None:
    """`params.safetensors` whatever its state, or another file with the five names."""
    if path.name == _CONFIG or (os.path.isdir(path) and holds(path, _WEIGHTS)):
        path = (path.parent if path.name == _CONFIG else path) / _WEIGHTS
    if path.name == _WEIGHTS:
        return path if holds(path.parent, _WEIGHTS) else None
    return weights_file(path, (".safetensors",), lambda keys: keys >= set(_NAMES))


def sniff(path: Path) -> bool:
    """The weights file is there."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE: JumpReLU; its codes do not depend on b_dec."""
    file = _weights(path) or path
    folder = file.parent
    cfg = read_json(folder, _CONFIG) if holds(folder, _CONFIG) else {}
    hook = _refuse(cfg)
    if not cfg and (part := next((p for p in folder.absolute().parts[-2:] if re.match(r"(transcoder|clt|crosscoder)(_|$)", p)), "")):
        raise CheckpointError(f"the folder {part} holds transcoders or crosscoders, not SAEs", "give an SAE")
    tensors = read_safetensors(folder, file.name)
    if "affine_skip_connection" in tensors:
        raise CheckpointError("the file holds affine_skip_connection: a transcoder, not an SAE", "give an SAE")
    only(tensors, *_NAMES)
    b_enc, b_dec = take(tensors, "b_enc", (None,)), take(tensors, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    agree(cfg, "width", d_sae)
    W_enc, W_dec = take(tensors, "w_enc", (d_in, d_sae)), take(tensors, "w_dec", (d_sae, d_in))
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros(d_in), JumpReLU(take(tensors, "threshold", (d_sae,))))
    odd = () if cfg else ("no config.json: model and hook are unknown, and a transcoder could not be told apart",)
    facts = {k: cfg[k] for k in ("l0", "width", "type") if k in cfg}
    return Loaded(
        sae, FORMAT, "jumprelu", name_of(folder, 2), word(cfg.get("model_name")), hook, "none", (*odd, *precision(tensors["w_dec"])), facts
    )


def _refuse(cfg: dict[str, Any]) -> str:
    """Everything but a JumpReLU SAE of one site, by name; else its hook."""
    kind, site, out = cfg.get("type", "sae"), word(cfg.get("hf_hook_point_in")), cfg.get("hf_hook_point_out")
    if kind != "sae":
        raise CheckpointError(f"the config's type is {kind!r}, not 'sae'", "give an SAE")
    if out not in (None, site):
        raise CheckpointError(f"reads {site} and writes {out}: a transcoder, not an SAE", "give an SAE")
    if switch(cfg, "affine_connection"):
        raise CheckpointError("affine_connection is set: a transcoder with a skip connection, not an SAE", "give an SAE")
    if (architecture := cfg.get("architecture", "jump_relu")) != "jump_relu":
        raise CheckpointError(f"architecture {architecture!r} is not supported", "give a jump_relu SAE")
    return site
