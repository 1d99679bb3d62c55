"""Llama Scope of 2024: `hyperparams.json`, `lm_config.json`, and weights in `checkpoints/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import agree, in_frames, name_of, norms_folded, precision, switch, transposed, word
from bench.adapters.files import only, peek_json, read_json, take
from bench.adapters.openmoss import NORM, bias, counts_norms, of_one_threshold, refuse, scale_of
from bench.adapters.openmoss_files import HYPERPARAMETERS, chosen, home, newer, tensors_of
from bench.sae.activations import ReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE
from bench.sae.normalisation import PerToken

FORMAT = "llama_scope"


def sniff(path: Path) -> bool:
    """`hyperparams.json`, and weights beside it or below it without numbers of a later generation."""
    folder = home(path, HYPERPARAMETERS)
    return folder is not None and not newer(folder)


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE as its library runs it: first brought to raw activations, then thresholded."""
    folder = home(path, HYPERPARAMETERS) or path
    cfg = read_json(folder, HYPERPARAMETERS)
    refuse(cfg)
    name, odd = chosen(path, folder)
    tensors = tensors_of(folder, name)
    sae = _linear(tensors, cfg)
    if cfg.get("norm_activation") == "token-wise":
        sae, said = in_frames(sae, PerToken("unit_norm"))
    else:
        kind, out = cfg.get("norm_activation"), _average(cfg, "out")
        s, said = scale_of(kind, _average(cfg, "in"), sae.d_in, given)
        s_out = scale_of(kind, out, sae.d_in, Given())[0] if out else s
        sae = replace(sae, b_enc=sae.b_enc / s, W_dec=sae.W_dec * (s / s_out), b_dec=sae.b_dec / s_out, b_pre=sae.b_pre / s_out)
    if counts_norms(cfg):
        sae = norms_folded(sae)
    sae = replace(sae, act=of_one_threshold(cfg, given, sae.d_sae))
    lm, hook = word(peek_json(folder, "lm_config.json").get("model_name")), word(cfg.get("hook_point_in"))
    kind = word(cfg.get("act_fn")).lower()
    return Loaded(sae, FORMAT, kind, name_of(folder), lm, hook, said, (*odd, *precision(tensors["decoder.weight"])))


def _linear(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> DenseSAE:
    only(tensors, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    b_enc = take(tensors, "encoder.bias", (None,))
    d_in = take(tensors, "encoder.weight", (len(b_enc), None)).shape[1]
    agree(cfg, "d_model", d_in)
    agree(cfg, "d_sae", len(b_enc))
    W_enc, W_dec = transposed(tensors, "encoder.weight", "decoder.weight", d_in, len(b_enc))
    b_dec = bias(tensors, "decoder.bias", cfg, d_in)
    b_pre = b_dec if switch(cfg, "apply_decoder_bias_to_pre_encoder") else torch.zeros(d_in)
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, b_pre, ReLU())


def _average(cfg: Mapping[str, Any], side: str) -> object:
    """The mean norm on one side of the SAE; some files name it by the hook."""
    found = cfg.get(NORM)
    return found.get(side, found.get(word(cfg.get(f"hook_point_{side}")))) if isinstance(found, dict) else None
