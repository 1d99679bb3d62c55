"""One small SAE written in the layout of each library, and its forward pass by hand in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bench.adapters import Given

D_IN, D_SAE, K, S = 12, 40, 5, 2.5
Arrays = dict[str, np.ndarray]


def weights() -> Arrays:
    """Float64 parts with decoder norms other than 1 and every bias in use; all are exact in float32."""
    g = np.random.default_rng(3)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)} | dict.fromkeys(
        ("b_enc", "b_gate", "b_mag", "r_mag"), (D_SAE,)
    )
    out = {n: 0.4 * g.standard_normal(s) for n, s in shapes.items()} | {"threshold": g.uniform(0.05, 0.6, D_SAE)}
    return {n: a.astype(np.float32).astype(np.float64) for n, a in out.items()}


P = weights()
N = np.linalg.norm(P["W_dec"], axis=1)
X = (np.random.default_rng(4).standard_normal((30, D_IN)) + 0.5).astype(np.float32).astype(np.float64)
X[7], X[19] = 0, 0.5  # an empty token, and one without variance


def relu(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0)


def top(a: np.ndarray, k: int = K) -> np.ndarray:
    """The k largest of each row, then ReLU, by a full sort."""
    out = np.zeros_like(a)
    for row, values in enumerate(a):
        for i in np.argsort(-values)[:k]:
            out[row, i] = max(values[i], 0)
    return out


def pre(x: np.ndarray, subtract: bool = True) -> np.ndarray:
    return (x - (P["b_dec"] if subtract else 0)) @ P["W_enc"] + P["b_enc"]


def decode(f: np.ndarray) -> np.ndarray:
    return f @ P["W_dec"] + P["b_dec"]


def jump(a: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return np.where((a > threshold) & (a > 0), a, 0)


def gate(x: np.ndarray, subtract: bool = True) -> np.ndarray:
    """The gated encoder as its paper has it: one decision, one magnitude."""
    p = (x - (P["b_dec"] if subtract else 0)) @ P["W_enc"]
    return (p + P["b_gate"] > 0) * relu(np.exp(P["r_mag"]) * p + P["b_mag"])


def tensors(*names: str, dtype: torch.dtype = torch.float32, **more: object) -> dict[str, torch.Tensor]:
    out = {n: torch.tensor(P[n], dtype=dtype) for n in names}
    return out | {n: v if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=dtype).contiguous() for n, v in more.items()}


FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")
GATED = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")


def lens(folder: Path, state: dict[str, torch.Tensor], **cfg: Any) -> Path:
    """SAELens v6; `meta` adds to the metadata."""
    meta = {"model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_post"} | cfg.pop("meta", {})
    base = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": meta,
    }
    return files(folder, state, base | cfg)


def legacy(folder: Path, state: dict[str, torch.Tensor], **cfg: Any) -> Path:
    """SAELens v1 to v5."""
    return files(folder, state, {"d_in": D_IN, "d_sae": D_SAE, "model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_post"} | cfg)


def files(folder: Path, state: dict[str, torch.Tensor], cfg: dict[str, Any]) -> Path:
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def dl(folder: Path, dict_class: str, state: dict[str, Any], buffer: dict[str, Any] | None = None, **trainer: Any) -> Path:
    """dictionary_learning."""
    facts = {"dict_class": dict_class, "layer": 3, "lm_name": "pythia", "submodule_name": "resid_post_layer_3"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": facts, "buffer": buffer or {}}))
    torch.save(state, folder / "ae.pt")
    return folder


def sparsify(folder: Path, state: dict[str, torch.Tensor] | None = None, **cfg: Any) -> Path:
    folder = folder / "layers.3.mlp"
    folder.mkdir()
    plain = tensors("W_dec", "b_dec", **{"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"]})
    save_file(state or plain, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "num_latents": 0, "k": K, "d_in": D_IN} | cfg))
    return folder


def gemma(folder: Path, names: dict[str, str] | None = None) -> Path:
    arrays = {(names or {}).get(n, n): P[n].astype(np.float32) for n in (*FOUR, "threshold")}
    np.savez(folder / "params.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return folder


def linear(**more: object) -> dict[str, torch.Tensor]:
    return tensors(**{"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"], "decoder.weight": P["W_dec"].T}, **more)


def batch(threshold: float, **more: object) -> dict[str, torch.Tensor]:
    return linear(b_dec=P["b_dec"], threshold=torch.tensor(threshold), k=torch.tensor(K, dtype=torch.int32), **more)


def scaled(f: np.ndarray) -> np.ndarray:
    """What an SAE of s·x says of x."""
    return decode(f) / S


SCALE = Given(norm_scale=S)
AVERAGE = {"normalize_activations": "expected_average_only_in"}
T64 = torch.tensor(0.5, dtype=torch.float64)
