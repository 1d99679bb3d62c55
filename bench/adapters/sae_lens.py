"""SAELens since version 6: `cfg.json` with a `metadata` block, and `sae_weights.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import batch_threshold, input_scale, name_of, norms_folded, precision, scale_folded, switch, topk, word
from bench.adapters.files import folder_of, peek_json, read_json, read_safetensors, take
from bench.adapters.sae_lens_parts import CONFIG, WEIGHTS, base, generation, plain, refuse_other_output
from bench.errors import CheckpointError
from bench.sae.activations import ReLU
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "sae_lens"
_WHY_NOT = {
    "abstopk": "keeps negative codes",
    "matching_pursuit": "chooses latents one after the other, not by one linear encoder",
    "temporal": "needs whole sequences, not single tokens",
}


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
    s, normalisation = input_scale(cfg.get("normalize_activations"), given, f" (activation_scaler.json says {known})" if known else "")
    sae = _build(architecture, cfg, tensors, given, s)
    trained = word(meta.get("training_architecture")) or architecture
    odd = (f"{architecture} training save, read as the inference form it stands for",) if "batchtopk" in architecture else ()
    lm, name = word(meta.get("model_name")), name_of(folder)
    facts = {k: v for k, v in meta.items() if k not in ("model_name", "hook_name") and v is not None}
    return Loaded(sae, FORMAT, trained, name, lm, hook, normalisation, (*odd, *precision(tensors["W_dec"])), facts)


def _build(architecture: str, cfg: dict[str, Any], tensors: Mapping[str, Tensor], given: Given, s: float) -> DenseSAE:
    """The SAE of raw x. The factor s comes before decoder norms are folded, so that codes are in units of raw x."""
    rescale = switch(cfg, "rescale_acts_by_decoder_norm")  # versions without the key never did
    if architecture == "standard" and cfg.get("activation_fn", "relu") not in ("relu", None):
        raise CheckpointError(f"activation_fn {cfg['activation_fn']!r} contradicts architecture standard", "save it again")
    if (sae := plain(architecture, tensors, cfg)) is not None:
        return scale_folded(sae, s)
    if architecture == "topk":
        sae = scale_folded(base(tensors, cfg, ReLU()), s)
        sae = replace(sae, act=topk(cfg.get("k"), given, sae.d_sae))
        return norms_folded(sae) if rescale else sae
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        sae = scale_folded(base(tensors, cfg, ReLU(), "topk_threshold"), s)
        stored = float(take(tensors, "topk_threshold", ())) / (s if rescale else 1.0) if "topk_threshold" in tensors else 0.0
        sae = replace(sae, act=batch_threshold(stored if stored > 0 else None, given, sae.d_sae))  # training starts from 0
        return norms_folded(sae) if rescale else sae
    why = _WHY_NOT.get(architecture, "is not known")
    raise CheckpointError(f"architecture {architecture!r} is not supported: it {why}", "give another SAE")
