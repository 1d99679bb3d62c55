"""EleutherAI sparsify: `cfg.json` and `sae.safetensors` in a folder named after the hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.adapters import Given
from bench.adapters.build import agree, count, name_of, precision, switch, word
from bench.adapters.files import DAMAGED, folder_of, only, peek_json, read_json, read_safetensors, take
from bench.errors import CheckpointError, UsageError
from bench.lm.hooks import parse_hook
from bench.sae.activations import AbsTopK, GroupMax, TopK
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "sparsify"
_FILES = ("sae.safetensors", "cfg.json")


def sniff(path: Path) -> bool:
    """Both files are there."""
    return folder_of(path, *_FILES) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE: its activation of (x − b_dec) W_enc + b_enc; both matrices are stored [d_sae, d_in]."""
    folder = folder_of(path, *_FILES) or path
    cfg, tensors = read_json(folder, "cfg.json"), read_safetensors(folder, "sae.safetensors")
    _refuse(cfg)
    only(tensors, "encoder.weight", "encoder.bias", "W_dec", "b_dec")
    b_enc, b_dec = take(tensors, "encoder.bias", (None,)), take(tensors, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    agree(cfg, "d_in", d_in)
    if cfg.get("num_latents"):
        agree(cfg, "num_latents", d_sae)
    else:  # 0 stands for d_in × expansion_factor
        agree(cfg, "expansion_factor", d_sae / d_in)
    W_enc = take(tensors, "encoder.weight", (d_sae, d_in)).T.contiguous()
    W_dec = take(tensors, "W_dec", (d_sae, d_in))
    act = _activation(cfg, count(cfg.get("k"), given, d_sae), d_sae)
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec, act)
    run = peek_json(folder.parent, "config.json")
    hook = _hook(folder.absolute().name, run)
    return Loaded(sae, FORMAT, act.name, name_of(folder, 2), word(run.get("model")), hook, oddities=precision(tensors["W_dec"]))


def _refuse(cfg: dict[str, Any]) -> None:
    """What is no SAE, by name."""
    if cfg.get("transcode"):
        raise CheckpointError("transcode is set: a transcoder, not an SAE", "give an SAE")
    if cfg.get("skip_connection"):
        raise CheckpointError("skip_connection is set: the output does not depend on the codes alone", "give an SAE without it")


def _activation(cfg: dict[str, Any], k: int, d_sae: int) -> TopK | AbsTopK | GroupMax:
    kind = cfg.get("activation", "topk")
    signed = switch(cfg, "signed")  # files of 2024; later versions of the library leave the key out when they read
    if kind == "groupmax" and not signed:
        if d_sae % k:
            raise CheckpointError(f"groupmax: k = {k} does not divide the {d_sae} latents", DAMAGED)
        return GroupMax(k)
    if kind != "topk":
        raise CheckpointError(f"activation {kind!r}{' with signs' if signed else ''} is not supported", "give a topk or groupmax SAE")
    return AbsTopK(k) if signed else TopK(k)


def _hook(name: str, run: dict[str, Any]) -> str:
    """The folder's name, where it is a module path and not a name somebody chose."""
    listed = run.get("hookpoints")
    if isinstance(listed, list) and name in listed:
        return name
    try:
        parse_hook(name)
    except UsageError:
        return ""
    return name
