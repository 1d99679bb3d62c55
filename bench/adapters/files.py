"""Guarded reading of other people's files: nothing is executed, sizes are bounded, every failure is one `CheckpointError`."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.adapters.impostors import stands_in
from bench.errors import BenchError, CheckpointError

MAX_BYTES = 16 * 2**30
_MAX_RATIO = 4
_SLACK = 64 * 2**20  # small files of zeros compress well without being bombs
_MAX_JSON = 16 * 2**20
_MAX_NAMES, _MAX_PEEKS = 5000, 20  # of a folder: names read, files looked into
_NOT_NAMES = frozenset({"storage", "cpu", "cuda:0"})  # words that every pickle of tensors holds
_MAX_PICKLE = 4 * 2**20  # a state dict's pickle holds names and shapes only
_PICKLE_GLOBALS = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {t}Storage" for t in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")}
)
DAMAGED = "the file is damaged or not what its name says: fetch or save it again"

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
        CheckpointError: It is missing, not a plain file, or a link out of the folder (the hub cache's own links to
            its `blobs` are fine).
    """
    with reading(folder / name):
        real, home = (folder / name).resolve(), folder.resolve()
        if not real.is_file():
            raise CheckpointError(f"{folder / name} is missing or not a plain file", "give the whole checkpoint folder")
        caches = [a.parent.parent for a in (home, *home.parents) if a.parent.name == "snapshots"]
        if not real.is_relative_to(home) and not any(real.parent == c / "blobs" for c in caches):
            raise CheckpointError(f"{folder / name} is a link that leaves its folder", "put the file itself into the folder")
        return real


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn whatever goes wrong while reading `path` into one `CheckpointError`."""
    try:
        yield
    except BenchError:
        raise
    except Exception as e:  # readers of damaged files raise a dozen unrelated classes
        if found := stands_in(path):
            raise CheckpointError(f"{path.name} {found[0]}", found[1]) from e
        why = (str(e).strip().splitlines() or [""])[0][:160]
        raise CheckpointError(f"{path.name} cannot be read: {type(e).__name__} {why}", DAMAGED) from e


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object."""
    path = inside(folder, name)
    with reading(folder / name):
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{name} is larger than {_MAX_JSON >> 20} MiB", DAMAGED)
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} holds no JSON object", DAMAGED)
    return found


def peek_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none to be read; never raises."""
    try:
        return read_json(folder, name)
    except CheckpointError:
        return {}


def read_safetensors(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file; their declared sizes are checked against the file by the library."""
    path = inside(folder, name)
    with reading(folder / name):
        _bounded(name, path.stat().st_size, path.stat().st_size)
        return load_file(path)


def read_pt(folder: Path, name: str) -> dict[str, Any]:
    """The dictionary in a `torch.save` file, if it is made of plain values and tensors only.

    The pickle's names are checked before it is read, by a shorter list than `weights_only` has: some callables
    that are harmless to it allocate as much memory as the file asks for.
    """
    path = inside(folder, name)
    with reading(folder / name), path.open("rb") as f:
        return _read_torch(name, f, path.stat().st_size)


