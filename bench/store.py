"""Content-addressed arrays on disk: get-or-compute, atomic, checksummed, memory-mapped, bounded.

An entry is a folder `<root>/store/<kind>/<key>/` holding one `.npy` file per array and an `entry.json` with
the key's parts and each file's SHA-256. It is written to a temporary folder and renamed into place, so a
reader sees a whole entry or none. Every read checks the checksums; a damaged entry is removed and recomputed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from bench import progress
from bench.errors import ResourceError, UsageError

Arrays = dict[str, np.ndarray]
_FACTS = "entry.json"
_TEMPORARY = ".tmp-"
_STALE_S = 24 * 3600.0


def cache_root() -> Path:
    """`$ORTSAE_CACHE`, else `$XDG_CACHE_HOME/ortsae-bench`, else `~/.cache/ortsae-bench`."""
    if explicit := os.environ.get("ORTSAE_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ortsae-bench"


def digest(parts: object) -> str:
    """SHA-256 of the canonical JSON of `parts`; equal parts give equal digests on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def array_sha256(*arrays: np.ndarray) -> str:
    """SHA-256 over dtype, shape and bytes of each array, in order."""
    h = hashlib.sha256()
    for a in arrays:
        h.update(f"{a.dtype.str}{a.shape}".encode())
        h.update(np.ascontiguousarray(a).data)
    return h.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One stored entry, as `cache list` shows it."""

    kind: str
    key: str
    path: Path
    bytes: int
    used: float
    parts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """Get-or-compute cache of named arrays.

    Args:
        root: Cache root; entries live in `root/store`.
        max_bytes: Least recently used entries are dropped above this total.
    """

    root: Path
    max_bytes: int = 20 * 2**30

    @classmethod
    def default(cls) -> Store:
        """The user's store: `cache_root()`, bounded by `$ORTSAE_CACHE_GB` (20)."""
        text = os.environ.get("ORTSAE_CACHE_GB", "20")
        try:
            limit = int(float(text) * 2**30)
        except (ValueError, OverflowError):
            raise UsageError(f"ORTSAE_CACHE_GB is {text!r}, not a number", "set it to gigabytes, such as 20") from None
        return cls(cache_root(), limit)

    def get(self, kind: str, parts: Mapping[str, object], compute: Callable[[], Arrays]) -> Arrays:
        """The arrays stored under `parts`, computing and storing them first if need be.

        Args:
            kind: Folder name, e.g. `activations`.
            parts: Everything that can change the numbers; JSON-serialisable.
            compute: Called at most once, under a lock shared by processes.

        Raises:
            ResourceError: The disk is full or the cache cannot be written.
        """
        folder = self._folder(kind, parts)
        if (found := _read(folder)) is not None:
            return found
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder) + ".lock"):
                if (found := _read(folder)) is not None:
                    return found
                if (folder / _FACTS).exists():
                    progress.note("cache entry damaged, computing it again", kind=kind, key=folder.name[:12])
                _drop(folder)  # only under the lock: elsewhere it could be another process' fresh entry
                arrays = compute()
                self._write(folder, kind, parts, arrays)
        except OSError as e:
            raise _resource(e, folder) from e
        self._evict(keep=folder)
        found = _read(folder)
        return arrays if found is None else found  # None: another process with a smaller bound has evicted it

    def has(self, kind: str, parts: Mapping[str, object]) -> bool:
        """Whether an entry exists (its checksums are verified only when it is read)."""
        return (self._folder(kind, parts) / _FACTS).exists()

    def entries(self) -> Iterator[Entry]:
        """Every entry, damaged ones without their parts, in no particular order."""
        for meta in (self.root / "store").glob(f"*/[!.]*/{_FACTS}"):
            folder = meta.parent
            try:
                used, size = meta.stat().st_mtime, _size(folder)
                parts = json.loads(meta.read_bytes())["parts"]
            except FileNotFoundError:  # evicted meanwhile
                continue
            except (OSError, ValueError, KeyError, TypeError):
                used, size, parts = 0.0, 0, {}
            yield Entry(folder.parent.name, folder.name, folder, size, used, parts if isinstance(parts, dict) else {})

    def verify(self) -> list[Entry]:
        """Entries whose bytes no longer match their checksums."""
        return [e for e in self.entries() if not _intact(e.path)]

    def prune(self, max_bytes: int | None = None) -> int:
        """Drop least recently used entries above the bound and stale temporary folders; return bytes freed."""
        for leftover in (self.root / "store").glob(f"*/{_TEMPORARY}*"):
            with suppress(FileNotFoundError):  # its owner has just renamed it
                if time.time() - leftover.stat().st_mtime > _STALE_S:
                    shutil.rmtree(leftover, ignore_errors=True)
        return self._evict(limit=max_bytes)

    def clear(self) -> int:
        """Drop every entry; return bytes freed."""
        return self._evict(limit=-1)

    def _folder(self, kind: str, parts: Mapping[str, object]) -> Path:
        return self.root / "store" / kind / digest(dict(parts))[:40]

    def _write(self, folder: Path, kind: str, parts: Mapping[str, object], arrays: Arrays) -> None:
        temporary = folder.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            for name, array in arrays.items():
                with (temporary / f"{name}.npy").open("wb") as f:
                    np.save(f, np.asarray(array), allow_pickle=False)
                    f.flush()
                    os.fsync(f.fileno())
            files = {p.name: file_sha256(p) for p in sorted(temporary.glob("*.npy"))}
            facts = {"kind": kind, "parts": dict(parts), "files": files, "bytes": _size(temporary)}
            (temporary / _FACTS).write_text(json.dumps(facts, sort_keys=True, indent=1))
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _evict(self, keep: Path | None = None, limit: int | None = None) -> int:
        limit = self.max_bytes if limit is None else limit
        entries = sorted(self.entries(), key=lambda e: e.used)
        total, freed = sum(e.bytes for e in entries), 0
        for e in entries:
            if total - freed <= limit:
                break
            if e.path != keep:
                _drop(e.path)
                freed += e.bytes
        return freed


def _read(folder: Path) -> Arrays | None:
    """The arrays of a whole entry; None where there is none, or a damaged one."""
    if not _intact(folder):
        return None
    try:
        os.utime(folder / _FACTS)
        return {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(folder.glob("*.npy"))}
    except FileNotFoundError:  # evicted meanwhile by another process
        return None


def _intact(folder: Path) -> bool:
    """Whether every file is as it was written: the folder's name is the digest of the parts, the rest follows."""
    try:
        facts = json.loads((folder / _FACTS).read_bytes())
        named = digest(facts["parts"])[:40] == folder.name and facts["kind"] == folder.parent.name
        files = {p.name: file_sha256(p) for p in folder.glob("*.npy")}
        return named and facts["files"] == files and facts["bytes"] == _size(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _drop(folder: Path) -> None:
    """Remove an entry, or what is left of one; renamed first, so that a kill in between leaves no half entry."""
    doomed = folder.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    with suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.npy"))


def _resource(e: OSError, path: Path) -> ResourceError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"disk full while writing {path}", "free space, or set ORTSAE_CACHE to another disk")
    return ResourceError(f"cannot write the cache at {path}: {e.strerror}", "set ORTSAE_CACHE to a writable folder")
