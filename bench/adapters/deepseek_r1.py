"""DeepSeek-R1 SAE (qresearch): one `.pt` file of two linear layers and nothing else; ReLU, no bias subtracted."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from bench.adapters import Given
from bench.adapters.build import name_of, precision, transposed
from bench.adapters.files import holds, only, read_pt, take, weights_file
from bench.sae.activations import ReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "deepseek_r1"
_NAMES = tuple(f"{side}.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias"))


_STEP = re.compile(r"ae(_\d+)?\.pt")  # dictionary_learning's names: without its config nothing says which class it is


def _weights(path: Path) -> Path | None:
    # a module's state also names its parts and the device; a further tensor without a dot is left to `only`
    file = weights_file(path, (".pt", ".pth"), lambda keys: {k for k in keys if "." in k} == set(_NAMES))
    return None if file is None or _STEP.fullmatch(file.name) or holds(file.parent, "config.json") else file


def sniff(path: Path) -> bool:
    """One file with these four names and no other, and no config that could say more."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE."""
    file = _weights(path) or path
    state = read_pt(file.parent, file.name)
    only(state, *_NAMES)
    b_enc, b_dec = take(state, "encoder.bias", (None,)), take(state, "decoder.bias", (None,))
    W_enc, W_dec = transposed(state, "encoder.weight", "decoder.weight", len(b_dec), len(b_enc))
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros_like(b_dec), ReLU())
    odd = ("the file names neither model nor hook", *precision(state["decoder.weight"]))
    return Loaded(sae, FORMAT, "relu", f"{name_of(file.parent)}-{file.stem}", oddities=odd)
