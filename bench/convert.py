"""An SAE in another library's files, bit for bit: what is written is read back and compared before it is kept."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.adapters import Given, open_checkpoint
from bench.adapters.remarks import REMARKS
from bench.errors import CheckpointError, ResourceError, UsageError, VerificationError
from bench.lm.hooks import known_hook
from bench.sae import checkpoint
from bench.sae.activations import AbsTopK, JumpReLU, ReLU, TopK
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE
from bench.sae.greedy import GreedySAE

_LENS = "6.0.0"  # whose files these are; without it SAELens takes the config for one of version 5 and drops the hook
_NORMS = {"layer_norm": "layer_norm", "unit_norm": "constant_norm_rescale"}  # ours → SAELens'
_SITES = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "attention_out"}  # ours → dictionary_learning's


def convert(loaded: Loaded, folder: Path, to: str, k: int | None = None) -> str:
    """Write an SAE in another format.

    Args:
        loaded: What an adapter read.
        folder: New or empty.
        to: A name of `TARGETS`.
        k: What dictionary_learning stores as the k of a BatchTopK SAE; that of training where the checkpoint holds it.

    Returns:
        SHA-256 of the SAE, which is that of the source.

    Raises:
        UsageError: Unknown format, or the folder holds something.
        CheckpointError: The format cannot hold this SAE.
        ResourceError: The folder cannot be written.
        VerificationError: What was written does not read back as the same SAE.
    """
    if to not in TARGETS:
        raise UsageError(f"unknown format {to!r}", f"choose one of {', '.join(TARGETS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not empty", "give a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            draft = Path(work) / folder.name
            draft.mkdir()
            TARGETS[to](loaded, draft, k)
            found, wanted = open_checkpoint(draft, Given()).sae.sha256, loaded.sae.sha256
            if found != wanted:
                raise VerificationError(f"the {to} files read back as another SAE ({found[:12]}, not {wanted[:12]})", "please report it")
            if folder.exists():
                folder.rmdir()
            shutil.move(draft, folder)
    except OSError as e:
        raise ResourceError(f"{folder} cannot be written: {e.strerror}", "check the disk and the permissions") from e
    return wanted


def _native(loaded: Loaded, folder: Path, _k: int | None) -> None:
    facts = {"name": loaded.name, "method": loaded.facts.get("method", loaded.architecture), "lm": loaded.lm, "hook": loaded.hook}
    checkpoint.save(loaded.sae, folder, {**loaded.facts, **facts, REMARKS: _remarks(loaded)})


def _sae_lens(loaded: Loaded, folder: Path, _k: int | None) -> None:
    """SAELens 6: `cfg.json` and `sae_weights.safetensors`, in the form that its `save_inference_model` writes."""
    sae = loaded.sae
    architecture, more, extra = _lens_function(sae)
    metadata = {
        "model_name": loaded.lm or None,
        "hook_name": str(hook) if (hook := known_hook(loaded.hook)) else loaded.hook or None,
        "sae_lens_version": _LENS,
        "training_architecture": loaded.architecture,
        "converted_from": loaded.format,
        REMARKS: _remarks(loaded),
    }
    cfg = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": _subtracts(sae, "SAELens"),
        "normalize_activations": _NORMS[sae.norm.kind] if isinstance(sae, DenseSAE) and sae.norm else "none",
        "reshape_activations": "none",
        "metadata": metadata,
        **more,
    }
    own = ("W_enc", "b_enc", "W_dec", "b_dec") if isinstance(sae, DenseSAE) else ("W_dec", "b_dec")
    save_file({**{n: _plain(getattr(sae, n)) for n in own}, **extra}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg, indent=1, default=str) + "\n")


def _lens_function(sae: Any) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """SAELens' name of the architecture, its config keys and its further tensors."""
    if isinstance(sae, GreedySAE) and sae.rule.positive:
        rule = sae.rule
        keys = {"max_iterations": rule.k, "residual_threshold": rule.residual, "stop_on_duplicate_support": rule.distinct}
        return "matching_pursuit", keys, {}
    if isinstance(sae, DenseSAE):
        act = sae.act
        if isinstance(act, ReLU):
            return "standard", {}, {}
        if isinstance(act, JumpReLU):
            return "jumprelu", {}, {"threshold": _plain(act.threshold.expand(sae.d_sae))}
        if isinstance(act, TopK | AbsTopK):
            name = "topk" if isinstance(act, TopK) else "abstopk"
            return name, {"k": act.k, "rescale_acts_by_decoder_norm": False}, {}
    raise _cannot("SAELens", sae)


