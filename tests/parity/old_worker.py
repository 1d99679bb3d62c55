"""`python -m tests.parity.old_worker FOLDER`, with an old SAELens on the path: a checkpoint and its numbers for every variant."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.parity.shared import D_IN, D_SAE, HOOK, LM, K, P, fill, tokens

SCALE = 2.0
TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("float32", {}),
    "standard kept": ("b_dec not subtracted", {"apply_b_dec_to_input": False}),
    "standard half": ("bfloat16", {"dtype": "torch.bfloat16"}),
    "standard layer": ("layer_norm", {"normalize_activations": "layer_norm"}),
    "standard rescale": ("constant_norm_rescale", {"normalize_activations": "constant_norm_rescale"}),
    "standard average": ("expected_average_only_in", {"normalize_activations": "expected_average_only_in"}),
    "standard z": ("hook_z", {"hook_name": "blocks.2.attn.hook_z"}),
    "standard tanh": ("tanh-relu", {"activation_fn_str": "tanh-relu"}),
    "standard finetuned": ("finetuning_scaling_factor", {"finetuning_scaling_factor": True}),
    "standard topk": ("topk under its older name", TOPK),
    "standard topk half": ("topk under its older name, bfloat16", TOPK | {"dtype": "torch.bfloat16"}),
    "gated": ("float32", {}),
    "gated kept": ("b_dec not subtracted", {"apply_b_dec_to_input": False}),
    "jumprelu": ("float32", {}),
    "jumprelu kept": ("b_dec not subtracted", {"apply_b_dec_to_input": False}),
    "jumprelu half": ("bfloat16", {"dtype": "torch.bfloat16"}),
    "topk": ("float32", TOPK),
    "topk kept": ("b_dec not subtracted", TOPK | {"apply_b_dec_to_input": False}),
}
SINCE_FIVE = ("topk", "topk kept")  # before, there is no such architecture
DIVIDES_B_DEC = "standard average"  # version 3 leaves b_dec as it is when it folds the factor, so its numbers are not those of training


def write(folder: Path, name: str) -> None:
    """Saved by the library, and what it computes of the file."""
    from sae_lens.sae import SAE, SAEConfig

    cfg = {
        "architecture": name.split()[0],
        "d_in": D_IN,
        "d_sae": D_SAE,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "context_size": 128,
        "model_name": LM,
        "hook_name": HOOK,
        "hook_layer": 2,
        "hook_head_index": None,
        "prepend_bos": True,
        "dataset_path": "",
        "dataset_trust_remote_code": False,
        "normalize_activations": "none",
        "dtype": "torch.float32",
        "device": "cpu",
        "sae_lens_training_version": None,
    } | VARIANTS[name][1]
    sae = SAE(SAEConfig.from_dict(cfg))
    values = P | {"finetuning_scaling_factor": 0.5 + P["threshold"]}
    fill(sae, {n: values[n] for n in sae.state_dict()})
    sae.save_model(str(folder))
    if not cfg["finetuning_scaling_factor"]:  # written under a name that no version reads back
        sae = getattr(SAE, "load_from_disk", SAE.load_from_pretrained)(str(folder), dtype="float32")
    scaled = cfg["normalize_activations"] == "expected_average_only_in"
    if scaled:
        sae.fold_activation_norm_scaling_factor(SCALE)
    x = tokens(cfg["apply_b_dec_to_input"], SCALE if scaled else 1.0)
    codes = sae.encode(x.view(len(x), 4, -1) if cfg["hook_name"].endswith("_z") else x)
    torch.save({"x": x, "codes": codes, "recon": sae.decode(codes).reshape(x.shape)}, folder / "expected.pt")


if __name__ == "__main__":
    import sae_lens

    out, release, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sae_lens.__version__ != release:
        raise SystemExit(f"this is sae-lens {sae_lens.__version__}, not {release}")
    warnings.simplefilter("ignore")
    with torch.no_grad():
        for each in names:
            (out / each).mkdir()
            write(out / each, each)
