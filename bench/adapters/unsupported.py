"""Formats that are known but not read: named in the message, so that the user need not guess."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from bench.adapters.files import holds, peek_json, peek_keys

_MAX_NAMES = 5000
_BY_TENSORS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"W_E", "b_E", "W_D"}), "an OpenMOSS (llamascopium) dictionary"),
    (frozenset({"encoder.weight", "log_jumprelu_threshold"}), "an OpenMOSS (lm-saes) SAE"),
    (frozenset({"w_enc", "w_dec", "threshold"}), "a Gemma Scope 2 SAE or transcoder"),
    (frozenset({"pre_bias", "latent_bias", "encoder.weight"}), "an OpenAI SAE"),
    (frozenset({"encoder_linear.weight"}), "a Goodfire SAE"),
    (frozenset({"input_bias", "neuron_bias"}), "a HypotheSAEs SAE"),
    (frozenset({"dictionary._weights"}), "an overcomplete dictionary"),
    (frozenset({"dictionary.C"}), "an overcomplete dictionary"),
    (frozenset({"D", "E", "b"}), "a temporal SAE, which needs whole sequences"),
    (frozenset({"W_skip"}), "a transcoder"),
)
_BY_FILES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hyperparams.json", "lm_config.json"), "a Llama Scope SAE of 2024"),
    (("hyperparams.json",), "a Llama Scope SAE of 2024"),
    (("conf.yaml", "latest_ckpt.safetensors"), "a temporal SAE, which needs whole sequences"),
    (("config.json", "sae.pt"), "a BatchTopK/Matryoshka SAE of bartbussmann's code"),
    (("ae.pt",), "dictionary_learning weights without the config.json that says how to use them"),
    (("sae_weights.safetensors",), "SAELens weights without the cfg.json that says how to use them"),
    (("sae.safetensors",), "SAE weights without the cfg.json or sae.json that says how to use them"),
)
_PICKLED = ("a Python pickle, which only running its code would read", (".pkl", ".pickle", ".pkl.gz"))


def recognise(path: Path) -> str | None:
    """A phrase for what is at `path`, or None. Never raises, never executes anything."""
    is_folder = os.path.isdir(path)
    folder = path if is_folder else path.parent
    files = _names(path) if is_folder else [path.name]
    by_tensors = next((phrase for n in files if (phrase := _by_tensors(folder / n))), None)
    if by_tensors:
        return by_tensors
    if is_folder and (kind := peek_json(folder, "config.json").get("sae_type")) in ("crosscoder", "clt", "lorsa", "molt", "transcoder"):
        return f"an OpenMOSS {kind}, not an SAE"
    for names, phrase in _BY_FILES:
        if holds(folder, *names) and (is_folder or path.name in names):
            return phrase
    return _PICKLED[0] if any(n.endswith(_PICKLED[1]) for n in files) else None


def _by_tensors(path: Path) -> str | None:
    if path.suffix not in (".safetensors", ".npz", ".pt", ".pth") or not os.path.isfile(path):
        return None
    keys = peek_keys(path)
    if any(re.fullmatch(r"W_(enc|dec)_\d+", k) for k in keys) or any(n == 3 for n in _ranks(path)):
        return "a crosscoder or cross-layer transcoder, not an SAE of one site"
    return next((phrase for signature, phrase in _BY_TENSORS if signature <= keys), None)


def _ranks(path: Path) -> list[int]:
    """Dimensions of each tensor of a safetensors file."""
    try:
        with path.open("rb") as f:
            header = json.loads(f.read(min(int.from_bytes(f.read(8), "little"), 2**24))) if path.suffix == ".safetensors" else {}
        return [len(v["shape"]) for k, v in header.items() if k != "__metadata__"]
    except Exception:  # naming a format is a courtesy; damage is reported elsewhere
        return []


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for _, e in zip(range(_MAX_NAMES), entries, strict=False) if e.is_file())
    except OSError:
        return []
