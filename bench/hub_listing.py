"""Which files of a repository are one SAE, by their names alone: nothing is fetched to find out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
CONFIGS = ("config.json", "cfg.json", "hyperparams.json", "lm_config.json")
_FACTS = (".json", ".yaml", ".yml")
_MAIN = frozenset({"sae_weights.safetensors", "sae.safetensors", "params.safetensors", "params.npz", "ae.pt", "sae.pt"})
_TRAINING = frozenset(
    {"sparsity.safetensors", "activations_store_state.safetensors", "trainer_state.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
)
_STEPS = "checkpoints"  # weights below the folder of the config: Llama Scope's, and the steps of dictionary_learning
_SHOWN = 5


def candidates(names: Sequence[str]) -> list[str]:
    """Folders and files of a listing that look like an SAE each, by name alone; "" is the top."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if file.endswith(WEIGHTS) and file not in _TRAINING:
            folders.setdefault(folder, []).append(file)
    out: list[str] = []
    for folder, files in folders.items():
        above, _, last = folder.rpartition("/")
        if last == _STEPS and above in folders:
            continue  # the finished weights lie in the folder above
        if last == _STEPS and _join(above, "hyperparams.json") in names:
            out.append(above)
        elif len(files) == 1 or _MAIN & set(files):
            out.append(folder)
        else:
            out += [_join(folder, f) for f in files]
    return sorted(out)


def needed(names: Sequence[str], chosen: str) -> Iterator[str]:
    """Files of the chosen SAE, with the configs beside and above it."""
    alone = chosen in names
    home = chosen.rpartition("/")[0] if alone else chosen
    above = [str(p) for p in PurePosixPath(home).parents if str(p) != "."] + [""]
    configs = {_join(f, c) for f in (home, *above) for c in CONFIGS} | {chosen.rpartition(".")[0] + "_cfg.json"}
    mine = [n for n in names if n.rpartition("/")[0] == home and n.rpartition("/")[2] not in _TRAINING]
    weights = [n for n in mine if n.endswith(WEIGHTS)] or [n for n in names if n.startswith(_join(home, f"{_STEPS}/"))]
    for name in names:
        if name == chosen or name in configs or (not alone and (name in weights or (name in mine and name.endswith(_FACTS)))):
            yield name


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def near(path: str, names: Sequence[str]) -> str:
    """A remedy that names the nearest folders and files, or the first few."""
    known = sorted({str(p) for n in names for p in (PurePosixPath(n), *PurePosixPath(n).parents)} - {"."})
    shown = get_close_matches(path, known, 3) or [n for n in known if not n.startswith(".")][:_SHOWN]
    return f"there is {', '.join(shown)}" if shown else "the repository is empty"
