"""Where the files of OpenMOSS lie: a config, and weights beside it or in `checkpoints/`."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from bench.adapters.files import DAMAGED, holds, peek_keys, read_pt, read_safetensors
from bench.errors import CheckpointError

CONFIG, HYPERPARAMETERS = "config.json", "hyperparams.json"
_BESIDE = ("sae_weights.safetensors", "sae_weights.pt")
_BELOW = tuple(f"checkpoints/{stem}.{kind}" for stem in ("pruned", "final") for kind in ("safetensors", "pt"))


def home(path: Path, config: str = CONFIG) -> Path | None:
    """The folder of the config, given it or a file in it, if weights are there; never raises."""
    folder = path if os.path.isdir(path) else path.parent
    if not os.path.isdir(path) and folder.name == "checkpoints":
        folder = folder.parent
    found = weights_in(folder)
    known = path == folder or path.name == config or any(path == folder / n for n in found)
    return folder if known and found and holds(folder, config) else None


def newer(folder: Path) -> bool:
    """Whether the weights hold thresholds or norms of their own: what lies beside `hyperparams.json` since 2025."""
    keys = peek_keys(folder / weights_in(folder)[0])
    return "log_jumprelu_threshold" in keys or any(k.startswith("dataset_average_activation_norm.") for k in keys)


def weights_in(folder: Path) -> tuple[str, ...]:
    """The weights there are, the ones that the library prefers first."""
    return tuple(n for n in (*_BESIDE, *_BELOW) if holds(folder, n))


def chosen(path: Path, folder: Path) -> tuple[str, tuple[str, ...]]:
    """The weights that are meant, and what to say where there are others."""
    found = weights_in(folder)
    name = next((n for n in found if path == folder / n), found[0])
    others = ", ".join(n for n in found if n != name)
    return name, (f"read {name}, not {others}",) if others else ()


def tensors_of(folder: Path, name: str) -> dict[str, Tensor]:
    """The state of a weights file; `.pt` files hold it under `sae`."""
    if name.endswith(".safetensors"):
        return read_safetensors(folder, name)
    state = read_pt(folder, name).get("sae")
    if not isinstance(state, dict):
        raise CheckpointError(f"{name} holds no state under 'sae'", DAMAGED)
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}
