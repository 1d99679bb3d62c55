"""bartbussmann's BatchTopK and Matryoshka code: `sae.pt`, and `config.json` whose values are partly spelled as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.adapters import Given
from bench.adapters.build import agree, batch_threshold, count, four, in_frames, name_of, precision, spelled_switch, word
from bench.adapters.files import folder_of, peek_json, read_json, read_pt, take
from bench.errors import CheckpointError
from bench.sae.activations import Activation, JumpReLU, ReLU, TopK
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE
from bench.sae.normalisation import PerToken

FORMAT = "bartbussmann"
_FILES = ("sae.pt", "config.json")
_LOG = "jumprelu.log_threshold"


def sniff(path: Path) -> bool:
    """Both files; a config that can be read has the sizes by this code's names."""
    folder = folder_of(path, *_FILES)
    config = peek_json(folder, "config.json") if folder else {}
    return folder is not None and (not config or {"act_size", "dict_size"} <= set(config))


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE. Only two of the five classes use b_enc, and one does not subtract b_dec."""
    folder = folder_of(path, *_FILES) or path
    cfg, state = read_json(folder, "config.json"), read_pt(folder, "sae.pt")
    kind = word(cfg.get("sae_type")).lower().replace("-", "").replace("_", "")
    kind = "matryoshka" if "matryoshka" in kind else kind
    _refuse(cfg, kind)
    more = {"jumprelu": (_LOG,), "batchtopk": ("threshold",), "matryoshka": ("threshold",)}.get(kind, ())
    W_enc, b_enc, W_dec, b_dec = four(state, *more)
    agree(cfg, "act_size", len(b_dec))
    agree(cfg, "dict_size", len(b_enc))
    unused = kind not in ("vanilla", "jumprelu")
    odd = ("b_enc is not zero, but this class never uses it",) if unused and bool(b_enc.any()) else ()
    b_enc = torch.zeros_like(b_enc) if unused else b_enc
    b_pre = torch.zeros_like(b_dec) if kind == "jumprelu" else b_dec
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, b_pre, _activation(kind, state, cfg, given, len(b_enc)))
    sae, said = in_frames(sae, PerToken("layer_norm") if spelled_switch(cfg, "input_unit_norm") else None)
    hook, odd = word(cfg.get("hook_point")), (*odd, *precision(state["W_dec"]))
    return Loaded(sae, FORMAT, kind, name_of(folder), word(cfg.get("model_name")), hook, said, odd)


def _activation(kind: str, state: Mapping[str, Any], cfg: Mapping[str, Any], given: Given, d_sae: int) -> Activation:
    """Only the Matryoshka code stores the threshold that a batch's top k needs at inference; it starts from 0."""
    if kind == "vanilla":
        return ReLU()
    if kind == "topk":
        k = cfg.get("top_k")
        return TopK(count(int(k) if isinstance(k, str) and k.isdecimal() else k, given, d_sae))
    if kind == "jumprelu":
        return JumpReLU(take(state, _LOG, (d_sae,)).exp())
    stored = float(take(state, "threshold", ())) if "threshold" in state else 0.0
    return batch_threshold(stored if stored > 0 else None, given, d_sae)


def _refuse(cfg: Mapping[str, Any], kind: str) -> None:
    if kind not in ("vanilla", "topk", "batchtopk", "jumprelu", "matryoshka"):
        raise CheckpointError(
            f"sae_type {cfg.get('sae_type')!r} is not supported", "supported: vanilla, topk, batchtopk, jumprelu, matryoshka"
        )
    for key, plain in (("use_encoder_bias", "False"), ("tied_weights", "False"), ("activation", "relu")):
        if str(cfg.get(key, plain)) != plain:
            raise CheckpointError(f"the config's {key} is {cfg[key]!r}, an experiment that was given up", f"give an SAE with {plain}")
