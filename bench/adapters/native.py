"""Our own format: `sae.safetensors` and `sae.json`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import name_of, topk, word
from bench.adapters.files import folder_of, only, read_json, read_safetensors, take
from bench.adapters.native_pursuit import PURSUITS
from bench.adapters.remarks import REMARKS, remarks
from bench.errors import CheckpointError
from bench.sae.checkpoint import FACTS, FORMAT_WITH_NORM, WEIGHTS, Loaded, activation
from bench.sae.checkpoint import FORMAT as VERSION
from bench.sae.dense import DenseSAE
from bench.sae.normalisation import PerToken

FORMAT = "ortsae-bench"
_OURS = ("format", "format_version", "activation", "norm", "name", "lm", "hook", REMARKS)


def sniff(path: Path) -> bool:
    """Both files are there."""
    return folder_of(path, WEIGHTS, FACTS) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read what `bench.sae.checkpoint.save` wrote."""
    folder = folder_of(path, WEIGHTS, FACTS) or path
    facts, tensors = read_json(folder, FACTS), read_safetensors(folder, WEIGHTS)
    norm, act = facts.get("norm"), facts.get("activation")
    if facts.get("format") != FORMAT or facts.get("format_version") != (FORMAT_WITH_NORM if norm else VERSION):
        said = f"{facts.get('format')} {facts.get('format_version')}"
        raise CheckpointError(f"{FACTS} is of format {said!r}, not {FORMAT} {VERSION}", "update ortsae-bench or give another checkpoint")
    if not isinstance(act, dict):
        raise CheckpointError(f"{FACTS} describes no activation", "the file is damaged or from another program")
    if act.get("name") in PURSUITS:
        sae = PURSUITS[act["name"]](tensors, act, given)
    else:
        sae = replace(_dense(tensors, act, given), norm=_norm(norm))
    return Loaded(
        sae,
        FORMAT,
        _method(facts) or sae.act.name,
        word(facts.get("name")) or name_of(folder),
        word(facts.get("lm")),
        word(facts.get("hook")),
        normalisation=word(norm) or "none",
        oddities=remarks(facts),
        facts={k: v for k, v in facts.items() if k not in _OURS},
    )


def _norm(kind: object) -> PerToken | None:
    if kind in ("layer_norm", "unit_norm"):
        return PerToken(kind)
    if kind is None:
        return None
    raise CheckpointError(f"normalisation {kind!r} in {FACTS} cannot be used", "the file is damaged or from a newer version")


def _dense(tensors: dict[str, Tensor], act: dict[str, object], given: Given) -> DenseSAE:
    vector = {"jumprelu": "threshold", "ranked_topk": "rank_weight"}.get(str(act.get("name")))
    only(tensors, "W_enc", "b_enc", "W_dec", "b_dec", "b_pre", *([vector] if vector else []))
    b_enc, b_dec = take(tensors, "b_enc", (None,)), take(tensors, "b_dec", (None,))
    d_sae, d_in = len(b_enc), len(b_dec)
    if "k" in act or act.get("name") == "topk":
        topk(act.get("k"), given, d_sae)
    vectors = {vector: take(tensors, vector, (d_sae,))} if vector else {}
    matrices = take(tensors, "W_enc", (d_in, d_sae)), b_enc, take(tensors, "W_dec", (d_sae, d_in))
    return DenseSAE(*matrices, b_dec, take(tensors, "b_pre", (d_in,)), activation(act, vectors))


def _method(facts: dict[str, object]) -> str:
    """Name of the training method: a word, or the name inside its description."""
    method = facts.get("method")
    return word(method.get("method") if isinstance(method, dict) else method)
