"""overcomplete's linear encoders: `nn.Linear` behind other layers, weights alone, or a copy of the dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.adapters.files import take
from bench.errors import CheckpointError

LOG = "thresholds"
_LINEAR = "encoder.final_block.0"
_UNTIED, _TIED = "encoder.weight", "encoder.tied_to."  # of `sae.untied()` and `sae.tied()`


def encoder_names(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Tensors that a linear encoder of one of three kinds may have: `nn.Linear`, weights alone, or a copy of the dictionary."""
    if not any(k.startswith("encoder.") for k in state):
        return ()
    if copies := tuple(k for k in state if k.startswith(_TIED)):
        return (*copies, "encoder.bias", LOG)
    weight, bias = (_UNTIED, "encoder.bias") if _UNTIED in state else (f"{_LINEAR}.weight", f"{_LINEAR}.bias")
    return weight, bias, LOG


def encoder(state: Mapping[str, Any], names: tuple[str, ...], W_dec: Tensor) -> tuple[Tensor, Tensor]:
    """W_enc [d_in, d_sae] and b_enc [d_sae]. A tied encoder's file holds the dictionary twice."""
    *weights, bias, _ = names
    for copy in (w for w in weights if w.startswith(_TIED)):
        own = state.get(copy.replace(_TIED, "dictionary."))
        if not isinstance(own, Tensor) or not torch.equal(take(state, copy, tuple(own.shape)), own.float()):
            raise CheckpointError(f"{copy} is not the dictionary to which the encoder is tied", "save the SAE again")
    plain = bias not in state and not weights[0].startswith(_LINEAR)
    b_enc = torch.zeros(len(W_dec)) if plain else take(state, bias, (len(W_dec),))
    W_enc = W_dec if weights[0].startswith(_TIED) else take(state, weights[0], tuple(W_dec.shape))
    return W_enc.T.contiguous(), b_enc
