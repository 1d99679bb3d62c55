"""The store: computes once, notices every damaged byte, survives kill -9, full disks and other processes."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import store as store_module
from bench.errors import ResourceError, UsageError
from bench.store import Arrays, Store, array_sha256, cache_root, digest

ROOT = Path(__file__).resolve().parents[1]
PARTS: dict[str, object] = {"lm": "tiny", "rows": "é∑", "n": 3, "nested": {"a": [1, 2.5, None]}}

# A process that fills a store with small entries, each equal to the number in its parts, and says which are done.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from bench.store import Store
root, name, keys, bound = Path(sys.argv[1]), sys.argv[2], [int(k) for k in sys.argv[3].split(",")], int(sys.argv[4])
store = Store(root, bound)
print("ready", flush=True)
sys.stdin.readline()
for k in keys:
    def compute():
        with (root / "computed").open("a") as f:
            f.write(f"{k}\\n")
        return {"x": np.full(2000, k, np.float32), "y": np.arange(k + 1)}
    got = store.get("work", {"k": k}, compute)
    assert (np.asarray(got["x"]) == k).all() and len(got["y"]) == k + 1, k
    print(k, flush=True)
"""

# Forks a process that fills a store, kills it at a random point, and does so again, 40 times.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from bench.store import Store
store, rng = Store(Path(sys.argv[1])), random.Random(0)
next_key = 0
for case in range(40):
    out, into = os.pipe()
    if (pid := os.fork()) == 0:
        for k in range(next_key, next_key + 10_000):
            store.get("work", {"k": k}, lambda: {"x": np.full(2000, k, np.float32), "y": np.arange(k + 1)})
            os.write(into, f"{k}\\n".encode())
    os.close(into)
    lines = os.fdopen(out)
    seen = [lines.readline() for _ in range(rng.randrange(4))]
    time.sleep(rng.random() * 0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    seen += lines.read().split()
    print(case, *(k.strip() for k in seen), flush=True)
    assert store.verify() == [], case
    next_key = max([int(k) + 1 for k in seen if k.strip()], default=next_key)
"""


def arrays() -> Arrays:
    return {"x": np.arange(24, dtype=np.float32).reshape(4, 6), "mask": np.array([True, False])}


def never() -> Arrays:
    raise AssertionError("computed again")


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def filled(root: Path) -> tuple[Store, Path]:
    s = Store(root)
    s.get("work", PARTS, arrays)
    return s, next(s.entries()).path


def writer(root: Path, keys: list[int], bound: int = 2**30) -> subprocess.Popen[str]:
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", WRITER, str(root), "w", ",".join(map(str, keys)), str(bound)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def start(p: subprocess.Popen[str]) -> None:
    assert p.stdin is not None
    p.stdin.write("go\n")
    p.stdin.flush()


def ended(p: subprocess.Popen[str]) -> list[int]:
    """The keys a writer finished; raises when it failed."""
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    return [int(line) for line in out.splitlines() if line.isdigit()]


def test_computes_once_and_gives_back_what_was_computed(tmp_path: Path) -> None:
    s = Store(tmp_path)
    first = s.get("work", PARTS, arrays)
    assert same({k: np.asarray(v) for k, v in first.items()}, arrays())
    assert same({k: np.asarray(v) for k, v in Store(tmp_path).get("work", PARTS, never).items()}, arrays())
    assert s.has("work", PARTS) and not s.has("work", {}) and not s.has("other", PARTS)


@pytest.mark.parametrize("other", [{"n": 4}, {"lm": "tinier"}, {"extra": None}, {"nested": {"a": [1, 2.5]}}], ids=str)
def test_every_part_separates(tmp_path: Path, other: dict[str, object]) -> None:
    s, _ = filled(tmp_path)
    got = s.get("work", PARTS | other, lambda: {"x": np.zeros(1)})
    assert got["x"].shape == (1,)
    assert s.get("else", PARTS, lambda: {"x": np.zeros(2)})["x"].shape == (2,)
    assert len(list(s.entries())) == 3


def test_order_of_the_parts_does_not_separate(tmp_path: Path) -> None:
    s, _ = filled(tmp_path)
    s.get("work", dict(reversed(PARTS.items())), never)


def test_arrays_are_read_only(tmp_path: Path) -> None:
    s, _ = filled(tmp_path)
    with pytest.raises(ValueError):
        s.get("work", PARTS, never)["x"][0, 0] = 1


def test_a_failing_computation_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> Arrays:
        raise RuntimeError("no")

    s = Store(tmp_path)
    with pytest.raises(RuntimeError):
        s.get("work", PARTS, fails)
    assert list(s.entries()) == [] and same(s.get("work", PARTS, arrays), arrays())


def test_objects_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    s = Store(tmp_path)
    with pytest.raises(ValueError):
        s.get("work", PARTS, lambda: {"x": np.array([{}, None], dtype=object)})
    assert list(s.entries()) == [] and not list(tmp_path.glob("store/work/.tmp-*"))


def flips(size: int, rng: random.Random) -> Callable[[bytes], bytes]:
    at, bit = rng.randrange(size), rng.randrange(8)
    return lambda b: b[:at] + bytes([b[at] ^ (1 << bit)]) + b[at + 1 :]


@pytest.mark.parametrize("file", ["x.npy", "mask.npy", "entry.json"])
@pytest.mark.parametrize("fault", ["flip", "truncate"])
def test_damage_is_noticed_and_computed_again(tmp_path: Path, file: str, fault: str) -> None:
    """20 seeded cases for each file and fault: the damaged entry is reported, never used, and made again."""
    s, folder = filled(tmp_path)
    whole = (folder / file).read_bytes()
    rng = random.Random(f"{file} {fault}")
    for case in range(20):
        cut = rng.randrange(len(whole))
        damaged = flips(len(whole), rng)(whole) if fault == "flip" else whole[:cut]
        (folder / file).write_bytes(damaged)
        assert [e.path for e in s.verify()] == [folder], case
        calls: list[int] = []
        got = s.get("work", PARTS, lambda calls=calls: calls.append(1) or arrays())
        assert same(got, arrays()) and calls == [1], case
        assert s.verify() == [] and (folder / file).read_bytes() == whole, case


def test_a_missing_or_added_file_is_damage(tmp_path: Path) -> None:
    for fault in (lambda f: (f / "x.npy").unlink(), lambda f: np.save(f / "z.npy", np.zeros(1))):
        s, folder = filled(tmp_path)
        fault(folder)
        assert len(s.verify()) == 1 and same(s.get("work", PARTS, arrays), arrays()) and s.verify() == []


def test_an_entry_of_other_parts_is_not_taken(tmp_path: Path) -> None:
    s, folder = filled(tmp_path)
    s.get("work", {"k": 1}, lambda: {"x": np.ones(1)})
    other = next(e.path for e in s.entries() if e.path != folder)
    for p in folder.iterdir():
        p.unlink()
    for p in other.iterdir():
        (folder / p.name).write_bytes(p.read_bytes())
    assert same(s.get("work", PARTS, arrays), arrays())


def test_half_removed_entries_do_not_block_their_key(tmp_path: Path) -> None:
    """What a kill in the middle of a removal could leave: files without their list."""
    s, folder = filled(tmp_path)
    (folder / "entry.json").unlink()
    assert not s.has("work", PARTS) and same(s.get("work", PARTS, arrays), arrays())


def test_damaged_entries_are_listed_and_cleared(tmp_path: Path) -> None:
    s, folder = filled(tmp_path)
    (folder / "entry.json").write_text('{"bytes": "many"}')
    assert [e.path for e in s.verify()] == [folder]
    s.clear()
    assert not folder.exists() and list(s.entries()) == []


def test_kill_at_random_points_leaves_whole_entries(tmp_path: Path) -> None:
    """40 kills: every entry is whole, what was reported done is there, and the work goes on where it was."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    reported = [int(k) for line in done.stdout.splitlines() for k in line.split()[1:]]
    assert len(done.stdout.splitlines()) == 40 and len(reported) > 20
    s = Store(tmp_path)
    assert s.verify() == []
    have = {int(str(e.parts["k"])) for e in s.entries()}
    assert set(reported) <= have
    for k in have:
        assert (s.get("work", {"k": k}, never)["x"] == k).all()
    assert (s.get("work", {"k": max(have) + 1}, arrays)["x"] == arrays()["x"]).all()


@pytest.mark.parametrize("shared", [True, False], ids=["same keys", "different keys"])
def test_eight_processes_at_once(tmp_path: Path, shared: bool) -> None:
    keys = [list(range(12)) if shared else list(range(12 * i, 12 * i + 12)) for i in range(8)]
    found = together([writer(tmp_path, k) for k in keys])
    assert found == keys
    computed = (tmp_path / "computed").read_text().split()
    assert len(computed) == len(set(computed)) == len({k for ks in keys for k in ks})
    assert Store(tmp_path).verify() == []


def test_eight_processes_find_the_same_damage(tmp_path: Path) -> None:
    """Repair happens under the lock: no process removes what another has just made again."""
    keys = list(range(12))
    together([writer(tmp_path, keys)])
    for e in Store(tmp_path).entries():
        with (e.path / "x.npy").open("ab") as f:
            f.write(b"!")
    assert together([writer(tmp_path, keys) for _ in range(8)]) == [keys] * 8
    assert sorted((tmp_path / "computed").read_text().split()) == sorted(map(str, keys * 2))


def test_eight_processes_evict_each_other(tmp_path: Path) -> None:
    """A bound of two entries: whatever disappears meanwhile, everyone gets its arrays."""
    keys = [k % 6 for k in range(24)]
    assert together([writer(tmp_path, keys, 20_000) for _ in range(8)]) == [keys] * 8
    assert Store(tmp_path).verify() == []


def together(writers: list[subprocess.Popen[str]]) -> list[list[int]]:
    for p in writers:
        assert p.stdout is not None
        p.stdout.readline()
    for p in writers:
        start(p)
    return [ended(p) for p in writers]


class Fails:
    """Stands for a function; its k-th call fails as on a full disk."""

    def __init__(self, real: Callable[..., object], k: int, number: int = errno.ENOSPC) -> None:
        self.real, self.k, self.number, self.calls = real, k, number, 0

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        if self.calls == self.k:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **kwargs)


