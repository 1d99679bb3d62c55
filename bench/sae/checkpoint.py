"""The native checkpoint: `sae.safetensors` (weights) and `sae.json` (where it belongs and how it was made)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.errors import CheckpointError
from bench.sae.activations import WITH_K, Activation, JumpReLU, RankedTopK, ReLU, TanhReLU, TopK, vector_of
from bench.sae.dense import DenseSAE
from bench.sae.greedy import Greedy
from bench.sae.pursuit import PursuitSAE

Form = DenseSAE | PursuitSAE  # what a native checkpoint can hold
FORMAT, FORMAT_WITH_NORM = 1, 2  # an older program must not read the second and leave the normalisation out
WEIGHTS, FACTS = "sae.safetensors", "sae.json"


@dataclass(frozen=True)
class Loaded:
    """An SAE as an adapter read it.

    Args:
        sae: Ready to use: a float32 `DenseSAE` or `PursuitSAE`, or the object that was given from Python.
        format: Name of the file format.
        architecture: What the file says it is, e.g. `batchtopk`.
        name: Short name for tables.
        lm: Language model named by the file, or "".
        hook: Hook named by the file in the file's own spelling, or "".
        normalisation: Input normalisation and what was done about it.
        oddities: Things a user should know.
        facts: Everything else of interest, e.g. training facts.
    """

    sae: Any
    format: str
    architecture: str
    name: str
    lm: str = ""
    hook: str = ""
    normalisation: str = "none"
    oddities: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def save(sae: Form, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write a native checkpoint.

    Args:
        sae: What to save; thresholds are kept in float32 whatever `dtype` is.
        folder: Made if missing.
        facts: `name`, `method`, `lm`, `revision`, `hook`, and a `training` mapping.
        dtype: Type of the weight matrices on disk.

    Raises:
        CheckpointError: A weight is not finite in `dtype`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    matrices, vectors = (("W_enc", "W_dec"), ("b_enc", "b_dec", "b_pre")) if isinstance(sae, DenseSAE) else (("W_dec",), ("b_dec",))
    tensors = {n: getattr(sae, n).detach().cpu().to(dtype).clone(memory_format=torch.contiguous_format) for n in matrices}
    tensors |= {n: getattr(sae, n).detach().cpu().float().clone() for n in vectors}
    norm = sae.norm if isinstance(sae, DenseSAE) else None
    act: dict[str, Any] = {"name": sae.act.name}
    if isinstance(sae.act, Greedy):
        act |= asdict(sae.act)
    elif vector := vector_of(sae.act) if isinstance(sae, DenseSAE) else None:
        tensors[vector[0]] = vector[1].detach().cpu().float().expand(sae.d_sae).clone()
    if (k := getattr(sae.act, "k", None)) is not None:
        act["k"] = k
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise CheckpointError(
                f"{name} is not finite in {str(dtype).removeprefix('torch.')}", "save in float32, or look at the training log"
            )
    ours = {"format": "ortsae-bench", "format_version": FORMAT_WITH_NORM if norm else FORMAT, "activation": act}
    ours |= {"norm": norm.kind} if norm else {}
    text = json.dumps({**facts, **ours}, indent=1, sort_keys=True)
    save_file(tensors, folder / f"{WEIGHTS}.tmp")
    (folder / f"{FACTS}.tmp").write_text(text + "\n")
    for name in (WEIGHTS, FACTS):  # the facts last: without them the folder is no checkpoint yet
        (folder / f"{name}.tmp").replace(folder / name)


def rounded(sae: Form, dtype: torch.dtype) -> Form:
    """The SAE as it will be after saving in `dtype` and reading back."""
    if isinstance(sae, PursuitSAE):
        return replace(sae, W_dec=sae.W_dec.to(dtype).float())
    return replace(sae, W_enc=sae.W_enc.to(dtype).float(), W_dec=sae.W_dec.to(dtype).float())


def activation(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Activation:
    """The activation function a native file describes.

    Raises:
        CheckpointError: Unknown name or missing numbers.
    """
    name, k = str(facts.get("name")), facts.get("k")
    counted = k if type(k) is int and k > 0 else None
    if name in ("relu", "tanh_relu"):
        return ReLU() if name == "relu" else TanhReLU()
    if name == "jumprelu" and "threshold" in tensors:
        return JumpReLU(tensors["threshold"])
    if counted and name == "ranked_topk" and "rank_weight" in tensors:
        return RankedTopK(counted, tensors["rank_weight"])
    if counted and (name == "topk" or name in WITH_K):
        return TopK(counted) if name == "topk" else WITH_K[name](counted)
    raise CheckpointError(f"activation {facts.get('name')!r} in {FACTS} cannot be used", "the file is damaged or from a newer version")
