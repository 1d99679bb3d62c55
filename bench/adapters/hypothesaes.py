"""HypotheSAEs: one `.pt` file with `config` and `state_dict`, for embeddings of whole texts."""

from __future__ import annotations

from pathlib import Path

from bench.adapters import Given
from bench.adapters.build import agree, batch_threshold, name_of, precision, switch, topk, transposed
from bench.adapters.files import DAMAGED, only, read_pt, take, weights_file
from bench.errors import CheckpointError
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "hypothesaes"
_NAMES = frozenset({"config", "state_dict", "input_bias", "neuron_bias"})


def _weights(path: Path) -> Path | None:
    return weights_file(path, (".pt", ".pth"), lambda keys: keys >= _NAMES)


def sniff(path: Path) -> bool:
    """One file with the four names."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE: top k, or the threshold of a batch's top k where the config says that it was trained so."""
    file = _weights(path) or path
    found = read_pt(file.parent, file.name)
    cfg, state = found.get("config"), found.get("state_dict")
    if not isinstance(cfg, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{file.name} holds no config and state_dict", DAMAGED)
    only(state, "input_bias", "neuron_bias", "encoder.weight", "decoder.weight", "threshold")
    b_enc, b_dec = take(state, "neuron_bias", (None,)), take(state, "input_bias", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    agree(cfg, "input_dim", d_in)
    agree(cfg, "m_total_neurons", d_sae)
    W_enc, W_dec = transposed(state, "encoder.weight", "decoder.weight", d_in, d_sae)
    if switch(cfg, "use_batch_topk"):
        stored = float(take(state, "threshold", ())) if "threshold" in state else 0.0  # where it starts from
        act, kind = batch_threshold(stored if stored > 0 else None, given, d_sae), "batchtopk"
    else:
        act, kind = topk(cfg.get("k_active_neurons"), given, d_sae), "topk"
    odd = ("made for embeddings of whole texts: it has no hook in a language model", *precision(state["decoder.weight"]))
    return Loaded(DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec, act), FORMAT, kind, f"{name_of(file.parent)}-{file.stem}", oddities=odd)
