"""Checkpoint formats: one file of this package per format, found by name; `open_checkpoint` chooses among them."""

from __future__ import annotations

import importlib
import math
import os
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from bench import progress
from bench.errors import BenchError, CheckpointError, one_line
from bench.sae.activations import JumpReLU
from bench.sae.checkpoint import Loaded

GROUP = "ortsae_bench.adapters"
_DEPTH, _FOLDERS, _FILES, _SHOWN = 6, 1000, 200, 5
SINGLE = (".pt", ".pth", ".npz", ".safetensors")
_SAME = 1e-4  # relative difference between thresholds that are one
_LABEL = 200  # characters; names from a file end up in tables
_SPELLED = "give the folder that holds the weights and their config"


@dataclass(frozen=True)
class Given:
    """Facts that a checkpoint may lack, as the user gave them by flag.

    Args:
        k: Active latents per token (`--k`).
        threshold: Inference threshold of a BatchTopK SAE (`--threshold`).
        norm_scale: Factor on the input that the SAE was trained with (`--norm-scale`).
        scale_source: Where the factor is from, in words.
    """

    k: int | None = None
    threshold: float | None = None
    norm_scale: float | None = None
    scale_source: str = "given"


@runtime_checkable
class Adapter(Protocol):
    """What a file of this package offers, and what an entry point of the group points at.

    `sniff` is cheap, executes nothing and never raises; `load` raises `CheckpointError` only.
    """

    FORMAT: str

    def sniff(self, path: Path) -> bool: ...
    def load(self, path: Path, given: Given) -> Loaded: ...


def _own() -> Iterator[Adapter]:
    """The modules of this package that name a format, by file name; the others are shared pieces."""
    for name in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "FORMAT"):
            yield cast(Adapter, module)


@cache
def plugins() -> tuple[Adapter, ...]:
    """Adapters of other distributions, by name; one that fails to import is reported and left out."""
    found: list[Adapter] = []
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            adapter = point.load()
            if not isinstance(adapter, Adapter):
                raise TypeError("it offers no FORMAT, sniff and load")
        except Exception as e:  # whatever a plugin does wrong must not keep ours from working
            progress.note("adapter plugin left out", plugin=point.name, why=f"{type(e).__name__}: {e}")
        else:
            found.append(adapter)
    return tuple(found)


ADAPTERS: tuple[Adapter, ...] = tuple(_own())


def open_checkpoint(path: Path, given: Given) -> Loaded:
    """Read an SAE from a folder or one of its files, whatever the format.

    Raises:
        CheckpointError: Nothing there, an unknown or unsupported format, damage, or facts missing.
    """
    from bench.adapters.build import checked

    path = Path(path)
    if not os.path.exists(path):
        raise CheckpointError(f"there is nothing at {path}", "check the path given to --sae")
    adapter = _choose(path)
    if adapter is None:
        raise _unknown(path)
    try:
        loaded = adapter.load(path.absolute(), given)
        checked(loaded.sae)
    except BenchError:
        raise
    except Exception as e:  # the promise of one error type must hold for plugins and for bugs of ours
        raise CheckpointError(f"the {adapter.FORMAT} checkpoint at {path} cannot be read: {type(e).__name__}: {e}", _SPELLED) from e
    _flags_used(loaded, given)
    return _printable(loaded)


def _printable(loaded: Loaded) -> Loaded:
    """The same, with the texts that come from the file fit for a terminal and a table."""
    names = ("format", "architecture", "name", "lm", "hook", "normalisation")
    texts: dict[str, Any] = {n: one_line(getattr(loaded, n), _LABEL) for n in names}
    facts = {k: one_line(v, _LABEL) if isinstance(v, str) else v for k, v in loaded.facts.items()}
    return replace(loaded, **texts, oddities=tuple(one_line(o) for o in loaded.oddities), facts=facts)


def _choose(path: Path) -> Adapter | None:
    path = path.absolute()  # formats look into the folder above, which a bare name does not have
    for adapter in (*ADAPTERS, *plugins()):
        try:
            if adapter.sniff(path):
                return adapter
        except Exception as e:
            progress.note("adapter failed to look", adapter=adapter.FORMAT, why=f"{type(e).__name__}: {e}")
    return None


