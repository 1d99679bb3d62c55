"""The dictionary classes of dictionary_learning, each as the one inference form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import batch_threshold, gated, topk, transposed
from bench.adapters.files import only, take
from bench.sae.activations import Activation, JumpReLU, ReLU
from bench.sae.dense import DenseSAE

State = Mapping[str, Any]
Built = tuple[DenseSAE, tuple[str, ...]]


def _linear(state: State, d_in: int, d_sae: int) -> tuple[Tensor, Tensor]:
    return transposed(state, "encoder.weight", "decoder.weight", d_in, d_sae)


def _standard(state: State, trainer: State, given: Given) -> Built:
    only(state, "bias", "encoder.weight", "encoder.bias", "decoder.weight")
    b_dec, b_enc = take(state, "bias", (None,)), take(state, "encoder.bias", (None,))
    W_enc, W_dec = _linear(state, len(b_dec), len(b_enc))
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec, ReLU()), ()


def _new(state: State, trainer: State, given: Given) -> Built:
    only(state, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    b_dec, b_enc = take(state, "decoder.bias", (None,)), take(state, "encoder.bias", (None,))
    W_enc, W_dec = _linear(state, len(b_dec), len(b_enc))
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros_like(b_dec), ReLU()), ()


def _gated(state: State, trainer: State, given: Given) -> Built:
    only(state, "decoder_bias", "encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight")
    b_dec, b_gate = take(state, "decoder_bias", (None,)), take(state, "gate_bias", (None,))
    d_sae = len(b_gate)
    W_enc, W_dec = _linear(state, len(b_dec), d_sae)
    b_mag, r_mag = take(state, "mag_bias", (d_sae,)), take(state, "r_mag", (d_sae,))
    parts = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec, "b_gate": b_gate, "b_mag": b_mag, "r_mag": r_mag}
    return gated(parts, b_dec), ()


def _jumprelu(state: State, trainer: State, given: Given) -> Built:
    only(state, "W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    b_enc, b_dec = take(state, "b_enc", (None,)), take(state, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    act = JumpReLU(take(state, "threshold", (d_sae,)))
    W_enc, W_dec = take(state, "W_enc", (d_in, d_sae)), take(state, "W_dec", (d_sae, d_in))
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, torch.zeros(d_in), act), ()


def _topk(state: State, trainer: State, given: Given) -> Built:
    only(state, "encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold")
    b_dec, b_enc = take(state, "b_dec", (None,)), take(state, "encoder.bias", (None,))
    W_enc, W_dec = _linear(state, len(b_dec), len(b_enc))
    k, planned = state.get("k"), trainer.get("k")  # files of 2024 have k in the config only
    act = topk(planned if k is None else k, given, len(b_enc))
    odd = (f"the file's k is {act.k}, its config's is {planned}",) if planned not in (None, act.k) else ()
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec, act), odd


def _batchtopk(state: State, trainer: State, given: Given) -> Built:
    only(state, "encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold")
    b_dec, b_enc = take(state, "b_dec", (None,)), take(state, "encoder.bias", (None,))
    W_enc, W_dec = _linear(state, len(b_dec), len(b_enc))
    act, odd = _threshold(state, given, len(b_enc))
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec, act), odd


def _matryoshka(state: State, trainer: State, given: Given) -> Built:
    only(state, "W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes")
    b_enc, b_dec = take(state, "b_enc", (None,)), take(state, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    W_enc, W_dec = take(state, "W_enc", (d_in, d_sae)), take(state, "W_dec", (d_sae, d_in))
    act, odd = _threshold(state, given, d_sae)
    return DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec, act), odd


def _threshold(state: State, given: Given, d_sae: int) -> tuple[Activation, tuple[str, ...]]:
    """The one threshold of all latents; the library starts it at −1 and then runs as a plain ReLU."""
    stored = float(take(state, "threshold", ())) if "threshold" in state else -1.0
    act = batch_threshold(stored if stored >= 0 else None, given, d_sae)
    return act, ("the threshold is 0, so every positive pre-activation fires",) if not act.threshold.any() else ()


CLASSES: Mapping[str, Callable[[State, State, Given], Built]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
