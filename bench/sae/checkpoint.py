"""The native checkpoint: `sae.safetensors` (weights) and `sae.json` (where it belongs and how it was made)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.errors import CheckpointError
from bench.sae.activations import Activation, JumpReLU, ReLU, TopK
from bench.sae.dense import DenseSAE
from bench.sae.pursuit import Pursuit, PursuitSAE

Form = DenseSAE | PursuitSAE  # what a native checkpoint can hold
FORMAT = 1
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
    act: dict[str, Any] = {"name": sae.act.name}
    if isinstance(sae.act, JumpReLU):
        tensors["threshold"] = sae.act.threshold.detach().cpu().float().expand(sae.d_sae).clone()
    if isinstance(sae.act, TopK | Pursuit):
        act["k"] = sae.act.k
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise CheckpointError(
                f"{name} is not finite in {str(dtype).removeprefix('torch.')}", "save in float32, or look at the training log"
            )
    text = json.dumps({**facts, "format": "ortsae-bench", "format_version": FORMAT, "activation": act}, indent=1, sort_keys=True)
    save_file(tensors, folder / f"{WEIGHTS}.tmp")
    (folder / f"{FACTS}.tmp").write_text(text + "\n")
    for name in (WEIGHTS, FACTS):  # the facts last: without them the folder is no checkpoint yet
        (folder / f"{name}.tmp").replace(folder / name)


def rounded(sae: Form, dtype: torch.dtype) -> Form:
    """The SAE as it will be after saving in `dtype` and reading back."""
    if isinstance(sae, PursuitSAE):
        return PursuitSAE(sae.W_dec.to(dtype).float(), sae.b_dec, sae.k)
    return DenseSAE(sae.W_enc.to(dtype).float(), sae.b_enc, sae.W_dec.to(dtype).float(), sae.b_dec, sae.b_pre, sae.act)


def activation(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Activation:
    """The activation function a native file describes.

    Raises:
        CheckpointError: Unknown name or missing numbers.
    """
    name = facts.get("name")
    if name == "relu":
        return ReLU()
    if name == "topk" and type(facts.get("k")) is int and facts["k"] > 0:
        return TopK(facts["k"])
    if name == "jumprelu" and "threshold" in tensors:
        return JumpReLU(tensors["threshold"])
    raise CheckpointError(f"activation {name!r} in {FACTS} cannot be used", "the file is damaged or from a newer version")
