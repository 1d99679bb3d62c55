"""saev: one file, a line of JSON and then a `torch.save` archive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import batch_threshold, count, four, name_of, precision, word
from bench.adapters.files import DAMAGED, first_bytes, names_in, read_headed_pt, take
from bench.errors import CheckpointError
from bench.sae.activations import Activation, ReLU, SignedTopK
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "saev"
_THRESHOLD = "activation.threshold"
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_LINE, _MOST = 2**20, 200


def _weights(path: Path) -> Path | None:
    """The path, or the only file of the folder, that begins like this format; never raises."""
    files = [path / n for n in names_in(path, _SUFFIXES)[:_MOST]] if os.path.isdir(path) else [path]
    found = [f for f in files if f.suffix in _SUFFIXES and _begins(f)]
    return found[0] if len(found) == 1 else None


def _begins(file: Path) -> bool:
    if first_bytes(file, 1) != b"{":
        return False
    return first_bytes(file, _LINE).partition(b"\n")[2].startswith(b"PK")


def sniff(path: Path) -> bool:
    """A line that opens an object, then an archive."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE. b_dec is not subtracted, and top k has no ReLU."""
    file = _weights(path) or path
    header, state = read_headed_pt(file.parent, file.name)
    kind, options = _described(header)
    W_enc, b_enc, W_dec, b_dec = four(state, *([_THRESHOLD] if kind == "BatchTopK" else []))
    act = _activation(kind, options, state.get(_THRESHOLD), given, len(b_enc))
    odd = ("made for vision models: the file names no hook of a language model", *precision(state["W_dec"]))
    name = f"{name_of(file.parent)}-{file.stem}"
    return Loaded(DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros_like(b_dec), act), FORMAT, kind.lower(), name, oddities=odd)


def _described(header: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The activation's class and its numbers, wherever the generation of the header keeps them; the first had ReLU only."""
    if "schema" not in header:
        return "Relu", {}
    cfg = header.get("cfg")
    inner = cfg.get("activation") if isinstance(cfg, dict) else None
    if isinstance(cfg, dict) and isinstance(inner, dict):
        params = inner.get("params")
        return word(inner.get("cls")), params if isinstance(params, dict) else {}
    if isinstance(cfg, dict) and header["schema"] == 1:
        return word(header.get("cls")), cfg
    raise CheckpointError("the first line describes no activation", DAMAGED)


def _activation(kind: str, options: dict[str, Any], threshold: Tensor | None, given: Given, d_sae: int) -> Activation:
    if kind == "Relu":
        return ReLU()
    if kind == "TopK":
        return SignedTopK(count(options.get("top_k"), given, d_sae))
    if kind == "BatchTopK":
        stored = float(take({_THRESHOLD: threshold}, _THRESHOLD, ())) if threshold is not None else 0.0
        return batch_threshold(stored if stored > 0 else None, given, d_sae)
    raise CheckpointError(f"activation {kind!r} is not supported", "supported: Relu, TopK, BatchTopK")
