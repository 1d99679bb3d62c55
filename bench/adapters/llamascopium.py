"""llamascopium (lm-saes since version 2): `config.json` with `sae_type`, and `sae_weights` with W_E, b_E, W_D, b_D."""

from __future__ import annotations

from pathlib import Path

from bench.adapters import Given
from bench.adapters.build import agree, name_of, precision, word
from bench.adapters.files import only, peek_json, peek_keys, read_json, take
from bench.adapters.openmoss import NORM, activation, average_of, bias, of_raw_inputs, refuse
from bench.adapters.openmoss_files import CONFIG, chosen, home, tensors_of, weights_in
from bench.sae.checkpoint import Loaded
from bench.sae.dense import DenseSAE

FORMAT = "llamascopium"
_LOG = "activation_function.log_jumprelu_threshold"


def sniff(path: Path) -> bool:
    """A config that names its sae_type, and weights with the names of this generation, or none that can be read."""
    if (folder := home(path)) is None:
        return False
    keys = peek_keys(folder / weights_in(folder)[0])
    return "sae_type" in peek_json(folder, CONFIG) and ("encoder.weight" not in keys or "W_E" in keys)


def load(path: Path, given: Given) -> Loaded:
    """Read one SAE of raw activations; the library's own encoder expects them normalised."""
    folder = home(path) or path
    cfg, (name, odd) = read_json(folder, CONFIG), chosen(path, folder)
    refuse(cfg)
    tensors, hook = tensors_of(folder, name), word(cfg.get("hook_point_in"))
    jump = [_LOG] if word(cfg.get("act_fn")).lower() == "jumprelu" else []
    only(tensors, "W_E", "b_E", "W_D", "b_D", *jump, *(k for k in tensors if k.startswith(f"{NORM}.")))
    b_enc = take(tensors, "b_E", (None,))
    d_sae = len(b_enc)
    W_enc = take(tensors, "W_E", (None, d_sae))
    d_in = len(W_enc)
    agree(cfg, "d_model", d_in)
    agree(cfg, "d_sae", d_sae)
    W_dec, b_dec = take(tensors, "W_D", (d_sae, d_in)), bias(tensors, "b_D", cfg, d_in)
    act = activation(cfg, take(tensors, _LOG, (d_sae,)) if jump else None, given, W_dec)
    sae = DenseSAE(W_enc, b_enc, W_dec, b_dec, b_dec.new_zeros(d_in), act)
    sae, said = of_raw_inputs(sae, cfg.get("norm_activation", "dataset-wise"), average_of(tensors, hook), given)
    kind = word(cfg.get("act_fn")).lower()
    return Loaded(sae, FORMAT, kind, name_of(folder), word(cfg.get("model_name")), hook, said, (*odd, *precision(tensors["W_D"])))
