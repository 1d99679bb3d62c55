"""Checkpoints of every supported architecture of the first formats, and what must come out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bench.adapters import Given
from tests.adapters_layouts import (
    AVERAGE,
    D_SAE,
    FOUR,
    GATED,
    SCALE,
    T64,
    K,
    N,
    P,
    S,
    X,
    batch,
    decode,
    dl,
    gate,
    gemma,
    jump,
    legacy,
    lens,
    linear,
    pre,
    relu,
    scaled,
    sparsify,
    tensors,
    top,
)


@dataclass(frozen=True)
class Case:
    """A checkpoint, its codes of X, and its reconstruction of codes."""

    write: Callable[[Path], Path]
    codes: Callable[[], np.ndarray]
    recon: Callable[[np.ndarray], np.ndarray] = decode
    given: Given = field(default_factory=Given)
    atol: float = 2e-5


MATRYOSHKA = {"k": torch.tensor(K), "threshold": torch.tensor(0.25), "group_sizes": torch.tensor([10, 30])}
TRAINED = {"k": 5, "rescale_acts_by_decoder_norm": True}
AE_GATED = {"r_mag": P["r_mag"], "gate_bias": P["b_gate"], "mag_bias": P["b_mag"], "decoder_bias": P["b_dec"]}
SUPPORTED: dict[str, Case] = {
    "lens standard": Case(lambda d: lens(d, tensors(*FOUR), architecture="standard"), lambda: relu(pre(X))),
    "lens standard, b_dec kept": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="standard", apply_b_dec_to_input=False), lambda: relu(pre(X, False))
    ),
    "lens standard, scaled": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="standard", **AVERAGE), lambda: relu(pre(S * X)), scaled, SCALE
    ),
    "lens scaled, b_dec kept": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="standard", apply_b_dec_to_input=False, **AVERAGE),
        lambda: relu(pre(S * X, False)),
        scaled,
        SCALE,
    ),
    "lens jumprelu": Case(lambda d: lens(d, tensors(*FOUR, "threshold"), architecture="jumprelu"), lambda: jump(pre(X), P["threshold"])),
    "lens jumprelu, scaled": Case(
        lambda d: lens(d, tensors(*FOUR, "threshold"), architecture="jumprelu", **AVERAGE),
        lambda: jump(pre(S * X), P["threshold"]),
        scaled,
        SCALE,
    ),
    "lens topk": Case(lambda d: lens(d, tensors(*FOUR), architecture="topk", k=K, rescale_acts_by_decoder_norm=False), lambda: top(pre(X))),
    "lens topk, k given": Case(lambda d: lens(d, tensors(*FOUR), architecture="topk"), lambda: top(pre(X), 3), given=Given(k=3)),
    "lens topk, rescaled": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="topk", **TRAINED), lambda: top(pre(X) * N), lambda f: decode(f / N)
    ),
    "lens topk, rescaled and scaled": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="topk", **TRAINED, **AVERAGE),
        lambda: top(pre(S * X) * N) / S,
        lambda f: decode(f * S / N) / S,
        SCALE,
    ),
    "lens gated": Case(lambda d: lens(d, tensors(*GATED), architecture="gated"), lambda: gate(X)),
    "lens gated, scaled": Case(lambda d: lens(d, tensors(*GATED), architecture="gated", **AVERAGE), lambda: gate(S * X), scaled, SCALE),
    "lens batchtopk": Case(
        lambda d: lens(d, tensors(*FOUR, topk_threshold=T64), architecture="batchtopk", **TRAINED),
        lambda: jump(pre(X) * N, 0.5),
        lambda f: decode(f / N),
    ),
    "lens batchtopk, scaled": Case(
        lambda d: lens(d, tensors(*FOUR, topk_threshold=T64), architecture="batchtopk", **TRAINED, **AVERAGE),
        lambda: jump(pre(S * X) * N, 0.5) / S,
        lambda f: decode(f * S / N) / S,
        SCALE,
    ),
    "lens matryoshka": Case(
        lambda d: lens(d, tensors(*FOUR, topk_threshold=T64), architecture="matryoshka_batchtopk", k=5, rescale_acts_by_decoder_norm=False),
        lambda: jump(pre(X), 0.5),
    ),
    "legacy standard": Case(lambda d: legacy(d, tensors(*FOUR)), lambda: relu(pre(X))),
    "legacy ones": Case(lambda d: legacy(d, tensors(*FOUR, scaling_factor=np.ones(D_SAE))), lambda: relu(pre(X))),
    "legacy bool scale": Case(lambda d: legacy(d, tensors(*FOUR), normalize_activations=True), lambda: relu(pre(S * X)), scaled, SCALE),
    "legacy topk": Case(
        lambda d: legacy(d, tensors(*FOUR), architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": K}),
        lambda: top(pre(X)),
    ),
    "legacy topk, own name": Case(
        lambda d: legacy(d, tensors(*FOUR), architecture="topk", activation_fn="topk", activation_fn_kwargs={"k": K}),
        lambda: top(pre(X)),
    ),
    "legacy jumprelu": Case(
        lambda d: legacy(d, tensors(*FOUR, "threshold"), architecture="jumprelu", apply_b_dec_to_input=False),
        lambda: jump(pre(X, False), P["threshold"]),
    ),
    "legacy gated": Case(lambda d: legacy(d, tensors(*GATED), architecture="gated"), lambda: gate(X)),
    "dl AutoEncoder": Case(lambda d: dl(d, "AutoEncoder", linear(bias=P["b_dec"])), lambda: relu(pre(X))),
    "dl compiled": Case(
        lambda d: dl(d, "AutoEncoder", {f"_orig_mod.{k}": v for k, v in linear(bias=P["b_dec"]).items()}), lambda: relu(pre(X))
    ),
    "dl AutoEncoderNew": Case(lambda d: dl(d, "AutoEncoderNew", linear(**{"decoder.bias": P["b_dec"]})), lambda: relu(pre(X, False))),
    "dl GatedAutoEncoder": Case(
        lambda d: dl(d, "GatedAutoEncoder", {k: v for k, v in linear(**AE_GATED).items() if k != "encoder.bias"}), lambda: gate(X)
    ),
    "dl JumpReluAutoEncoder": Case(
        lambda d: dl(d, "JumpReluAutoEncoder", tensors(*FOUR, "threshold")), lambda: jump(pre(X, False), P["threshold"])
    ),
    "dl AutoEncoderTopK": Case(lambda d: dl(d, "AutoEncoderTopK", batch(0.3), k=K), lambda: top(relu(pre(X)))),
    "dl AutoEncoderTopK of 2024": Case(lambda d: dl(d, "AutoEncoderTopK", linear(b_dec=P["b_dec"]), k=K), lambda: top(relu(pre(X)))),
    "dl BatchTopKSAE": Case(lambda d: dl(d, "BatchTopKSAE", batch(0.25)), lambda: jump(relu(pre(X)), 0.25)),
    "dl BatchTopKSAE, given": Case(
        lambda d: dl(d, "BatchTopKSAE", batch(-1.0)), lambda: jump(relu(pre(X)), 0.3), given=Given(threshold=0.3)
    ),
    "dl MatryoshkaBatchTopKSAE": Case(
        lambda d: dl(d, "MatryoshkaBatchTopKSAE", tensors(*FOUR, **MATRYOSHKA)), lambda: jump(relu(pre(X)), 0.25)
    ),
    "sparsify topk": Case(sparsify, lambda: top(relu(pre(X)))),
    "sparsify of 2024": Case(lambda d: sparsify(d, signed=False, num_latents=D_SAE), lambda: top(relu(pre(X)))),
    "gemma": Case(gemma, lambda: jump(pre(X, False), P["threshold"])),
    "gemma, lower case": Case(lambda d: gemma(d, {"W_enc": "w_enc", "W_dec": "w_dec"}), lambda: jump(pre(X, False), P["threshold"])),
}