def _dictionary_learning(loaded: Loaded, folder: Path, k: int | None) -> None:
    """dictionary_learning: `ae.pt` and `config.json`, as its training loop writes them."""
    sae = loaded.sae
    if not isinstance(sae, DenseSAE) or sae.norm:
        raise _cannot("dictionary_learning", sae)
    kind, state = _dictionary_class(sae, k or _trained_k(loaded.facts))
    hook = known_hook(loaded.hook)
    place = {"layer": hook.layer, "submodule_name": f"{_SITES[hook.site]}_layer_{hook.layer}"} if hook else {}
    stored = {"k": int(state["k"])} if "k" in state else {}
    trainer = {"dict_class": kind, "activation_dim": sae.d_in, "dict_size": sae.d_sae, "lm_name": loaded.lm, **place, **stored}
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}, REMARKS: _remarks(loaded)}, indent=1) + "\n")


def _dictionary_class(sae: DenseSAE, k: int | None) -> tuple[str, dict[str, Tensor]]:
    """The dictionary class that is this SAE, and its state dict."""
    act, subtracts = sae.act, _subtracts(sae, "dictionary_learning")
    linear = {"encoder.weight": _plain(sae.W_enc.T), "encoder.bias": _plain(sae.b_enc), "decoder.weight": _plain(sae.W_dec.T)}
    b_dec = _plain(sae.b_dec)
    if isinstance(act, ReLU):
        return ("AutoEncoder", {"bias": b_dec, **linear}) if subtracts else ("AutoEncoderNew", {**linear, "decoder.bias": b_dec})
    if isinstance(act, TopK) and subtracts:
        return "AutoEncoderTopK", {**linear, "b_dec": b_dec, **_counted(act.k, torch.tensor(-1.0))}
    if isinstance(act, JumpReLU):
        threshold = act.threshold.expand(sae.d_sae)
        if not subtracts or not bool(b_dec.any()):
            names = ("W_enc", "b_enc", "W_dec", "b_dec")
            return "JumpReluAutoEncoder", {**{n: _plain(getattr(sae, n)) for n in names}, "threshold": _plain(threshold)}
        if bool((threshold == threshold[0]).all()) and float(threshold[0]) >= 0:
            if k is None:
                raise CheckpointError("dictionary_learning stores the k of a BatchTopK SAE; this checkpoint has none", "give --trained-k")
            return "BatchTopKSAE", {**linear, "b_dec": b_dec, **_counted(k, threshold[0].clone())}
    raise _cannot("dictionary_learning", sae)


def _counted(k: int, threshold: Tensor) -> dict[str, Tensor]:
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold}


def _cannot(library: str, sae: Any) -> CheckpointError:
    norm = f" of normalised tokens ({sae.norm.kind})" if isinstance(sae, DenseSAE) and sae.norm else ""
    vector = " with one threshold per latent" if isinstance(sae.act, JumpReLU) else ""
    subtracted = " that subtracts b_dec" if bool(sae.b_pre.any()) else ""
    return CheckpointError(
        f"{library} has no SAE with the activation {sae.act.name}{vector}{norm}{subtracted} and the same numbers", "choose --to native"
    )


def _subtracts(sae: Any, library: str) -> bool:
    """Whether b_dec is subtracted from the input; what else could be subtracted fits in no other library's files."""
    if torch.equal(sae.b_pre, sae.b_dec):
        return True
    if bool(sae.b_pre.any()):
        raise CheckpointError(f"it subtracts a vector that is not b_dec, which {library} cannot", "choose --to native")
    return False


def _remarks(loaded: Loaded) -> list[str]:
    """What the new files do not show: oddities, and a normalisation that is in the weights now."""
    folded = loaded.normalisation != "none" and getattr(loaded.sae, "norm", None) is None
    return [*loaded.oddities, *([f"input normalisation before conversion: {loaded.normalisation}"] if folded else [])]


def _trained_k(facts: Mapping[str, Any]) -> int | None:
    """The k of training, where the facts of a checkpoint hold it: at the top, or in the method or what it builds on."""
    found: Any = facts
    while isinstance(found, Mapping):
        if type(found.get("k")) is int:
            return found["k"]
        found = found.get("method") if isinstance(found.get("method"), Mapping) else found.get("base")
    return None


def _plain(t: Tensor) -> Tensor:
    return t.detach().cpu().float().clone(memory_format=torch.contiguous_format)


TARGETS: Mapping[str, Callable[[Loaded, Path, int | None], None]] = {
    "native": _native,
    "sae_lens": _sae_lens,
    "dictionary_learning": _dictionary_learning,
}
