"""What a checkpoint is, at a glance: the facts that decide every number measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.lm.hooks import known_hook
from bench.sae.activations import JumpReLU
from bench.sae.canonical import MIN_NORM
from bench.sae.checkpoint import Form, Loaded
from bench.sae.dense import DenseSAE

_LONGEST = 300  # characters of a file's own words that are shown
_UNIT = 1e-3
CODES = "the file's; metrics see each code times its decoder row's norm, and unit rows"


def facts_of(loaded: Loaded) -> dict[str, Any]:
    """Facts of one SAE as plain data, in the order they are shown; what the file does not say is None."""
    sae = loaded.sae
    return {
        "name": loaded.name,
        "format": loaded.format,
        "architecture": loaded.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "activation": sae.act.name,
        "k": getattr(sae.act, "k", None),
        "threshold": _range(sae.act.threshold) if isinstance(sae.act, JumpReLU) else None,
        "model": loaded.lm or None,
        "model_in_file": loaded.lm or None,
        "hook": str(hook) if (hook := known_hook(loaded.hook)) else None,
        "hook_in_file": loaded.hook or None,
        "normalisation": loaded.normalisation,
        "decoder_norm": {**_range(norms := sae.W_dec.float().norm(dim=1)), "dead_rows": int((norms < MIN_NORM).sum())},
        "unit_decoder": bool(((norms - 1).abs() < _UNIT).all()),
        "codes": CODES,
        "b_dec_subtracted": _subtracted(sae),
        "sha256": sae.sha256,
        "oddities": list(loaded.oddities),
        "facts": dict(loaded.facts),
    }


def card(facts: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The facts in words, by heading."""
    norm, oddities = facts["decoder_norm"], facts["oddities"]
    norms = "all 1" if facts["unit_decoder"] else f"{norm['low']:.4g} to {norm['high']:.4g}, median {norm['median']:.4g}"
    what = {
        "format": facts["format"],
        "architecture": facts["architecture"],
        "size": f"{facts['d_sae']:,} latents of {facts['d_in']:,} numbers ({facts['d_sae'] / facts['d_in']:.3g} ×)",
        "activation": _activation(facts),
        "b_dec": facts["b_dec_subtracted"],
        "normalisation": facts["normalisation"],
        "decoder norms": norms + (f"; {norm['dead_rows']} dead rows" if norm["dead_rows"] else ""),
        "units of codes": facts["codes"],
        "sha256": facts["sha256"],
    }
    hook, said = facts["hook"], facts["hook_in_file"]
    place = f"{said} (not a place that can be read here: give --hook)" if said and not hook else _placed(hook, said, "--hook")
    where = {"model": _placed(facts["model"], facts["model_in_file"], "--lm"), "hook": place}
    shown = {"what it is": what, "where it belongs": where}
    if oddities:
        shown["worth knowing"] = {str(i): o for i, o in enumerate(oddities, 1)}
    return {head: {k: printable(v) for k, v in lines.items()} for head, lines in shown.items()}


def printable(text: str) -> str:
    """A file's words on one line, without characters that steer a terminal, cut where they are very long."""
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: _LONGEST + 1])
    return plain if len(text) <= _LONGEST else plain[:_LONGEST] + "…"


def _placed(used: str | None, said: str | None, flag: str) -> str:
    """A model or hook, and what the file says where that is something else."""
    if not used:
        return f"not in the file: give {flag}"
    return used if said == used else f"{used} (file: {said or 'does not say'})"


def _activation(facts: Mapping[str, Any]) -> str:
    if facts["k"] is not None:
        return f"{facts['activation']}, k = {facts['k']}"
    if at := facts["threshold"]:
        spread = f"{at['low']:.4g} to {at['high']:.4g}" if at["high"] > at["low"] else f"{at['low']:.4g} for all latents"
        return f"{facts['activation']}, threshold {spread}"
    return facts["activation"]


def _range(values: Tensor) -> dict[str, float]:
    """Order statistics; `torch.quantile` stops at 2^24 values, a sort does not."""
    ordered = torch.sort(values.float().flatten()).values
    return {n: float(ordered[i]) for n, i in (("low", 0), ("median", len(ordered) // 2), ("high", -1))}


def _subtracted(sae: Form) -> str:
    if torch.equal(sae.b_pre, sae.b_dec):
        return "subtracted from the input" if bool(sae.b_dec.any()) else "zero"
    if isinstance(sae, DenseSAE) and bool(sae.b_pre.any()):
        return "not subtracted; another vector is"
    return "not subtracted from the input"
