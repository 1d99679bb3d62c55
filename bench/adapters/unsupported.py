"""Formats that are known but not read: named in the message, so that the user need not guess."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.adapters.files import first_bytes, foreign_names, holds, names_in, peek_json, peek_keys, peek_ranks

_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
_MAX_PEEKS = 200  # files of a folder that are looked into
_BY_TENSORS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"W_E", "b_E", "W_D"}), "llamascopium weights without the config.json that says how to use them"),
    (frozenset({"encoder.weight", "log_jumprelu_threshold"}), "lm-saes weights without the config.json that says how to use them"),
    (frozenset({"D", "E", "b"}), "a temporal SAE, which needs whole sequences"),
    (frozenset({"W_skip"}), "a transcoder"),
    (frozenset({"affine_skip_connection"}), "a transcoder"),
)
_BY_FILES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hyperparams.json",), "Llama Scope's hyperparams.json without the weights in checkpoints/"),
    (("conf.yaml", "latest_ckpt.safetensors"), "a temporal SAE, which needs whole sequences"),
    (("ae.pt",), "dictionary_learning weights without the config.json whose trainer says how to use them"),
    (("checkpoints/final.safetensors",), "OpenMOSS weights without the hyperparams.json or config.json that says how to use them"),
    (("final.safetensors",), "OpenMOSS weights without the hyperparams.json or config.json that says how to use them"),
    (("sae.pt",), "SAE weights without the config.json that says how to use them"),
    (("sae_weights.safetensors",), "SAELens weights without the cfg.json that says how to use them"),
    (("sae.safetensors",), "SAE weights without the cfg.json or sae.json that says how to use them"),
)
_TRANSCODERS = re.compile(r"layer_\d+\.safetensors"), frozenset({"W_enc", "W_dec", "b_enc", "b_dec"})
_FOUR = frozenset({"W_enc", "W_dec", "b_enc", "b_dec"}), (".pt", ".pth", ".safetensors")
_PICKLED = ("a Python pickle, which only running its code would read", (".pkl", ".pickle", ".pkl.gz"))


def recognise(path: Path) -> str | None:
    """A phrase for what is at `path`, or None. Never raises, never executes anything."""
    is_folder = os.path.isdir(path)
    folder = path if is_folder else path.parent
    files = names_in(path) if is_folder else [path.name]
    weights = [n for n in files if n.endswith(_WEIGHTS)][:_MAX_PEEKS]
    by_tensors = next((phrase for n in weights if (phrase := _by_tensors(folder / n))), None)
    if by_tensors:
        return by_tensors
    if is_folder and (kind := peek_json(folder, "config.json").get("sae_type")) not in (None, "sae"):
        return f"an OpenMOSS {kind}, not an SAE"
    if any(os.path.isdir(folder / n) for n in ("sae_weights.dcp", "checkpoints/final.dcp")):
        return "a distributed checkpoint (.dcp), whose metadata only running code would read: save it as safetensors"
    if is_folder and b"feature_input_hook" in first_bytes(folder / "config.yaml", 2**16):
        return "a set of transcoders (config.yaml says feature_input_hook), not an SAE"
    for names, phrase in _BY_FILES:
        if holds(folder, *names) and (is_folder or path.name in names):
            return phrase
    if any(n.endswith(_PICKLED[1]) for n in files):
        return _PICKLED[0]
    four = next((n for n in files if n.endswith(_FOUR[1]) and peek_keys(folder / n) >= _FOUR[0]), None)
    return (
        f"W_enc, W_dec and biases ({four}) without the config that says whether they are an SAE, a transcoder or a crosscoder"
        if four
        else None
    )


def _by_tensors(path: Path) -> str | None:
    if not os.path.isfile(path):
        return None
    keys = peek_keys(path)
    if path.suffix in (".pt", ".pth") and first_bytes(path, 1) == b"\x80":
        return _PICKLED[0]
    if _TRANSCODERS[0].fullmatch(path.name) and keys >= _TRANSCODERS[1]:
        return "a transcoder of a set, one file for each layer, not an SAE"
    if path.suffix in (".pt", ".pth") and (foreign := foreign_names(path)):
        return f"{_PICKLED[0]} (it names {foreign[0]})"
    if any(re.fullmatch(r"W_(enc|dec)_\d+", k) for k in keys) or 3 in peek_ranks(path):
        return "a crosscoder or cross-layer transcoder, not an SAE of one site"
    return next((phrase for signature, phrase in _BY_TENSORS if signature <= keys), None)
