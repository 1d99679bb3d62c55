"""Our own format: `sae.safetensors` and `sae.json`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import name_of, topk, word
from bench.adapters.files import DAMAGED, folder_of, only, read_json, read_safetensors, take
from bench.errors import CheckpointError
from bench.sae.checkpoint import FACTS, WEIGHTS, Loaded, activation
from bench.sae.checkpoint import FORMAT as VERSION
from bench.sae.dense import DenseSAE
from bench.sae.pursuit import PursuitSAE

FORMAT = "ortsae-bench"
_UNIT = 0.01  # tolerance of unit norms; rows rounded to bfloat16 are within half of it


def sniff(path: Path) -> bool:
    """Both files are there."""
    return folder_of(path, WEIGHTS, FACTS) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read what `bench.sae.checkpoint.save` wrote."""
    folder = folder_of(path, WEIGHTS, FACTS) or path
    facts, tensors = read_json(folder, FACTS), read_safetensors(folder, WEIGHTS)
    if facts.get("format") != FORMAT or facts.get("format_version") != VERSION:
        said = f"{facts.get('format')} {facts.get('format_version')}"
        raise CheckpointError(f"{FACTS} is of format {said!r}, not {FORMAT} {VERSION}", "update ortsae-bench or give another checkpoint")
    act = facts.get("activation")
    if not isinstance(act, dict):
        raise CheckpointError(f"{FACTS} describes no activation", "the file is damaged or from another program")
    sae = _pursuit(tensors, act, given) if act.get("name") == "pursuit" else _dense(tensors, act, given)
    return Loaded(
        sae,
        FORMAT,
        _method(facts) or sae.act.name,
        word(facts.get("name")) or name_of(folder),
        word(facts.get("lm")),
        word(facts.get("hook")),
        facts={k: v for k, v in facts.items() if k not in ("format", "format_version", "activation", "name", "method", "lm", "hook")},
    )


def _dense(tensors: dict[str, Tensor], act: dict[str, object], given: Given) -> DenseSAE:
    only(tensors, "W_enc", "b_enc", "W_dec", "b_dec", "b_pre", *(["threshold"] if act.get("name") == "jumprelu" else []))
    b_enc, b_dec = take(tensors, "b_enc", (None,)), take(tensors, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    if act.get("name") == "topk":
        topk(act.get("k"), given, d_sae)
    thresholds = {"threshold": take(tensors, "threshold", (d_sae,))} if act.get("name") == "jumprelu" else {}
    return DenseSAE(
        take(tensors, "W_enc", (d_in, d_sae)),
        b_enc,
        take(tensors, "W_dec", (d_sae, d_in)),
        b_dec,
        take(tensors, "b_pre", (d_in,)),
        activation(act, thresholds),
    )


def _pursuit(tensors: dict[str, Tensor], act: dict[str, object], given: Given) -> PursuitSAE:
    only(tensors, "W_dec", "b_dec")
    b_dec = take(tensors, "b_dec", (None,))
    w_dec = take(tensors, "W_dec", (None, len(b_dec)))
    if bool(((w_dec.norm(dim=1) - 1).abs() > _UNIT).any()):
        raise CheckpointError("a matching pursuit has decoder rows that are not of unit norm", DAMAGED)
    return PursuitSAE(w_dec, b_dec, topk(act.get("k"), given, len(w_dec)).k)


def _method(facts: dict[str, object]) -> str:
    """Name of the training method: a word, or the name inside its description."""
    method = facts.get("method")
    return word(method.get("method") if isinstance(method, dict) else method)
