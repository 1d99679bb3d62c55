"""The small SAE of `adapters_layouts` in the layouts of more libraries, and the parts of their forward passes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.adapters_layouts import D_IN, D_SAE, FOUR, K, N, P, X, linear, pre, tensors

AVERAGE_NORM = 7.0
F = float(np.sqrt(D_IN) / np.float32(AVERAGE_NORM))
LOG = np.log(P["threshold"]).astype(np.float32).astype(np.float64)
T = np.exp(LOG)
Z = (X - X.mean(1, keepdims=True)) / (X.std(1, ddof=1, keepdims=True) + 1e-5)
ROOT = np.linalg.norm(X, axis=1, keepdims=True) / np.sqrt(D_IN)
UNIT = X / np.where(ROOT == 0, 1, ROOT)
UNIT_ROWS = (P["W_dec"] / N[:, None] * 0.95).astype(np.float32).astype(np.float64)
EXACT_ROWS = (P["W_dec"] / N[:, None]).astype(np.float32).astype(np.float64)


def ln_out(xhat: np.ndarray) -> np.ndarray:
    """A reconstruction of layer-normalised tokens brought back."""
    return xhat * X.std(1, ddof=1, keepdims=True) + X.mean(1, keepdims=True)


def by_rank(values: np.ndarray, rank: np.ndarray, k: int = K) -> np.ndarray:
    """The k values of highest rank of each row, as they are, by a full sort."""
    out = np.zeros_like(values)
    for row, (v, r) in enumerate(zip(values, rank, strict=True)):
        for i in np.argsort(-r)[:k]:
            out[row, i] = v[i]
    return out


def groups(values: np.ndarray, k: int = K) -> np.ndarray:
    """The largest positive value of each of k runs of columns."""
    out, size = np.zeros_like(values), values.shape[1] // k
    for row, v in enumerate(values):
        for j in range(k):
            i = j * size + int(np.argmax(v[j * size : (j + 1) * size]))
            out[row, i] = max(v[i], 0)
    return out


def pursued(x: np.ndarray, rows: np.ndarray, k: int, positive: bool = False, residual: float = 0.0, distinct: bool = False) -> np.ndarray:
    """Matching pursuit token by token, as its libraries write it."""
    codes = np.zeros((len(x), len(rows)))
    for f, token in zip(codes, x, strict=True):
        r = token.copy()
        for _ in range(k):
            inner = rows @ r
            i = int(np.argmax(inner))
            value, before = (max(inner[i], 0) if positive else inner[i]), f != 0
            f[i] += value
            r -= value * rows[i]
            if (distinct and np.array_equal(f != 0, before)) or (residual > 0 and np.linalg.norm(r) < residual):
                break
    return codes


def pt(folder: Path, name: str, state: object) -> Path:
    torch.save(state, folder / name)
    return folder / name


def moss(folder: Path, act_fn: str, more: dict[str, Any] | None = None, average: float | None = AVERAGE_NORM, **cfg: Any) -> Path:
    """llamascopium."""
    state = tensors(**{"W_E": P["W_enc"], "b_E": P["b_enc"], "W_D": P["W_dec"], "b_D": P["b_dec"]}, **(more or {}))
    if average is not None:
        state["dataset_average_activation_norm.blocks.3.hook_resid_post"] = torch.tensor(average)
    if act_fn == "jumprelu":
        state["activation_function.log_jumprelu_threshold"] = torch.tensor(LOG, dtype=torch.float32)
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(moss_config(act_fn) | cfg))
    return folder


def moss_config(act_fn: str) -> dict[str, Any]:
    hook = "blocks.3.hook_resid_post"
    return {
        **{"sae_type": "sae", "hook_point_in": hook, "hook_point_out": hook, "d_model": D_IN, "expansion_factor": D_SAE / D_IN},
        **{"act_fn": act_fn, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "use_decoder_bias": True},
        **{"use_glu_encoder": False, "top_k": K, "jumprelu_threshold_window": 2.0},
    }


def lm_saes(folder: Path, act_fn: str = "jumprelu", config: str = "config.json", **cfg: Any) -> Path:
    """lm-saes of 2025."""
    state = linear(**{"decoder.bias": P["b_dec"]})
    state["dataset_average_activation_norm.blocks.3.hook_resid_post"] = torch.tensor(AVERAGE_NORM)
    state |= {"log_jumprelu_threshold": torch.tensor(LOG, dtype=torch.float32)} if act_fn == "jumprelu" else {}
    save_file(state, folder / "sae_weights.safetensors")
    (folder / config).write_text(json.dumps(moss_config(act_fn) | cfg))
    return folder


def llama_scope(folder: Path, weights: str = "checkpoints/final.safetensors", **cfg: Any) -> Path:
    """Llama Scope of 2024."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    state = linear(**{"decoder.bias": P["b_dec"]})
    save_file(state, folder / weights) if weights.endswith("safetensors") else torch.save(
        {"sae": state, "version": "0.1"}, folder / weights
    )
    facts = moss_config("jumprelu") | {"jump_relu_threshold": 0.3, "apply_decoder_bias_to_pre_encoder": False, "d_sae": D_SAE}
    facts |= {"dataset_average_activation_norm": {"in": AVERAGE_NORM, "out": AVERAGE_NORM}} | cfg
    (folder / "hyperparams.json").write_text(json.dumps(facts))
    (folder / "lm_config.json").write_text(json.dumps({"model_name": "meta-llama/Llama-3.1-8B"}))
    return folder


