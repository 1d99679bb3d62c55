"""Qwen Scope: `layerN.sae.pt` with the transposes of the usual matrices, and k only in the repository's name."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from bench.adapters import Given
from bench.adapters.build import name_of, precision, topk
from bench.adapters.files import holds, only, read_pt, take, weights_file
from bench.errors import CheckpointError
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "qwen_scope"
_NAME = re.compile(r"layer_?(\d+)\.sae\.pt")


def _weights(path: Path) -> Path | None:
    file = weights_file(path, (".sae.pt",), lambda keys: True)
    return file if file and holds(file.parent, file.name) and _NAME.fullmatch(file.name) else None


def sniff(path: Path) -> bool:
    """A file of that name, or a folder with one; most folders hold one for each layer, so the file must be given."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE: top k, then ReLU; b_dec is not subtracted. W_enc is stored [d_sae, d_in] and W_dec [d_in, d_sae]."""
    path = _weights(path) or path
    state = read_pt(path.parent, path.name)
    only(state, "W_enc", "b_enc", "W_dec", "b_dec")
    b_enc, b_dec = take(state, "b_enc", (None,)), take(state, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    W_enc, W_dec = take(state, "W_enc", (d_sae, d_in)).T.contiguous(), take(state, "W_dec", (d_in, d_sae)).T.contiguous()
    hint = next((f"; a folder's name says {m[0]}" for p in reversed(path.absolute().parts) if (m := re.search(r"L0_\d+", p))), "")
    if given.k is None:
        raise CheckpointError(f"the file does not say k, the number of active latents{hint}", "give --k")
    layer = (_NAME.fullmatch(path.name) or [""] * 2)[1]
    odd = (f"the file names neither model nor hook; its name suggests layer {layer}", *precision(state["W_dec"]))
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros_like(b_dec), topk(None, given, d_sae))
    return Loaded(sae, FORMAT, "topk", f"{name_of(path.parent)}-layer{layer}", oddities=odd)