def read_headed_pt(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A line of JSON and the dictionary of the `torch.save` archive behind it."""
    path = inside(folder, name)
    with reading(folder / name):
        _bounded(name, path.stat().st_size, path.stat().st_size)
        with path.open("rb") as f:
            header, rest = json.loads(f.readline(_MAX_JSON)), f.read()
        if not isinstance(header, dict):
            raise CheckpointError(f"the first line of {name} holds no JSON object", DAMAGED)
        return header, _read_torch(name, io.BytesIO(rest), len(rest))


def _read_torch(name: str, file: io.BufferedReader | io.BytesIO, size: int) -> dict[str, Any]:
    with zipfile.ZipFile(file) as z:
        _check_zip(name, z, size)
        for foreign in _pickle_globals(z) - _PICKLE_GLOBALS:
            raise CheckpointError(f"{name} holds Python objects ({foreign}), which only running its code would read", _PLAIN)
    file.seek(0)
    found = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} holds no dictionary of tensors", _PLAIN)
    return _plain(name, found)


def _plain(name: str, found: Mapping[object, Any]) -> dict[str, Any]:
    """A dictionary with text keys and tensors that are stored whole, and the dictionaries in it likewise."""
    if not all(isinstance(k, str) for k in found):
        raise CheckpointError(f"{name} holds no dictionary of tensors", _PLAIN)
    if any(isinstance(t, Tensor) and t.numel() * t.element_size() > t.untyped_storage().nbytes() for t in found.values()):
        raise CheckpointError(f"a tensor of {name} claims more numbers than are stored", DAMAGED)
    plain = {str(k): _plain(name, v) if isinstance(v, dict) else v for k, v in found.items()}
    return {k.removeprefix("_orig_mod."): v for k, v in plain.items()}  # the prefix is left by torch.compile


_PLAIN = "save the state dict alone: torch.save(sae.state_dict(), path)"


def read_npz(folder: Path, name: str) -> dict[str, Tensor]:
    """All arrays of an `.npz` file, without pickles."""
    path = inside(folder, name)
    with reading(folder / name):
        with zipfile.ZipFile(path) as z:
            _check_zip(name, z, path.stat().st_size)
            for member in z.infolist():
                _check_npy(z, member)
        with np.load(path, allow_pickle=False) as z:
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
    if not bool(torch.isfinite(out).all()):
        raise CheckpointError(f"{name} holds NaN or infinity", DAMAGED)
    return out


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


def weights_file(path: Path, suffixes: tuple[str, ...], wanted: Callable[[frozenset[str]], bool]) -> Path | None:
    """The path itself, or the only file of the folder, whose tensor names are wanted; never raises."""
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                names = sorted(e.name for e in itertools.islice(entries, _MAX_NAMES) if e.name.endswith(suffixes))
            files = [path / n for n in names[:_MAX_PEEKS]]
        else:
            files = [path] if path.name.endswith(suffixes) else []
        found = [f for f in files if wanted(peek_keys(f))]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def peek_keys(path: Path) -> frozenset[str]:
    """Tensor names of a safetensors or npz file, or all strings of a pt file's pickle; empty if unreadable. Never raises."""
    try:
        facts = os.stat(path)
        return _peeked(path, facts.st_mtime_ns, facts.st_size, facts.st_ino) if os.path.isfile(path) else frozenset()
    except Exception:  # a peek decides nothing but which reader will report the damage
        return frozenset()


@lru_cache(maxsize=64)
def _peeked(path: Path, *_: int) -> frozenset[str]:
    if path.suffix == ".safetensors":
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            return frozenset(json.loads(f.read(min(size, _MAX_JSON)))) - {"__metadata__"}
    with zipfile.ZipFile(path) as z:
        if path.suffix == ".npz":
            return frozenset(n.removesuffix(".npy") for n in z.namelist())
        words = {str(arg) for op, arg, _ in pickletools.genops(_pickle(z)) if isinstance(arg, str) and op.name != "GLOBAL"}
    return frozenset(w.removeprefix("_orig_mod.") for w in words if w not in _NOT_NAMES and not w.isdigit())


def foreign_names(path: Path) -> set[str]:
    """What a pt file's pickle would import that no state dict needs; empty if unreadable. Never raises."""
    try:
        with zipfile.ZipFile(path) as z:
            return _pickle_globals(z) - _PICKLE_GLOBALS
    except Exception:  # naming a format is a courtesy; damage is reported elsewhere
        return set()


def _bounded(name: str, declared: int, size: int) -> None:
    if declared > MAX_BYTES or declared > max(_MAX_RATIO * size, _SLACK):
        raise CheckpointError(f"{name} declares {declared / 2**20:.0f} MiB in a file of {size / 2**20:.0f} MiB", DAMAGED)


def _check_zip(name: str, z: zipfile.ZipFile, size: int) -> None:
    names = z.namelist()
    if len(set(names)) != len(names) or any(n.startswith(("/", "\\")) or ".." in n.replace("\\", "/").split("/") for n in names):
        raise CheckpointError(f"{name} holds members with repeated names or names that leave the archive", DAMAGED)
    _bounded(name, sum(m.file_size for m in z.infolist()), size)


def _check_npy(z: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """NumPy allocates what the header says before it reads; so the header is compared with the member's size first."""
    with z.open(member) as f:
        version = np.lib.format.read_magic(f)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(f)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > member.file_size:
        raise CheckpointError(f"array {member.filename} holds Python objects or is shorter than it says", DAMAGED)


def _pickle(z: zipfile.ZipFile) -> bytes:
    members = [m for m in z.infolist() if m.filename.split("/")[-1] == "data.pkl"]
    if len(members) != 1 or members[0].file_size > _MAX_PICKLE:
        raise CheckpointError("not a torch.save archive with one small data.pkl", _PLAIN)
    return z.read(members[0])


def _pickle_globals(z: zipfile.ZipFile) -> set[str]:
    """Every name the pickle would import; names built on its stack are not followed, only refused."""
    names: set[str] = set()
    for op, arg, _ in pickletools.genops(_pickle(z)):
        if op.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            names.add(str(arg) if op.name == "GLOBAL" else op.name)
    return names
