"""SAELens versions 1 to 5: the same two files with a flat `cfg.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import in_frames, input_scale, name_of, per_token, scale_folded, topk, word
from bench.adapters.files import DAMAGED, folder_of, read_json, read_safetensors
from bench.adapters.sae_lens_parts import CONFIG, WEIGHTS, base, finetuned, generation, plain, refuse_other_output
from bench.errors import CheckpointError
from bench.sae.activations import ReLU, TanhReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "sae_lens_legacy"


def sniff(path: Path) -> bool:
    """Both files are there, and the config has no metadata block."""
    return generation(path) == "legacy"


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE; what the config leaves out has the defaults of its time."""
    folder = folder_of(path, WEIGHTS, CONFIG) or path
    cfg, tensors = read_json(folder, CONFIG), read_safetensors(folder, WEIGHTS)
    hook, lm = _hook(cfg), word(cfg.get("model_name"))
    refuse_other_output(cfg, hook)
    kind = cfg.get("normalize_activations")
    s, normalisation = input_scale("none" if (norm := per_token(kind)) else kind, given)
    rest, factor, odd = finetuned(cfg, tensors)
    architecture = word(cfg.get("architecture", "standard"))
    function = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if architecture == "topk" or (architecture == "standard" and function == "topk"):  # most releases call top-k "standard"
        architecture, function = "topk", "topk"
    sae = scale_folded(_build(architecture, function, cfg, rest, given), s)
    if factor is not None:
        if factor.shape != (sae.d_sae,):
            raise CheckpointError(f"the fine-tuning factor has {len(factor)} numbers for {sae.d_sae} latents", DAMAGED)
        sae = replace(sae, W_dec=sae.W_dec * factor[:, None])  # the library decodes code times factor, and reports the code
    if norm:
        sae, normalisation = in_frames(sae, norm)
    facts = {k: cfg[k] for k in ("context_size", "prepend_bos", "dataset_path", "sae_lens_version") if k in cfg}
    return Loaded(sae, FORMAT, architecture, name_of(folder), lm, hook, normalisation, odd, facts)


def _build(architecture: str, function: object, cfg: dict[str, Any], tensors: Mapping[str, Tensor], given: Given) -> DenseSAE:
    if architecture == "topk":
        options = cfg.get("activation_fn_kwargs")
        sae = base(tensors, cfg, ReLU())
        return replace(sae, act=topk(options.get("k") if isinstance(options, dict) else None, given, sae.d_sae))
    if architecture == "standard" and function == "tanh-relu":
        return base(tensors, cfg, TanhReLU())
    if function != "relu":
        raise CheckpointError(f"activation {function!r} of a {architecture} SAE is not supported", "give one with relu or topk")
    if (sae := plain(architecture, tensors, cfg)) is None:
        raise CheckpointError(f"architecture {architecture!r} is not supported", "supported: standard, topk, jumprelu, gated")
    return sae


def _hook(cfg: dict[str, Any]) -> str:
    hook = word(cfg.get("hook_name")) or word(cfg.get("hook_point"))
    layer = cfg.get("hook_layer", cfg.get("hook_point_layer"))
    head = cfg.get("hook_head_index", cfg.get("hook_point_head_index"))
    return hook.replace("{layer}", str(layer)) + (f"[head {head}]" if head is not None else "")
