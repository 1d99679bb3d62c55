"""SAELens' matching pursuit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.adapters.build import agree, switch
from bench.adapters.files import DAMAGED, only, take
from bench.errors import CheckpointError
from bench.sae.greedy import Greedy, GreedySAE

_MOST_PICKS = 16384  # picks of a block of tokens are held


def pursuit(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any], s: float) -> GreedySAE:
    """Matching pursuit with tied weights, of s·x; b_dec is no part of it unless it is subtracted from the input.

    D_jᵀ (s x − b) = s D_jᵀ (x − b / s), so codes in units of raw x and a threshold divided by s are the same function.
    """
    only(tensors, "W_dec", "b_dec")
    b_dec = take(tensors, "b_dec", (None,))
    W_dec = take(tensors, "W_dec", (None, len(b_dec)))
    agree(cfg, "d_in", len(b_dec))
    agree(cfg, "d_sae", len(W_dec))
    residual, picks = cfg.get("residual_threshold", 0.01), cfg.get("max_iterations") or len(b_dec)
    if type(picks) is not int or picks < 1 or not isinstance(residual, int | float) or not 0 <= residual < math.inf:
        raise CheckpointError(f"max_iterations = {picks!r} and residual_threshold = {residual!r} make no sense", DAMAGED)
    if picks > _MOST_PICKS:
        raise CheckpointError(f"max_iterations = {picks} is more than {_MOST_PICKS}", "give an SAE with fewer iterations")
    rule = Greedy(picks, True, float(residual) / s, switch(cfg, "stop_on_duplicate_support", True))
    b_dec = b_dec / s if switch(cfg, "apply_b_dec_to_input", True) else torch.zeros_like(b_dec)
    return GreedySAE(W_dec, b_dec, picks, rule)
