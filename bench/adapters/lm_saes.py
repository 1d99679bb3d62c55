"""lm-saes of 2025 (Llama Scope R1-Distill): `config.json` with `sae_type`, and `sae_weights` of two linear layers."""

from __future__ import annotations

from pathlib import Path

from bench.adapters import Given
from bench.adapters.build import agree, name_of, precision, switch, transposed, word
from bench.adapters.files import only, peek_json, peek_keys, read_json, take
from bench.adapters.openmoss import NORM, activation, average_of, bias, of_raw_inputs, refuse
from bench.adapters.openmoss_files import CONFIG, HYPERPARAMETERS, chosen, home, newer, tensors_of, weights_in
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "lm_saes"
_LOG = "log_jumprelu_threshold"


def _home(path: Path) -> tuple[Path, str] | None:
    """The folder, and its config: `hyperparams.json` at first, when weights already were those of this generation."""
    if (folder := home(path)) and "sae_type" in peek_json(folder, CONFIG):
        keys = peek_keys(folder / weights_in(folder)[0])
        return (folder, CONFIG) if "encoder.weight" in keys and "W_E" not in keys else None
    folder = home(path, HYPERPARAMETERS)
    return (folder, HYPERPARAMETERS) if folder and newer(folder) else None


def sniff(path: Path) -> bool:
    """A config that names its sae_type, and weights with the names of this generation."""
    return _home(path) is not None


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE of raw activations; what its decoder returns is brought back to their scale too."""
    folder, config = _home(path) or (path, CONFIG)
    cfg, (name, odd) = read_json(folder, config), chosen(path, folder)
    refuse(cfg)
    tensors, hook = tensors_of(folder, name), word(cfg.get("hook_point_in"))
    kind = word(cfg.get("act_fn")).lower()
    jump = [_LOG] if kind == "jumprelu" else []
    averages = (k for k in tensors if k.startswith(f"{NORM}."))
    only(tensors, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", *jump, *averages)
    b_enc = take(tensors, "encoder.bias", (None,))
    d_sae = len(b_enc)
    d_in = take(tensors, "encoder.weight", (d_sae, None)).shape[1]
    agree(cfg, "d_model", d_in)
    W_enc, W_dec = transposed(tensors, "encoder.weight", "decoder.weight", d_in, d_sae)
    b_dec = bias(tensors, "decoder.bias", cfg, d_in)
    b_pre = b_dec if switch(cfg, "apply_decoder_bias_to_pre_encoder") else b_dec.new_zeros(d_in)
    act = activation(cfg, take(tensors, _LOG, (d_sae,)) if jump else None, given, W_dec)
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, b_pre, act)
    sae, said = of_raw_inputs(sae, cfg.get("norm_activation", "dataset-wise"), average_of(tensors, hook), given)
    return Loaded(
        sae, FORMAT, kind, name_of(folder), word(cfg.get("model_name")), hook, said, (*odd, *precision(tensors["decoder.weight"]))
    )
