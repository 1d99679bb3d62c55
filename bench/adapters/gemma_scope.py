"""Gemma Scope 1: one `params.npz` per SAE, JumpReLU, and nothing that says where it belongs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from bench.adapters import Given
from bench.adapters.build import name_of, precision
from bench.adapters.files import folder_of, only, peek_keys, read_npz, take
from bench.errors import CheckpointError
from bench.sae.activations import JumpReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "gemma_scope"
_WEIGHTS = "params.npz"
_NAMES = {n.lower(): n for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}


def sniff(path: Path) -> bool:
    """`params.npz`, or any npz file pointed at that holds the five arrays."""
    if folder_of(path, _WEIGHTS) is not None:
        return True
    return path.suffix == ".npz" and os.path.isfile(path) and {k.lower() for k in peek_keys(path)} >= set(_NAMES)


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE. Its codes do not depend on b_dec: it is not subtracted from the input."""
    folder, name = (path.parent, path.name) if os.path.isfile(path) else (path, _WEIGHTS)
    parts = folder.absolute().parts
    _refuse(parts)
    tensors = {_NAMES.get(k.lower(), k): v for k, v in read_npz(folder, name).items()}  # some releases write w_enc
    only(tensors, *_NAMES.values())
    b_enc, b_dec = take(tensors, "b_enc", (None,)), take(tensors, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    W_enc, W_dec = take(tensors, "W_enc", (d_in, d_sae)), take(tensors, "W_dec", (d_sae, d_in))
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros(d_in), JumpReLU(take(tensors, "threshold", (d_sae,))))
    layer = next((m[1] for p in reversed(parts) if (m := re.fullmatch(r"layer_(\d+)", p))), None)
    hint = f"; its path suggests layer {layer}" if layer else ""
    return Loaded(
        sae,
        FORMAT,
        "jumprelu",
        name_of(folder, 3 if layer else 1),
        oddities=(
            f"the file names neither model nor hook{hint}",
            "transcoders of this family have the same file and cannot be told apart",
            *precision(tensors["W_dec"]),
        ),
        facts={"layer": int(layer)} if layer else {},
    )


def _refuse(parts: tuple[str, ...]) -> None:
    """The released folders whose files look alike but are another function."""
    if any(re.search(r"gemma-scope.*transcoder", p) for p in parts):
        raise CheckpointError("a Gemma Scope transcoder maps one site to another, so it is not an SAE", "give a -res, -mlp or -att SAE")
    if "embedding" in parts[-3:]:  # embedding/width_4k/average_l0_6
        raise CheckpointError("Gemma Scope embedding SAEs expect an input scaled inside the model", "give an SAE of a layer")
