"""SAELens since version 6: `cfg.json` with a `metadata` block, and `sae_weights.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import count, in_frames, input_scale, name_of, norms_folded, per_token, precision, scale_folded, switch, word
from bench.adapters.files import folder_of, peek_json, read_json, read_safetensors
from bench.adapters.remarks import REMARKS, remarks
from bench.adapters.sae_lens_parts import CONFIG, WEIGHTS, base, generation, plain, refuse_other_output, trained_in_batches
from bench.adapters.sae_lens_pursuit import pursuit
from bench.errors import CheckpointError
from bench.sae.activations import AbsTopK, ReLU, TopK
from bench.sae.checkpoint import Form, Loaded
from bench.sae.dense import DenseSAE

FORMAT = "sae_lens"


def sniff(path: Path) -> bool:
    """Both files are there, and the config is not flat; an unreadable one is left to `load` to report."""
    return generation(path) == "v6"


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE, inference or training save; decoder norms are folded only where the architecture says so."""
    folder = folder_of(path, WEIGHTS, CONFIG) or path
    cfg, tensors = read_json(folder, CONFIG), read_safetensors(folder, WEIGHTS)
    meta = cfg.get("metadata")
    if not isinstance(meta, dict):
        raise CheckpointError("the metadata block of cfg.json is not an object", "the file is damaged: fetch it again")
    hook, architecture = word(meta.get("hook_name")), word(cfg.get("architecture"))
    refuse_other_output({**meta, **cfg}, hook)
    if (head := meta.get("hook_head_index")) is not None:
        hook = f"{hook}[head {head}]"
    known = peek_json(folder, "activation_scaler.json").get("scaling_factor")
    kind = cfg.get("normalize_activations")
    norm, hint = per_token(kind), f" (activation_scaler.json says {known})" if known else ""
    s, normalisation = input_scale("none" if norm else kind, given, hint)
    sae = _build(architecture, cfg, tensors, given, s)
    if norm and isinstance(sae, DenseSAE):
        sae, normalisation = in_frames(sae, norm)
    elif norm:
        raise CheckpointError(f"{architecture} with input normalisation {kind!r} is not supported", "give an SAE without it")
    trained = word(meta.get("training_architecture")) or architecture
    odd = (f"{architecture} training save, read as the inference form it stands for",) if "batchtopk" in architecture else ()
    odd = (*odd, *remarks(meta), *precision(tensors.get("W_dec")))
    lm, name = word(meta.get("model_name")), name_of(folder)
    facts = {k: v for k, v in meta.items() if k not in ("model_name", "hook_name", REMARKS) and v is not None}
    return Loaded(sae, FORMAT, trained, name, lm, hook, normalisation, odd, facts)


def _build(architecture: str, cfg: dict[str, Any], tensors: Mapping[str, Tensor], given: Given, s: float) -> Form:
    """The SAE of raw x. The factor s comes before decoder norms are folded, so that codes are in units of raw x."""
    rescale = switch(cfg, "rescale_acts_by_decoder_norm")  # versions without the key never did
    if architecture == "standard" and cfg.get("activation_fn", "relu") not in ("relu", None):
        raise CheckpointError(f"activation_fn {cfg['activation_fn']!r} contradicts architecture standard", "save it again")
    if (sae := plain(architecture, tensors, cfg)) is not None:
        return scale_folded(sae, s)
    if architecture == "matching_pursuit":
        return pursuit(tensors, cfg, s)
    if architecture in ("topk", "abstopk"):
        sae = scale_folded(base(tensors, cfg, ReLU()), s)
        k = count(cfg.get("k"), given, sae.d_sae)
        sae = replace(sae, act=TopK(k) if architecture == "topk" else AbsTopK(k))
        return norms_folded(sae) if rescale else sae
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        return trained_in_batches(tensors, cfg, given, s)
    why = "needs whole sequences, not single tokens" if architecture == "temporal" else "is not known"
    raise CheckpointError(f"architecture {architecture!r} is not supported: it {why}", "give another SAE")
