"""dictionary_learning (saprmarks): `config.json` and `ae.pt`, or `checkpoints/ae_STEP.pt` below the config."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bench.adapters import Given
from bench.adapters.build import agree, name_of, precision, word
from bench.adapters.dictionary_classes import CLASSES
from bench.adapters.files import folder_of, holds, peek_json, read_json, read_pt
from bench.adapters.remarks import remarks
from bench.errors import CheckpointError
from bench.sae.checkpoint import Loaded

FORMAT = "dictionary_learning"
_STEP = re.compile(r"ae_\d+\.pt")


def sniff(path: Path) -> bool:
    """`ae.pt` beside its config, or one saved step below it; an unreadable config is left to `load` to report."""
    if folder_of(path, "ae.pt", "config.json") is not None:
        config = peek_json(path if os.path.isdir(path) else path.parent, "config.json")
        return not config or "trainer" in config
    return bool(_STEP.fullmatch(path.name)) and holds(path.parent, path.name) and holds(path.parent.parent, "config.json")


def load(path: Path, given: Given) -> Loaded:
    """Read one dictionary as its forward pass uses it: decoder norms are not folded into the codes."""
    home = folder_of(path, "ae.pt", "config.json")
    where, name = (home, "ae.pt") if home else (path.parent, path.name)
    home = home or path.parent.parent
    config = read_json(home, "config.json")
    trainer, buffer = (_section(config, key) for key in ("trainer", "buffer"))
    kind = word(trainer.get("dict_class"))
    if buffer.get("io") == "in_and_out":
        raise CheckpointError("buffer.io is in_and_out: a transcoder, not an SAE", "give an SAE")
    if kind not in CLASSES:
        raise CheckpointError(f"dict_class {kind or '(none)'} is not supported", f"supported: {', '.join(CLASSES)}")
    state = read_pt(where, name)
    if isinstance(state.get("ae"), dict):
        raise CheckpointError(f"{name} is a backup for resuming, with biases in training units", "give the finished ae.pt")
    sae, oddities = CLASSES[kind](state, trainer, given)
    agree(trainer, "activation_dim", sae.d_in)
    agree(trainer, "dict_size", sae.d_sae)
    hook = _hook(trainer)
    if hook and buffer.get("io") == "in":
        hook, oddities = "", (*oddities, f"trained on the input of {hook}, not on its output")
    step = f"-{path.stem}" if name != "ae.pt" else ""
    weights = state.get("decoder.weight", state.get("W_dec"))
    return Loaded(
        sae,
        FORMAT,
        kind,
        name_of(home, 2) + step,
        word(trainer.get("lm_name")),
        hook,
        oddities=(*oddities, *remarks(config), *precision(weights)),
        facts={k: trainer[k] for k in ("trainer_class", "steps", "lr", "seed", "k") if k in trainer},
    )


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _hook(trainer: dict[str, Any]) -> str:
    """The submodule's name; the layer alone says nothing of the site."""
    name, layer = word(trainer.get("submodule_name")), trainer.get("layer")
    if name and not re.search(r"\d", name) and isinstance(layer, int):
        return f"{name}_layer_{layer}"
    return name
