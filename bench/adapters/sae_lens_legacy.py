"""SAELens versions 1 to 5: the same two files with a flat `cfg.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import input_scale, name_of, precision, scale_folded, topk, word
from bench.adapters.files import folder_of, read_json, read_safetensors, take
from bench.adapters.sae_lens_parts import CONFIG, WEIGHTS, base, generation, plain, refuse_other_output
from bench.errors import CheckpointError
from bench.sae.activations import ReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "sae_lens_legacy"
_FINETUNED = ("scaling_factor", "finetuning_scaling_factor")


def sniff(path: Path) -> bool:
    """Both files are there, and the config has no metadata block."""
    return generation(path) == "legacy"


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE; what the config leaves out has the defaults of its time."""
    folder = folder_of(path, WEIGHTS, CONFIG) or path
    cfg, tensors = read_json(folder, CONFIG), read_safetensors(folder, WEIGHTS)
    hook, lm = _hook(cfg), word(cfg.get("model_name"))
    refuse_other_output(cfg, hook)
    s, normalisation = input_scale(cfg.get("normalize_activations"), given)
    rest, odd = _without_ones(cfg, tensors)
    architecture = word(cfg.get("architecture", "standard"))
    function = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if architecture == "topk" or (architecture == "standard" and function == "topk"):  # most releases call top-k "standard"
        architecture, function = "topk", "topk"
    sae = _build(architecture, function, cfg, rest, given)
    facts = {k: cfg[k] for k in ("context_size", "prepend_bos", "dataset_path", "sae_lens_version") if k in cfg}
    return Loaded(scale_folded(sae, s), FORMAT, architecture, name_of(folder), lm, hook, normalisation, odd, facts)


def _build(architecture: str, function: object, cfg: dict[str, Any], tensors: Mapping[str, Tensor], given: Given) -> DenseSAE:
    if architecture == "topk":
        options = cfg.get("activation_fn_kwargs")
        sae = base(tensors, cfg, ReLU())
        return replace(sae, act=topk(options.get("k") if isinstance(options, dict) else None, given, sae.d_sae))
    if function != "relu":
        raise CheckpointError(f"activation {function!r} of a {architecture} SAE is not supported", "give one with relu or topk")
    if (sae := plain(architecture, tensors, cfg)) is None:
        raise CheckpointError(f"architecture {architecture!r} is not supported", "supported: standard, topk, jumprelu, gated")
    return sae


def _without_ones(cfg: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors without a fine-tuning factor that changes nothing; any other factor is refused."""
    for name in _FINETUNED:
        if name in tensors and bool((take(tensors, name, (None,)) != 1).any()):
            used = "which its releases apply to the codes before decoding" if cfg.get(_FINETUNED[1]) else "which its config leaves unused"
            raise CheckpointError(f"the file holds a {name} other than 1, {used}", "fold it into W_dec and save the SAE without it")
    odd = tuple(f"{name} is 1 for all latents and ignored" for name in _FINETUNED if name in tensors)
    return {k: v for k, v in tensors.items() if k not in _FINETUNED}, (*odd, *precision(tensors.get("W_dec")))


def _hook(cfg: dict[str, Any]) -> str:
    hook = word(cfg.get("hook_name")) or word(cfg.get("hook_point"))
    layer = cfg.get("hook_layer", cfg.get("hook_point_layer"))
    head = cfg.get("hook_head_index", cfg.get("hook_point_head_index"))
    return hook.replace("{layer}", str(layer)) + (f"[head {head}]" if head is not None else "")
