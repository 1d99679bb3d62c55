"""SAEs in the style of Neel Nanda's first code (Connor Kissane and Rob Krzyzanowski's): `NAME.pt` and `NAME_cfg.json`."""

from __future__ import annotations

from pathlib import Path

from bench.adapters import Given
from bench.adapters.build import agree, four, precision, word
from bench.adapters.files import holds, peek_json, read_json, read_pt, weights_file
from bench.sae.activations import ReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "neel_style"
_END = "_cfg.json"
_KEYS = {"act_size", "dict_size", "act_name"}


def _weights(path: Path) -> Path | None:
    """The weights whose config lies beside them."""
    if path.name.endswith(_END):
        path = path.with_name(path.name.removesuffix(_END) + ".pt")
    file = weights_file(path, (".pt",), lambda keys: not keys or {"W_enc", "W_dec"} <= keys)
    if file is None or not holds(file.parent, file.name, file.stem + _END):
        return None
    config = peek_json(file.parent, file.stem + _END)
    return file if not config or set(config) >= _KEYS else None


def sniff(path: Path) -> bool:
    """Both files, and a config with these sizes and names."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE: ReLU of (x − b_dec) W_enc + b_enc; at hook_z, x is all heads one after the other."""
    file = _weights(path) or path
    cfg, state = read_json(file.parent, file.stem + _END), read_pt(file.parent, file.name)
    W_enc, b_enc, W_dec, b_dec = four(state)
    agree(cfg, "act_size", len(b_dec))
    agree(cfg, "dict_size", len(b_enc))
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec, ReLU())
    lm, hook = word(cfg.get("model_name")), word(cfg.get("act_name"))
    return Loaded(sae, FORMAT, "relu", file.stem, lm, hook, oddities=precision(state["W_dec"]))
