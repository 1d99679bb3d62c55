"""Goodfire: one `.pt` or `.pth` file with encoder_linear and decoder_linear; ReLU, no bias subtracted."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.adapters import Given
from bench.adapters.build import name_of, precision, transposed
from bench.adapters.files import only, read_pt, take, weights_file
from bench.sae.activations import ReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "goodfire"
_NAMES = tuple(f"{side}_linear.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias"))


def _weights(path: Path) -> Path | None:
    return weights_file(path, (".pt", ".pth"), lambda keys: "encoder_linear.weight" in keys)


def sniff(path: Path) -> bool:
    """One file with the encoder's name."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE."""
    file = _weights(path) or path
    state = read_pt(file.parent, file.name)
    only(state, *_NAMES)
    b_enc, b_dec = take(state, "encoder_linear.bias", (None,)), take(state, "decoder_linear.bias", (None,))
    W_enc, W_dec = transposed(state, "encoder_linear.weight", "decoder_linear.weight", len(b_dec), len(b_enc))
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros_like(b_dec), ReLU())
    odd = ("the file names neither model nor hook", *precision(state["decoder_linear.weight"]))
    return Loaded(sae, FORMAT, "relu", f"{name_of(file.parent)}-{file.stem}", oddities=odd)
