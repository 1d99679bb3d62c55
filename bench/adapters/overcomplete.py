"""overcomplete: a state dict. What it lacks (the class, k, a running threshold) has to be given, or it is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.adapters import Given
from bench.adapters.build import batch_threshold, count, inclusive, name_of, precision
from bench.adapters.files import only, read_pt, take, weights_file
from bench.adapters.overcomplete_dictionary import ARCHETYPES, ROWS, SCALE, rows
from bench.adapters.overcomplete_encoder import LOG, encoder, encoder_names
from bench.errors import CheckpointError
from bench.sae.activations import Activation, TopK
from bench.sae.checkpoint import Form, Loaded
from bench.sae.dense import DenseSAE
from bench.sae.greedy import Greedy, GreedySAE

FORMAT = "overcomplete"
_MP = re.compile(r"(?<![a-z])mp(?![a-z])|(?<!o)mpsae|^matching", re.IGNORECASE)
_OMP = re.compile(r"(?<![a-z])omp(?![a-z])|ompsae|orthogonal", re.IGNORECASE)


def _weights(path: Path) -> Path | None:
    return weights_file(path, (".pt", ".pth"), lambda keys: ROWS in keys or "dictionary.C" in keys)


def sniff(path: Path) -> bool:
    """One file with a dictionary by one of its two names."""
    return _weights(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE without a bias of the decoder. Without an encoder it is a matching pursuit."""
    file = _weights(path) or path
    state = read_pt(file.parent, file.name)
    if "Q" in state:
        raise CheckpointError("QSAE rounds its codes to learned levels, which is not supported", "give another SAE")
    names = encoder_names(state)
    only(state, *((ROWS,) if ROWS in state else ARCHETYPES), SCALE, *names)
    W_dec = rows(state)
    d_sae, d_in = W_dec.shape
    odd = ("the file names neither model nor hook", *precision(state.get(ROWS)))
    zeros = torch.zeros(d_in)
    if names:
        act, kind = _activation(state, given, d_sae)
        W_enc, b_enc = encoder(state, names, W_dec)
        sae: Form = DenseSAE(W_enc, b_enc, W_dec, zeros, zeros, act)
    else:
        near = file.absolute().parts[-3:]
        if any(_OMP.search(p) for p in near) or not any(_MP.search(p) for p in near):
            cause = "MpSAE and OMPSAE (which is not supported) have the same file, and nothing in its path says which it is"
            raise CheckpointError(cause, "if it is an MpSAE, put it into a folder named mp")
        k, kind = count(None, given, max(d_sae, d_in)), "mp"
        sae, odd = GreedySAE(W_dec, zeros, k, Greedy(k)), (*odd, "an MpSAE by its path; OMPSAE has the same file")
    return Loaded(sae, FORMAT, kind, f"{name_of(file.parent)}-{file.stem}", oddities=odd)


def _activation(state: Mapping[str, Any], given: Given, d_sae: int) -> tuple[Activation, str]:
    """JumpSAE is clear; the other classes have one file. Thresholds are passed at equality."""
    if LOG in state:
        return inclusive(take(state, LOG, (d_sae,)).exp()), "jump"
    if given.k is not None:
        return TopK(count(None, given, d_sae)), "topk"
    if given.threshold is not None:
        return inclusive(batch_threshold(None, given, d_sae).threshold), "batchtopk"
    raise CheckpointError("SAE, TopKSAE and BatchTopKSAE have the same file", "give --k (TopK) or --threshold (BatchTopK; 0 for ReLU)")