def _unknown(path: Path) -> CheckpointError:
    """Why nothing could be opened: several SAEs below, a known format that is not supported, or nothing known."""
    from bench.adapters.files import inside
    from bench.adapters.impostors import in_place
    from bench.adapters.unsupported import recognise

    if os.path.isfile(path):
        inside(path.parent, path.name)  # nobody looks into a link that leaves its folder, so its reason comes first
    if below := several(path):
        shown = ", ".join(str(p.relative_to(path)) for p in below[:_SHOWN]) + (", …" if len(below) > _SHOWN else "")
        return CheckpointError(f"{path} holds no SAE itself but {len(below)} below it: {shown}", "give one of them")
    if why := in_place(path):
        return CheckpointError(*why)
    if foreign := recognise(path):
        return CheckpointError(
            f"{path} holds {foreign}", "give the whole folder of an SAE, convert it to a supported format, or add an adapter"
        )
    formats = ", ".join(a.FORMAT for a in (*ADAPTERS, *plugins()))
    return CheckpointError(f"no SAE checkpoint is recognised at {path}; looked for {formats}", _SPELLED)


def several(path: Path) -> list[Path]:
    """The SAEs in a folder that is none itself, such as a sweep: folders and single files, in natural order.

    Links to folders are not followed; these, and files of weights that no format takes, are named in a progress note.

    Raises:
        CheckpointError: There are too many folders to look into.
    """
    found: list[Path] = []
    left: list[Path] = []
    if not os.path.isdir(path) or _choose(path) is not None:
        return found
    for seen, (folder, names, _) in enumerate(os.walk(path)):
        if seen >= _FOLDERS:
            raise CheckpointError(f"{path} holds more than {_FOLDERS:,} folders", "give a folder further down")
        here = Path(folder)
        if here != path and _choose(here) is not None:
            found.append(here)
            names.clear()
            continue
        for file in _single_files(here):
            (left if _choose(file) is None else found).append(file)
        left += [here / n for n in names if (here / n).is_symlink()]
        names[:] = sorted(names, key=_natural) if len(here.relative_to(path).parts) < _DEPTH else []
    if found and left:
        progress.note("not read as SAEs", number=len(left), among=[one_line(p.relative_to(path), _LABEL) for p in left[:_SHOWN]])
    return found


def _single_files(folder: Path) -> list[Path]:
    """Files of a folder that could be SAEs by themselves.

    Raises:
        CheckpointError: There are too many to look into.
    """
    from bench.adapters.files import names_in

    names = names_in(folder, SINGLE, _FILES + 1)
    if len(names) > _FILES:
        raise CheckpointError(f"{folder} holds more than {_FILES} files of weights", "give one of the files")
    return [folder / n for n in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts trainer_2 before trainer_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]


def _has_threshold(loaded: Loaded, given: float) -> bool:
    """Whether the one threshold of an SAE is the given one, of pre-activations or (BatchTopK) of those times decoder norms."""
    act = loaded.sae.act
    if not isinstance(act, JumpReLU):
        return False
    if bool((act.threshold == act.threshold[0]).all()):
        return math.isclose(float(act.threshold[0]), given, rel_tol=1e-5, abs_tol=1e-30)  # the file has float32
    norms = loaded.sae.W_dec.norm(dim=1)
    times_norms = (act.threshold * norms)[norms > 0]
    return "batchtopk" in loaded.architecture.lower() and bool((times_norms / times_norms[:1] - 1).abs().max() < _SAME)


def _flags_used(loaded: Loaded, given: Given) -> None:
    """Refuse a flag that changed nothing: it was meant for another SAE, or this one is not what the user thinks."""
    act, per_token = loaded.sae.act, getattr(loaded.sae, "norm", None)
    unused = {
        "--k": given.k is not None and given.k != getattr(act, "k", None),
        "--threshold": given.threshold is not None and not _has_threshold(loaded, given.threshold),
        "--norm-scale": given.norm_scale is not None and (loaded.normalisation == "none" or per_token is not None),
    }
    for flag in (name for name, is_unused in unused.items() if is_unused):
        raise CheckpointError(f"{flag} does not apply to this {loaded.architecture} SAE of format {loaded.format}", f"leave out {flag}")
