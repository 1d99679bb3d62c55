"""OpenAI's sparse_autoencoder: one `.pt` file with pre_bias, latent_bias, encoder.weight and the activation's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import count, in_frames, name_of, precision, word
from bench.adapters.files import DAMAGED, only, read_pt, take, weights_file
from bench.errors import CheckpointError
from bench.sae.activations import ReLU, SignedTopK, TopK
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE
from bench.sae.normalisation import PerToken

FORMAT = "openai"
_NAMES = frozenset({"pre_bias", "latent_bias", "encoder.weight"})
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")  # of training, not of the function
_TIED = "decoder.linear.weight"


def _weights(path: Path) -> Path | None:
    return weights_file(path, (".pt", ".pth"), lambda keys: keys >= _NAMES)


def sniff(path: Path) -> bool:
    """One file with the three names."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE. With TopK, and only then, the library normalises each token; the file does not say so."""
    file = _weights(path) or path
    state = read_pt(file.parent, file.name)
    only(state, *_NAMES, "decoder.weight", _TIED, "activation", "activation_state_dict", *_STATISTICS)
    b_enc, b_dec = take(state, "latent_bias", (None,)), take(state, "pre_bias", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    W_enc = take(state, "encoder.weight", (d_sae, d_in)).T.contiguous()
    act = _activation(state, given, d_sae)
    sae = DenseSAE(W_enc, b_enc, _decoder(state, d_in, d_sae), b_dec, b_dec, act)
    sae, said = in_frames(sae, None if isinstance(act, ReLU) else PerToken("layer_norm"))
    odd = ("the file names neither model nor hook", *precision(state["encoder.weight"]))
    return Loaded(sae, FORMAT, act.name, f"{name_of(file.parent)}-{file.stem}", normalisation=said, oddities=odd)


def _decoder(state: Mapping[str, Any], d_in: int, d_sae: int) -> Tensor:
    """[d_sae, d_in]; tied weights are stored as the encoder's, under another name."""
    if "decoder.weight" in state or _TIED not in state:
        return take(state, "decoder.weight", (d_in, d_sae)).T.contiguous()
    return take(state, _TIED, (d_sae, d_in))


def _activation(state: Mapping[str, Any], given: Given, d_sae: int) -> ReLU | TopK | SignedTopK:
    kind, options = state.get("activation", "ReLU"), state.get("activation_state_dict")
    if kind == "ReLU":
        return ReLU()
    if kind != "TopK":
        raise CheckpointError(f"activation {word(kind) or type(kind).__name__} is not supported", "supported: ReLU, TopK")
    if not isinstance(options, dict):
        raise CheckpointError("the file holds no activation_state_dict with k and postact_fn", DAMAGED)
    after, k = options.get("postact_fn"), count(options.get("k"), given, d_sae)
    if after not in ("ReLU", "Identity"):
        raise CheckpointError(f"postact_fn {after!r} is not supported", "give an SAE with ReLU or Identity")
    return TopK(k) if after == "ReLU" else SignedTopK(k)
