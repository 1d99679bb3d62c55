"""What a checkpoint is, at a glance: the facts that decide every number measured on it."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import UsageError
from bench.lm.hooks import parse_hook
from bench.sae.activations import JumpReLU
from bench.sae.canonical import MIN_NORM
from bench.sae.checkpoint import Form, Loaded

_UNKNOWN = "not in the file"


def card(loaded: Loaded) -> dict[str, str]:
    """Facts of one SAE by name, in the order they are shown."""
    sae = loaded.sae
    return {
        "format": loaded.format,
        "architecture": loaded.architecture,
        "d_in": str(sae.d_in),
        "d_sae": str(sae.d_sae),
        "activation": _activation(sae),
        "hook": _hook(loaded.hook),
        "model": loaded.lm or f"{_UNKNOWN}: give --lm",
        "normalisation": loaded.normalisation,
        "decoder norms": _norms(sae),
        "b_dec subtracted from input": _subtracted(sae),
        "sha256": sae.sha256[:16],
        "oddities": "; ".join(loaded.oddities) or "none",
    }


def _activation(sae: Form) -> str:
    if (k := getattr(sae.act, "k", None)) is not None:
        return f"{sae.act.name}, k = {k}"
    if isinstance(sae.act, JumpReLU):
        low, high = float(sae.act.threshold.min()), float(sae.act.threshold.max())
        return f"jumprelu, threshold {low:.4g}" + (f" to {high:.4g}" if high > low else " for all latents")
    return sae.act.name


def _hook(spelled: str) -> str:
    """Our spelling, with the file's beside it where they differ."""
    if not spelled:
        return f"{_UNKNOWN}: give --hook"
    try:
        ours = str(parse_hook(spelled))
    except UsageError:
        return f"{spelled} (not a place that can be read here: give --hook)"
    return ours if ours == spelled else f"{ours} (file: {spelled})"


def _norms(sae: Form) -> str:
    n = sae.W_dec.float().norm(dim=1)
    return f"min {_at(n, 0.0)}, median {_at(n, 0.5)}, max {_at(n, 1.0)}; dead rows {int((n < MIN_NORM).sum())}"


def _at(values: Tensor, share: float) -> str:
    """An order statistic; `torch.quantile` stops at 2^24 values, a sort does not."""
    return f"{float(torch.sort(values).values[round(share * (len(values) - 1))]):.4g}"


def _subtracted(sae: Form) -> str:
    if torch.equal(sae.b_pre, sae.b_dec):
        return "yes" if bool(sae.b_dec.any()) else "makes no difference: b_dec is zero"
    return "no" if not bool(sae.b_pre.any()) else "no: another vector is subtracted"
