"""Text inside any package: `pypi:NAME==VERSION#PATTERN`, `npm:NAME@VERSION#PATTERN`, `deb:NAME=VERSION#PATTERN`.

The package's own client fetches it (`bench.data.sources`); nothing of it is installed or run. Every member whose
path matches the pattern is one document, or several where blank lines part it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from bench.data import sources
from bench.errors import UnavailableError
from bench.store import digest, file_sha256

MAX_MEMBER_BYTES = 64 * 2**20


def texts(reference: str) -> tuple[str, Iterator[str]]:
    """Identity (file hash and pattern) and texts of a package reference; the pattern defaults to `*.txt`.

    Raises:
        UsageError: The reference has another form.
        UnavailableError: The package cannot be fetched or opened, or nothing in it matches.
    """
    package, _, pattern = reference.partition("#")
    if pattern.startswith("sha256="):
        pin, _, pattern = pattern.partition("#")
        package = f"{package}#{pin}"
    path = sources.fetch(sources.parse(package))
    pattern = pattern or "*.txt"
    return digest([file_sha256(path), pattern]), _texts(path, pattern)


def _texts(path: Path, pattern: str) -> Iterator[str]:
    found = False
    for name, content in _members(path):
        if fnmatch(name, pattern):
            found = True
            yield from content.decode("utf8", "replace").replace("\r\n", "\n").split("\n\n\n")
    if not found:
        raise UnavailableError(f"nothing in {path.name} matches {pattern!r}", "give another pattern after #, such as #*.txt")


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Regular files of a zip, tar or deb, each at most 64 MiB."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                for info in z.infolist():
                    if not info.is_dir() and info.file_size <= MAX_MEMBER_BYTES:
                        yield info.filename, z.read(info)
            return
        source = io.BytesIO(_deb_tar(path)) if path.suffix == ".deb" else path.open("rb")
        with source, tarfile.open(fileobj=source) as t:
            for member in t:
                if member.isfile() and member.size <= MAX_MEMBER_BYTES and (handle := t.extractfile(member)):
                    yield member.name, handle.read()
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, subprocess.SubprocessError) as e:
        raise UnavailableError(f"{path.name} cannot be opened: {e}", "remove it from the cache and run again") from e


def _deb_tar(path: Path) -> bytes:
    if shutil.which("dpkg-deb") is None:
        raise UnavailableError("deb: sources need dpkg-deb, which is not installed", "choose a pypi:, npm:, hf: or file: source")
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True, check=True, timeout=300).stdout
