"""Guarded reading of other people's files: nothing is executed, sizes are bounded, every failure is one `CheckpointError`."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.adapters.bounds import bounded, plain
from bench.adapters.impostors import stands_in
from bench.adapters.zips import DAMAGED, PLAIN, STORED, Words, archive, check_npy, pickled
from bench.errors import BenchError, CheckpointError

_MAX_JSON = 2**20
_MAX_HEADER = 2**18  # of a safetensors file: more than a thousand tensors
_MAX_ENTRIES, _MAX_NAMES, _MAX_PEEKS = 100_000, 5000, 20  # of a folder: entries seen, names kept, files looked into
_NPZ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

Shape = tuple[int | None, ...]


def holds(folder: Path, *names: str) -> bool:
    """Whether every name is a file in the folder; never raises."""
    return all(os.path.isfile(folder / n) for n in names)


def folder_of(path: Path, *names: str) -> Path | None:
    """The folder of a checkpoint made of the files `names`, given that folder or one of its files; never raises."""
    folder = path if os.path.isdir(path) else path.parent
    return folder if (folder == path or path.name in names) and holds(folder, *names) else None


def inside(folder: Path, name: str) -> Path:
    """A file of the folder.

    Raises:
        CheckpointError: It is missing, not a plain file, or a link out of the folder, in whatever part of the name (the
            hub cache's own links to its `blobs` are fine).
    """
    with reading(folder / name):
        real, home = (folder / name).resolve(), folder.resolve()
        if not real.is_file():
            raise CheckpointError(f"{folder / name} is missing or not a plain file", "give the whole checkpoint folder")
        caches = [a.parent.parent for a in (home, *home.parents) if a.parent.name == "snapshots" and "--" in a.parent.parent.name]
        if not real.is_relative_to(home) and not any(real.parent == c / "blobs" for c in caches):
            raise CheckpointError(f"{folder / name} is a link that leaves its folder", "put the file itself into the folder")
        return real


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn whatever goes wrong while reading `path` into one `CheckpointError`."""
    try:
        yield
    except Exception as e:  # readers of damaged files raise a dozen unrelated classes
        if found := stands_in(path):
            raise CheckpointError(f"{path.name} {found[0]}", found[1]) from e
        if isinstance(e, BenchError):
            raise
        why = (str(e).strip().splitlines() or [""])[0][:160]
        raise CheckpointError(f"{path.name} cannot be read: {type(e).__name__} {why}", DAMAGED) from e


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object."""
    path = inside(folder, name)
    with reading(folder / name), path.open("rb") as f:
        text = f.read(_MAX_JSON + 1)
        if len(text) > _MAX_JSON:
            raise CheckpointError(f"{name} is larger than {_MAX_JSON >> 20} MiB", DAMAGED)
        found = json.loads(text.decode())
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} holds no JSON object", DAMAGED)
    return found


def peek_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none to be read; never raises."""
    try:
        return read_json(folder, name)
    except CheckpointError:
        return {}


def first_bytes(path: Path, most: int) -> bytes:
    """The beginning of a file that does not leave its folder; empty if there is none. Never raises."""
    try:
        with inside(path.parent, path.name).open("rb") as f:
            return f.read(most)
    except (CheckpointError, OSError):
        return b""


def read_safetensors(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file; their declared sizes are checked against the file by the library."""
    path = inside(folder, name)
    with reading(folder / name), path.open("rb") as f:
        size = f.seek(0, 2)
        bounded(name, size, f)
        _header(f)
        return load_file(path)


def _header(f: IO[bytes]) -> bytes:
    """A safetensors file's header, if it is of a size that a checkpoint can need; the library allows 100 MB."""
    f.seek(0)
    size = int.from_bytes(f.read(8), "little")
    if size > _MAX_HEADER:
        raise CheckpointError(f"the file's header takes {size} bytes, more than names and shapes need", DAMAGED)
    return f.read(size)


def read_pt(folder: Path, name: str) -> dict[str, Any]:
    """The dictionary in a `torch.save` file, if it is made of plain values and tensors only.

    The pickle's names are checked before it is read, by a shorter list than `weights_only` has: some callables
    that are harmless to it allocate as much memory as the file asks for.
    """
    path = inside(folder, name)
    with reading(folder / name), path.open("rb") as f:
        _check_torch(name, f)
        f.seek(0)
        return _read_torch(name, f)


def read_headed_pt(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A line of JSON and the dictionary of the `torch.save` archive behind it."""
    path = inside(folder, name)
    with reading(folder / name), path.open("rb") as f:
        header = json.loads(line := f.readline(_MAX_JSON))
        if not isinstance(header, dict):
            raise CheckpointError(f"the first line of {name} holds no JSON object", DAMAGED)
        _check_torch(name, f, len(line))
        f.seek(len(line))
        return header, _read_torch(name, io.BytesIO(f.read()))


def _check_torch(name: str, file: IO[bytes], start: int = 0) -> None:
    """Everything that is refused before torch sees the file."""
    with archive(name, file, start) as z:
        bounded(name, sum(m.file_size for m in z.infolist()), file)
        for foreign in pickled(z).foreign:
            raise CheckpointError(f"{name} holds Python objects ({foreign}), which only running its code would read", PLAIN)


def _read_torch(name: str, file: io.BufferedReader | io.BytesIO) -> dict[str, Any]:
    found = torch.load(file, map_location="cpu", weights_only=True)
    state = plain(name, found)
    if not isinstance(state, dict):
        raise CheckpointError(f"{name} holds no dictionary of tensors", PLAIN)
    return state


def read_npz(folder: Path, name: str) -> dict[str, Tensor]:
    """All arrays of an `.npz` file, without pickles."""
    path = inside(folder, name)
    with reading(folder / name), path.open("rb") as f:
        with archive(name, f, methods=_NPZ) as z:
            bounded(name, sum(m.file_size for m in z.infolist()), f)
            for member in z.infolist():
                check_npy(z, member)
        f.seek(0)
        with np.load(f, allow_pickle=False) as z:
            return {k: torch.from_numpy(np.ascontiguousarray(z[k])) for k in z.files}


def take(tensors: Mapping[str, object], name: str, shape: Shape) -> Tensor:
    """One tensor as a float32 copy.

    Args:
        tensors: What a reader returned.
        name: Which.
        shape: Expected lengths; None stands for any positive length.

    Raises:
        CheckpointError: Missing, of another shape or kind, or with a number that is not finite.
    """
    t = tensors.get(name)
    if not isinstance(t, Tensor):
        raise CheckpointError(f"tensor {name} is missing", DAMAGED)
    if t.ndim > 2 and len(shape) <= 2:
        raise CheckpointError(f"{name} has {t.ndim} dimensions: a crosscoder or cross-layer transcoder", "give an SAE of one site")
    if len(t.shape) != len(shape) or any(n == 0 or (want is not None and n != want) for n, want in zip(t.shape, shape, strict=True)):
        raise CheckpointError(f"{name} has shape {list(t.shape)}, expected {[n or 'any' for n in shape]}", DAMAGED)
    if t.layout != torch.strided or t.device.type != "cpu" or not t.is_floating_point():
        raise CheckpointError(f"{name} holds {t.dtype} on {t.device}, not plain floating-point numbers", DAMAGED)
    with reading(Path(name)):
        out = t.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not finite(out):
        raise CheckpointError(f"{name} holds NaN or infinity", DAMAGED)
    return out


def finite(t: Tensor) -> bool:
    """Whether no number is NaN or infinite. The least and the greatest say so without a copy of a large matrix."""
    least, greatest = torch.aminmax(t)  # both are NaN where any number is
    return math.isfinite(least) and math.isfinite(greatest)


def only(tensors: Mapping[str, object], *known: str) -> None:
    """Refuse tensors nobody would read: an unread tensor is a part of the function left out."""
    if "W_skip" in tensors:
        raise CheckpointError("the file holds W_skip: a transcoder with a skip connection, not an SAE", "give an SAE")
    for name, t in tensors.items():
        if isinstance(t, Tensor) and t.ndim > 2:
            take(tensors, name, ())  # says why
    for name in sorted(set(tensors) - set(known)):
        why = f"unexpected tensor {name!r}, so the numbers could be wrong"
        raise CheckpointError(why, "this variant of the format is not supported: give another SAE")


def names_in(folder: Path, suffixes: tuple[str, ...] = ("",), most: int = _MAX_NAMES) -> list[str]:
    """Sorted names of a folder's plain files with one of the suffixes, up to so many; empty if it cannot be read. Never raises."""
    try:
        with os.scandir(folder) as entries:
            seen = itertools.islice(entries, _MAX_ENTRIES)
            return sorted(e.name for e in itertools.islice((e for e in seen if e.name.endswith(suffixes) and e.is_file()), most))
    except OSError:
        return []


def weights_file(path: Path, suffixes: tuple[str, ...], wanted: Callable[[frozenset[str]], bool]) -> Path | None:
    """The path itself, or the only file of the folder, whose tensor names are wanted; never raises."""
    if os.path.isdir(path):
        files = [path / n for n in names_in(path, suffixes)[:_MAX_PEEKS]]
    else:
        files = [path] if path.name.endswith(suffixes) else []
    found = [f for f in files if os.path.isfile(f) and wanted(peek_keys(f))]
    return found[0] if len(found) == 1 else None


def peek_keys(path: Path) -> frozenset[str]:
    """Tensor names of a safetensors or npz file, or all strings of a pt file's pickle; empty if unreadable. Never raises."""
    return _peek(path).names


def foreign_names(path: Path) -> tuple[str, ...]:
    """What a pt file's pickle would import that no state dict needs; empty if unreadable. Never raises."""
    return _peek(path).foreign


def peek_ranks(path: Path) -> frozenset[int]:
    """Numbers of dimensions of a safetensors file's tensors; empty for other files. Never raises."""
    return _peek(path).ranks


def _peek(path: Path) -> Words:
    try:
        facts = os.stat(path)
        return _peeked(path, facts.st_mtime_ns, facts.st_size, facts.st_ino)
    except Exception:  # a peek decides nothing but which reader will report the damage
        return Words()


@lru_cache(maxsize=64)
def _peeked(path: Path, *_: int) -> Words:
    with inside(path.parent, path.name).open("rb") as f:
        if path.suffix == ".safetensors":
            header = json.loads(_header(f))
            shapes = [v.get("shape") for k, v in header.items() if k != "__metadata__" and isinstance(v, dict)]
            return Words(frozenset(header) - {"__metadata__"}, ranks=frozenset(len(s) for s in shapes if isinstance(s, list)))
        with archive(path.name, f, methods=_NPZ if path.suffix == ".npz" else STORED) as z:
            return Words(frozenset(n.removesuffix(".npy") for n in z.namelist())) if path.suffix == ".npz" else pickled(z)