def gemma2(folder: Path, more: dict[str, Any] | None = None, config: bool = True, **cfg: Any) -> Path:
    state = tensors(**({n.lower(): P[n] for n in (*FOUR, "threshold")} | (more or {})))
    save_file(state, folder / "params.safetensors")
    hook = "model.layers.3.output"
    facts = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "width": D_SAE, "model_name": "google/gemma-3-1b-pt"}
    facts |= {"architecture": "jump_relu", "l0": 10, "affine_connection": False, "type": "sae"} | cfg
    if config:
        (folder / "config.json").write_text(json.dumps(facts))
    return folder


def openai(folder: Path, activation: str = "TopK", after: str = "ReLU", **more: Any) -> Path:
    state: dict[str, Any] = tensors(
        **{"pre_bias": P["b_dec"], "latent_bias": P["b_enc"], "encoder.weight": P["W_enc"].T, "decoder.weight": P["W_dec"].T}
    )
    state |= {"stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long), "activation": activation}
    options = {"activation_state_dict": {"k": K, "postact_fn": after} if activation == "TopK" else {}}
    return pt(folder, "3.pt", state | options | more)


def bart(folder: Path, sae_type: str, more: dict[str, Any] | None = None, **cfg: Any) -> Path:
    facts = {"sae_type": sae_type, "act_size": D_IN, "dict_size": D_SAE, "top_k": K, "input_unit_norm": True, "dtype": "torch.float32"}
    facts |= {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "group_sizes": "[16, 24]"} | cfg
    (folder / "config.json").write_text(json.dumps(facts))
    torch.save(tensors(*FOUR, **(more or {})), folder / "sae.pt")
    return folder


def hypothesaes(folder: Path, threshold: float = 0.0, **cfg: Any) -> Path:
    facts = {"input_dim": D_IN, "m_total_neurons": D_SAE, "k_active_neurons": K, "prefix_lengths": [16, D_SAE], "use_batch_topk": False}
    weights = {"encoder.weight": P["W_enc"].T, "decoder.weight": P["W_dec"].T, "input_bias": P["b_dec"], "neuron_bias": P["b_enc"]}
    return pt(folder, "SAE_M=40_K=5.pt", {"config": facts | cfg, "state_dict": tensors(**weights, threshold=torch.tensor(threshold))})


def goodfire(folder: Path) -> Path:
    names = {"encoder_linear.weight": P["W_enc"].T, "encoder_linear.bias": P["b_enc"]}
    return pt(folder, "goodfire.pth", tensors(**names, **{"decoder_linear.weight": P["W_dec"].T, "decoder_linear.bias": P["b_dec"]}))


def deepseek(folder: Path) -> Path:
    return pt(folder, "DeepSeek-R1-SAE-l37.pt", linear(**{"decoder.bias": P["b_dec"]}))


def qwen(folder: Path) -> Path:
    return pt(folder, "layer3.sae.pt", tensors("b_enc", "b_dec", W_enc=P["W_enc"].T, W_dec=P["W_dec"].T))


def neel(folder: Path, **cfg: Any) -> Path:
    facts = {"act_size": D_IN, "dict_size": D_SAE, "act_name": "blocks.3.attn.hook_z", "layer": 3, "model_name": "gpt2"} | cfg
    (folder / "v1_cfg.json").write_text(json.dumps(facts))
    return pt(folder, "v1.pt", tensors(*FOUR))


def saev(folder: Path, cls: str, header: dict[str, Any] | None = None, **more: Any) -> Path:
    params = {} if cls == "Relu" else {"top_k": K}
    first = header or {"schema": 2, "cfg": {"d_vit": D_IN, "activation": {"cls": cls, "params": params}}, "lib": "0.1"}
    buffer = io.BytesIO()
    torch.save(tensors(*FOUR, **more), buffer)
    (folder / "sae.pt").write_bytes(json.dumps(first).encode() + b"\n" + buffer.getvalue())
    return folder / "sae.pt"


def overcomplete(folder: Path, encoder: bool | str = True, **more: Any) -> Path:
    """`encoder`: "untied" and "tied" are the two that the library offers beside its first."""
    state = tensors(**{"dictionary._weights": EXACT_ROWS, "dictionary.multiplier": torch.tensor(0.25)} | more)
    if encoder == "untied":
        state |= tensors(**{"encoder.weight": P["W_enc"].T})
    elif encoder == "tied":
        state = {k.replace("dictionary.", "encoder.tied_to."): v.clone() for k, v in state.items() if k.startswith("dictionary.")} | state
    elif encoder:
        state |= tensors(**{"encoder.final_block.0.weight": P["W_enc"].T, "encoder.final_block.0.bias": P["b_enc"]})
    return pt(folder, "overcomplete.pt" if encoder else "mpsae.pt", state)


def archetypal(folder: Path) -> Path:
    mix = np.abs(P["W_dec"][:, :6])
    state = tensors(**{"dictionary.C": P["W_enc"].T[:6], "dictionary.W": mix / mix.sum(1, keepdims=True)})
    state |= tensors(**{"dictionary.Relax": 0.1 * P["W_dec"], "dictionary.multiplier": torch.tensor(0.25)})
    return pt(folder, "ra.pt", state | tensors(**{"encoder.final_block.0.weight": P["W_enc"].T, "encoder.final_block.0.bias": P["b_enc"]}))


def archetypes(f: np.ndarray) -> np.ndarray:
    mix = np.abs(P["W_dec"][:, :6])
    return f @ (mix / mix.sum(1, keepdims=True) @ P["W_enc"].T[:6] + 0.1 * P["W_dec"]) * np.exp(0.25)


def pre_of(z: np.ndarray, subtract: bool = True, bias: bool = True) -> np.ndarray:
    """Pre-activations of inputs that were normalised before."""
    return pre(z, subtract) - (0 if bias else P["b_enc"])