FAULTS = {
    "save": (np, "save"),
    "fsync": (os, "fsync"),
    "rename": (Path, "rename"),
    "write": (Path, "write_text"),
    "mkdir": (Path, "mkdir"),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_kth_system_call_fails(tmp_path: Path, fault: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every k, until no call is left to fail: one typed error, nothing half written, and the next attempt works."""
    owner, name = FAULTS[fault]
    real = getattr(owner, name)
    for k in range(1, 10):
        s = Store(tmp_path / str(k))
        s.get("work", {"kept": 1}, arrays)
        failing = Fails(real, k, number)
        with monkeypatch.context() as m:
            m.setattr(owner, name, lambda *a, f=failing, **kw: f(*a, **kw))
            try:
                s.get("work", PARTS, arrays)
            except ResourceError as e:
                assert e.exit_code == 6 and e.remedy
                assert ("disk full" in e.cause) == (number in (errno.ENOSPC, errno.EDQUOT))
            else:
                assert failing.calls < k
                assert k > 1
                break
        assert s.verify() == [] and not list(s.root.glob("store/work/.tmp-*"))
        assert same(s.get("work", {"kept": 1}, never), arrays())
        assert same(s.get("work", PARTS, arrays), arrays())
    else:
        raise AssertionError("the faults never ended")


def test_a_cache_that_is_a_file_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="ORTSAE_CACHE"):
        Store(tmp_path / "file").get("work", PARTS, arrays)


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    size = 8 * 1000 + 128
    s = Store(tmp_path, 3 * size)

    def put(k: int) -> None:
        s.get("work", {"k": k}, lambda: {"x": np.full(1000, k, np.float64)})

    for k in range(3):
        put(k)
        stamp = 1_000_000 + k
        os.utime(next(e.path for e in s.entries() if e.parts == {"k": k}) / "entry.json", (stamp, stamp))
    put(0)  # used again, so 1 is now the oldest
    put(3)
    assert sorted(str(e.parts["k"]) for e in s.entries()) == ["0", "2", "3"]
    assert sum(e.bytes for e in s.entries()) <= s.max_bytes


def test_an_entry_above_the_bound_is_given_and_kept_alone(tmp_path: Path) -> None:
    s = Store(tmp_path, 10)
    for k in range(3):
        assert s.get("work", {"k": k}, lambda k=k: {"x": np.full(9, k)})["x"][0] == k
    assert [e.parts for e in s.entries()] == [{"k": 2}]


def test_prune_and_clear(tmp_path: Path) -> None:
    s = Store(tmp_path)
    for k in range(4):
        s.get("work", {"k": k}, lambda: {"x": np.zeros(100)})
    size = next(s.entries()).bytes
    old, fresh = tmp_path / "store/work/.tmp-old", tmp_path / "store/work/.tmp-fresh"
    for folder in (old, fresh):
        folder.mkdir()
    os.utime(old, (0, 0))
    assert s.prune(2 * size) == 2 * size
    assert len(list(s.entries())) == 2 and not old.exists() and fresh.exists()
    assert s.clear() == 2 * size and list(s.entries()) == []
    assert s.clear() == 0


def test_entry_says_what_it_holds(tmp_path: Path) -> None:
    s, folder = filled(tmp_path)
    (e,) = s.entries()
    assert (e.kind, e.parts, e.path) == ("work", PARTS, folder)
    assert e.bytes == sum(p.stat().st_size for p in folder.glob("*.npy"))
    assert json.loads((folder / "entry.json").read_text())["files"].keys() == {"x.npy", "mask.npy"}


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("ORTSAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "ortsae-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "ortsae-bench"


def test_the_bound_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTSAE_CACHE_GB", "0.5")
    assert Store.default().max_bytes == 2**29
    monkeypatch.setenv("ORTSAE_CACHE_GB", "lots")
    with pytest.raises(UsageError, match="ORTSAE_CACHE_GB"):
        Store.default()


def test_digests_depend_on_what_is_there() -> None:
    a = np.arange(6, dtype=np.int32)
    assert len({array_sha256(a), array_sha256(a.reshape(2, 3)), array_sha256(a.astype(np.int64)), array_sha256(a, a)}) == 4
    assert array_sha256(a.reshape(2, 3)) == array_sha256(np.asfortranarray(a.reshape(2, 3)))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert store_module.digest([1, "1"]) != store_module.digest(["1", 1])
