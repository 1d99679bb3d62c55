"""Records: whole or absent, never torn; every damaged byte is noticed; no name can leave the folder."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.errors import ResourceError, VerificationError
from bench.record import Record, Records, SubjectFacts, TaskFacts, make_record, read_record, record_key, subject_task, unit_table
from bench.types import Metric, NotApplicable, Result

ROOT = Path(__file__).resolve().parents[1]

# Forks writers: each writes records of its own and one that all share. The killed ones say what they had finished.
HELPER = """
import os, random, signal, sys, time
from pathlib import Path
import pyarrow.parquet
from bench.record import Records
from tests.test_record import record, units

folder = Path(sys.argv[1])

def started(name, count):
    out, into = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            for i in range(count):
                for subject, seed in ((name, i), ("shared", 0)):
                    Records(folder).write(record(subject, seed=seed, value=int(name) + 1), units(int(name)))
                os.write(into, f"{i}\\n".encode())
        except BaseException as e:
            os.write(into, repr(e).encode())
            os._exit(1)
        os._exit(0)
    os.close(into)
    return pid, os.fdopen(out)

def killed(pid, out, rng, lines):
    seen = [out.readline() for _ in range(rng.randrange(lines))]
    time.sleep(rng.random() * 0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "".join(seen) + out.read()
"""
KILLS = (
    HELPER
    + """
rng = random.Random(1)
for case in range(40):
    print(case, *killed(*started(str(case), 10_000), rng, 3).split(), flush=True)
    good, bad = Records(folder).scan()
    assert not [line for line in bad if "shared" not in line], (case, bad)
"""
)
WRITERS = (
    HELPER
    + """
rng = random.Random(0)
all = [started(str(i), 5) for i in range(8)]
for pid, out in all[:2]:
    killed(pid, out, rng, 4)
for pid, out in all[2:]:
    assert os.waitpid(pid, 0)[1] == 0, out.read()
"""
)


@dataclass(frozen=True)
class Plain:
    """A task as far as records are concerned."""

    name: ClassVar[str] = "plain"
    version: ClassVar[int] = 3
    tokens: int = 7
    taus: tuple[float, ...] = (0.3, 0.5)


def subject(name: str = "sae", **changes: Any) -> SubjectFacts:
    facts = {"name": name, "sha256": "ab" * 32, "format": "f", "architecture": "topk", "d_in": 4, "d_sae": 8}
    site = {"lm": "tiny:random", "revision": "r1", "lm_dtype": "float32", "hook": "blocks.1.hook_resid_post"}
    return SubjectFacts(**(facts | site | changes))


def units(start: int = 0) -> dict[str, list[Any]]:
    return {"document": [start, start + 1], "error": [0.5, 1.25], "kept": [True, False]}


def answer(value: float = 0.5) -> Result:
    metrics = {
        "ev": Metric(value, 2, "document", "shared", "higher", (0.25, 1 / 3)),
        "dead": Metric(0.1, 8, "latent", "census", "lower", spread=(0.0, 1.0)),
    }
    return Result("ev", metrics, units(), {"tokens": 7}, ("mind the é",), {"curve": {"x": [1.5, 2]}})


def record(name: str = "sae", seed: int = 0, value: float = 0.5) -> Record:
    return make_record(subject(name), subject_task(Plain()), {"text": "t1"}, seed, answer(value), {"seconds": 1.5})


def written(folder: Path, **kwargs: Any) -> tuple[Path, Record]:
    kept = Records(folder).write(record(**kwargs), units())
    return next(folder.glob("*/*.json")), kept


def test_round_trip(tmp_path: Path) -> None:
    path, kept = written(tmp_path)
    assert read_record(path) == kept and kept.id == "plain@3"
    assert path.parent.name == "plain@3" and path.name == f"sae-{kept.key[:12]}.json"
    assert Records(tmp_path).scan() == ([kept], [])
    assert Records(tmp_path).find(kept.subject, kept.task, kept.key) == kept
    assert Records(tmp_path).find(kept.subject, kept.task, "0" * 64) is None
    assert list(unit_table(Records(tmp_path), kept)) == [
        {"document": 0, "error": 0.5, "kept": True},
        {"document": 1, "error": 1.25, "kept": False},
    ]
    assert kept.task.params == {"tokens": 7, "taus": [0.3, 0.5]}
    assert kept.metrics["ev"].interval == (0.25, 1 / 3) and kept.metrics["dead"].spread == (0.0, 1.0)


def test_not_applicable_round_trip(tmp_path: Path) -> None:
    made = make_record(subject(), subject_task(Plain()), {}, 0, NotApplicable("no rows"), {})
    kept = Records(tmp_path).write(made, {})
    assert (kept.outcome, kept.reason, kept.units) == ("not_applicable", "no rows", None)
    assert Records(tmp_path).scan() == ([kept], []) and list(unit_table(Records(tmp_path), kept)) == []


def test_writing_again_replaces(tmp_path: Path) -> None:
    written(tmp_path, value=0.5)
    path, kept = written(tmp_path, value=0.75)
    assert read_record(path) == kept and kept.metrics["ev"].value == 0.75
    assert sorted(p.suffix for p in path.parent.iterdir() if not p.name.startswith(".")) == [".json", ".parquet"]


@pytest.mark.parametrize("change", ["sha256", "lm", "revision", "lm_dtype", "hook"])
def test_key_depends_on_what_is_measured(change: str) -> None:
    task = subject_task(Plain())
    assert record_key(subject(), task, {}, 0) != record_key(subject(**{change: "other"}), task, {}, 0)


@pytest.mark.parametrize("change", [{"name": "x"}, {"format": "x"}, {"architecture": "x"}], ids=str)
def test_key_does_not_depend_on_names(change: dict[str, str]) -> None:
    task = subject_task(Plain())
    assert record_key(subject(), task, {}, 0) == record_key(subject(**change), task, {}, 0)


def test_key_depends_on_task_data_and_seed() -> None:
    def key(task: Any = None, data: dict[str, str] | None = None, seed: int = 0) -> str:
        return record_key(subject(), subject_task(task or Plain()), data or {}, seed)

    newer = TaskFacts(name="plain", version=4, params=subject_task(Plain()).params)
    keys = [key(), key(Plain(8)), key(Plain(taus=(0.3,))), key(data={"text": "1"}), key(data={"text": "2"}), key(seed=1)]
    assert len({*keys, record_key(subject(), newer, {}, 0)}) == 7
    assert key(data={"a": "1", "b": "2"}) == key(data={"b": "2", "a": "1"})


@pytest.mark.parametrize("fault", ["flip", "truncate"])
@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_every_damaged_byte_is_noticed(tmp_path: Path, suffix: str, fault: str) -> None:
    """50 seeded cases for each file and fault."""
    path, kept = written(tmp_path)
    file, rng = path.with_suffix(suffix), random.Random(f"{suffix} {fault}")
    whole = file.read_bytes()
    for case in range(50):
        at, bit = rng.randrange(len(whole) - 1), rng.randrange(8)
        flipped = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
        file.write_bytes(flipped if fault == "flip" else whole[:at])
        good, bad = Records(tmp_path).scan()
        assert not good and len(bad) == 1 and str(path) in bad[0], (case, at, bit)
        assert Records(tmp_path).find(kept.subject, kept.task, kept.key) is None
    file.write_bytes(whole)
    assert Records(tmp_path).scan() == ([kept], [])


def numbers(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all leaves of a JSON document."""
    if isinstance(node, dict):
        return [p for k, v in node.items() for p in numbers(v, (*path, k))]
    if isinstance(node, list):
        return [p for i, v in enumerate(node) for p in numbers(v, (*path, i))]
    return [path]


def test_every_edited_field_is_noticed(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    whole = json.loads(path.read_text())
    leaves = numbers(whole)
    assert len(leaves) > 40
    for leaf in leaves:
        raw = json.loads(path.read_text())
        node = raw
        for step in leaf[:-1]:
            node = node[step]
        old = node[leaf[-1]]
        node[leaf[-1]] = old + 1 if isinstance(old, int | float) else f"{old}x"
        edited = path.with_name("edited.json")
        edited.write_text(json.dumps(raw))
        with pytest.raises(VerificationError):
            read_record(edited)


def test_a_missing_unit_table_is_noticed(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    path.with_suffix(".parquet").unlink()
    with pytest.raises(VerificationError, match="unit table"):
        read_record(path)


def edited(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with pytest.raises(VerificationError) as e:
        read_record(edited(path, schema_version=2, whatever=[1]))
    assert e.value.remedy == "update ortsae-bench" and "schema 2" in e.value.cause and e.value.exit_code == 7


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_nan_and_infinity_are_refused(tmp_path: Path, text: str) -> None:
    path, _ = written(tmp_path)
    path.write_text(path.read_text().replace('"value": 0.5', f'"value": {text}'))
    with pytest.raises(VerificationError, match="finite"):
        read_record(path)
    with pytest.raises(ValueError, match="finite"):
        Metric(float(text.lower()), 1, "document", "shared")
    hidden = record().model_copy(update={"details": {"x": float(text.lower())}})
    with pytest.raises(ValueError):
        Records(tmp_path / "other").write(hidden, {})
    assert not list(tmp_path.glob("other/*/*.json"))


def test_extra_fields_are_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with pytest.raises(VerificationError, match="not a record"):
        read_record(edited(path, note="hello"))
    with pytest.raises(ValidationError):
        Record(**{**record().model_dump(), "note": "hello"})


JUNK = [
    "",
    "null",
    "[]",
    "{}",
    "1e400",
    '"x"',
    "{" * 100_000,
    "[" * 100_000,
    "\x00" * 50,
    '{"schema_version": true}',
    '{"schema_version": "9"}',
]


@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
def test_junk_is_one_typed_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t@1" / "x.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(VerificationError) as e:
        read_record(path)
    assert e.value.remedy and "\n" not in e.value.cause
    path.write_bytes(b"\xff\xfe")
    assert len(Records(tmp_path).scan()[1]) == 1


HOSTILE = [
    "../../x",
    "/etc/passwd",
    "<script>alert(1)</script>",
    "",
    ".",
    "..",
    ".hidden",
    "a" * 5000,
    "a/b\\c",
    "é\n\x00\u202e",
    "=1+1",
    "con ",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "records"
    kept = Records(folder).write(record(name), units())
    assert Records(folder).scan() == ([kept], []) and kept.subject.name == name
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".json", ".parquet")]
    assert len(files) == 2 and all(p.parent == folder / "plain@3" for p in files)
    assert len(list(unit_table(Records(folder), kept))) == 2


@given(st.text(max_size=200), st.text(max_size=60))
def test_any_name_gives_a_plain_file_name(name: str, task: str) -> None:
    path = Records(Path("r")).path(subject(name), TaskFacts(name=task, version=1, params={}), "0" * 64)
    assert path.parent.parent == Path("r") and len(path.parts) == 3
    assert len(path.name) < 120 and path.name.isascii() and not path.name.startswith(".")


def test_a_unit_file_elsewhere_is_never_read(tmp_path: Path) -> None:
    """A record that names another folder's table is checked and read by the file name alone."""
    _, kept = written(tmp_path)
    assert kept.units is not None
    away = kept.model_copy(update={"units": kept.units.model_copy(update={"file": f"../../{kept.units.file}"})})
    (tmp_path.parent / kept.units.file).write_bytes(b"not a table")
    assert len(list(unit_table(Records(tmp_path), away))) == 2


class Fails:
    """Stands for a function; its k-th call fails as on a full disk."""

    def __init__(self, real: Callable[..., object], k: int, number: int) -> None:
        self.real, self.k, self.number, self.calls = real, k, number, 0

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        if self.calls == self.k:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "open")], ids=lambda v: str(v))
def test_the_kth_system_call_fails(tmp_path: Path, owner: Any, name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every k, over a record that is there already: a typed error, and the old record or the new one, never a torn one."""
    real = getattr(owner, name)
    for k in range(1, 12):
        folder = tmp_path / str(k)
        other = Records(folder).write(record("other", seed=9), units())
        failing = Fails(real, k, number)
        with monkeypatch.context() as m:
            m.setattr(owner, name, lambda *a, f=failing, **kw: f(*a, **kw))
            try:
                Records(folder).write(record(), units())
            except ResourceError as e:
                assert e.exit_code == 6 and ("free space" in e.remedy) == (number != errno.EIO)
            else:
                assert failing.calls < k
                break
        good, bad = Records(folder).scan()
        assert not bad and other in good
        assert not list(folder.rglob("*.tmp"))
        written(folder)
        assert len(Records(folder).scan()[0]) == 2
    else:
        raise AssertionError("the faults never ended")


def helped(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_eight_writers_some_killed(tmp_path: Path) -> None:
    """8 writers × 5 records of their own and one they share, two killed at a random point: nothing lost, nothing torn."""
    helped(WRITERS, tmp_path)
    good, bad = Records(tmp_path).scan()
    assert bad == []
    names = {(r.subject.name, r.seed) for r in good}
    assert {(str(i), s) for i in range(2, 8) for s in range(5)} <= names
    (shared,) = (r for r in good if r.subject.name == "shared")
    rows = list(unit_table(Records(tmp_path), shared))
    assert rows[0]["document"] == shared.metrics["ev"].value - 1  # both files of one writer


def test_kill_at_random_points_leaves_whole_records(tmp_path: Path) -> None:
    """40 kills: what was reported done is there and whole, nothing is torn."""
    lines = [line.split() for line in helped(KILLS, tmp_path).splitlines()]
    assert len(lines) == 40 and sum(len(line) > 1 for line in lines) > 10
    have = {(r.subject.name, r.seed) for r in Records(tmp_path).scan()[0]}
    assert {(line[0], int(i)) for line in lines for i in line[1:]} <= have
    Records(tmp_path).write(record("shared"), units())  # a kill between its two files had it refused, not believed
    assert Records(tmp_path).scan()[1] == []
