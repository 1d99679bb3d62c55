"""Fuzzed checkpoints, the same on every run, and what comes of them.

`python -m tests.fuzz [N]` opens N files of each container kind, every bomb and every payload, and prints the tables of
docs/reliability_results.md. Half of the files have changed bytes, half are well-formed but say something else.
"""

from __future__ import annotations

import io
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from bench.adapters import ADAPTERS, Given, open_checkpoint
from bench.errors import CheckpointError
from tests.adapters_cases import SUPPORTED
from tests.adapters_cases_more import MORE
from tests.adapters_layouts import X
from tests.hostile import BOMBS, carriers, payloads
from tests.test_adapters_malformed import mutate

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("safetensors", "pt", "npz", "headed pt", "json")
FAMILIES = ("bytes", "structure")
SAME, OTHER, OVERFLOWS, REFUSED = "loads, same numbers", "loads, other numbers", "loads, codes overflow", "refused"
RAISED, RAN, HUNG = "other exception", "code executed", "hang > 10 s"
LEGAL = (SAME, OTHER, OVERFLOWS, REFUSED)
NEVER = (RAISED, RAN, HUNG)
LIMIT_S, LIMIT_MIB, BOMB_LIMIT_S = 10, 512, 60
SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a small file written over on a disk waits for the disk
TOKENS = torch.tensor(X[:6], dtype=torch.float32)
AUDITED = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.fork", "os.mkdir", "socket.connect", "ctypes.dlopen"}
)
State = dict[str, Any]


class HangError(BaseException):
    """Nothing that catches exceptions may catch it."""


@dataclass
class Seed:
    """A good checkpoint: what to open, the file of a kind in it, and its codes."""

    name: str
    path: Path
    file: Path
    given: Given
    data: bytes
    codes: torch.Tensor
    state: State = field(default_factory=dict)


def kind_of(file: Path) -> str:
    if file.suffix in (".pt", ".pth"):
        return "headed pt" if file.read_bytes()[:1] == b"{" else "pt"
    return {".safetensors": "safetensors", ".npz": "npz", ".json": "json"}[file.suffix]


def seeds(folder: Path) -> dict[str, list[Seed]]:
    """Every layout the tests know, written once, by kind."""
    found: dict[str, list[Seed]] = {k: [] for k in KINDS}
    for i, (name, case) in enumerate((SUPPORTED | MORE).items()):
        home = folder / str(i)
        home.mkdir()
        path = case.write(home)
        codes = open_checkpoint(path, case.given).sae.encode(TOKENS)
        for file in sorted(f for f in home.rglob("*") if f.is_file()):
            seed = Seed(name, path, file, case.given, file.read_bytes(), codes)
            seed.state = read_state(kind_of(file), seed.data)
            found[kind_of(file)].append(seed)
    return found


def read_state(kind: str, data: bytes) -> State:
    if kind == "json":
        return json.loads(data)
    if kind == "safetensors":
        return load(data)
    if kind == "npz":
        with np.load(io.BytesIO(data)) as z:
            return {n: torch.from_numpy(z[n]) for n in z.files}
    if kind == "headed pt":
        line, _, data = data.partition(b"\n")
        return {"header": json.loads(line), "state": torch.load(io.BytesIO(data), weights_only=True)}
    return torch.load(io.BytesIO(data), weights_only=True)


def write_state(kind: str, state: State) -> bytes:
    if kind == "json":
        return json.dumps(state).encode()
    if kind == "safetensors":
        return save({n: t.contiguous().clone() for n, t in state.items() if isinstance(t, torch.Tensor)})
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez(buffer, **{n: np.asarray(t) for n, t in state.items()})  # pyright: ignore[reportArgumentType]
        return buffer.getvalue()
    if kind == "headed pt":
        torch.save(state["state"], buffer)
        return json.dumps(state["header"]).encode() + b"\n" + buffer.getvalue()
    torch.save(state, buffer)
    return buffer.getvalue()


def changed_bytes(seed: Seed, others: list[Seed], g: np.random.Generator) -> bytes:
    """One to three mutations, or the start of one file and the end of another."""
    if g.random() < 0.1:
        other = others[int(g.integers(len(others)))].data
        return seed.data[: int(g.integers(len(seed.data)))] + other[int(g.integers(len(other))) :]
    data = seed.data
    for _ in range(int(g.integers(1, 4))):
        data = mutate(data, g) if len(data) > 70 else data[: len(data) // 2]
    return data


def changed_structure(kind: str, seed: Seed, everyone: list[Seed], g: np.random.Generator) -> bytes:
    """A well-formed file of another content, or a well-formed file of another format."""
    if g.random() < 0.05:
        return everyone[int(g.integers(len(everyone)))].data
    state = dict(seed.state)
    for _ in range(int(g.integers(1, 3))):
        if kind == "json":
            state = changed_config(state, everyone, g)
        elif kind == "headed pt" and g.random() < 0.5:
            state = state | {"header": changed_config(dict(state["header"]), everyone, g)}
        elif kind == "headed pt":
            state = state | {"state": changed_tensors("pt", dict(state["state"]), g)}
        else:
            nested = [k for k, v in state.items() if isinstance(v, dict) and v]
            if kind == "pt" and nested and g.random() < 0.7:
                inside = nested[int(g.integers(len(nested)))]
                state = state | {inside: changed_tensors(kind, dict(state[inside]), g)}
            else:
                state = changed_tensors(kind, state, g)
    return write_state(kind, state)


STRANGE: tuple[Any, ...] = (
    *(None, [], {}, "", "x", "10", "True", -1, 0, 1, 5, 41, 2**31, 2**63, 2**70, 1e308, -1e308, 1e-320, 0.5, True, False, 1e5),
    *(
        [[]],
        [1, 2],
        {"k": 5},
        "\x1b[2J",
        "a\nb",
        "\u202eabc",
        "\ud800",
        "é" * 50_000,
        float("nan"),
        float("inf"),
        [[[[[]]]]],
        {"a": {"b": {}}},
    ),
    *("topk", "batchtopk", "jumprelu", "gated", "standard", "relu", "layer_norm", "dataset-wise", "blocks.0.hook_resid_post", "../../x"),
)


def changed_config(config: State, everyone: list[Seed], g: np.random.Generator) -> State:
    """One value replaced, removed, or taken from another format's config; at any depth."""
    where = config
    while (inner := [k for k, v in where.items() if isinstance(v, dict) and v]) and g.random() < 0.6:
        name = inner[int(g.integers(len(inner)))]
        where[name] = dict(where[name])
        where = where[name]
    keys, kind = sorted(where, key=str), int(g.integers(5))
    key = keys[int(g.integers(len(keys)))] if keys else "k"
    if kind == 0:
        where.pop(key, None)
    elif kind == 1:
        configs = [s.state for s in everyone if s.file.suffix == ".json"]
        other = configs[int(g.integers(len(configs)))]
        where.update({k: other[k] for k in list(other)[: int(g.integers(1, 6))]})
    else:
        where[key] = STRANGE[int(g.integers(len(STRANGE)))]
    return config


def changed_tensors(kind: str, state: State, g: np.random.Generator) -> State:
    """One tensor of another shape, type, value or name, missing, or one too many."""
    names = sorted(state)
    if not names:
        return {"W_enc": torch.zeros(3)}
    name, other = names[int(g.integers(len(names)))], names[int(g.integers(len(names)))]
    kind_of_change, value = int(g.integers(8)), state[name]
    if kind_of_change == 0:
        return {k: v for k, v in state.items() if k != name}
    if kind_of_change == 1:
        return {(other + "x" if k == name else k): v for k, v in state.items()}
    if kind_of_change == 2:
        return state | {name: state[other], other: value}
    if kind_of_change == 3:
        return state | {str(g.choice(["W_skip", "extra", "k", "threshold", "b_enc", "scaling_factor", "\x1b[2J"])): torch.ones(1)}
    if kind == "pt" and kind_of_change == 4:
        return state | {name: STRANGE[int(g.integers(len(STRANGE)))]}
    return state | {name: changed_tensor(kind, value, g)} if isinstance(value, torch.Tensor) else state


def changed_tensor(kind: str, t: torch.Tensor, g: np.random.Generator) -> torch.Tensor:
    if not 0 < t.numel() < 10**6 or t.layout != torch.strided or t.is_complex() or t.is_meta:  # changed before
        return torch.ones(3)
    numbers = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0, 1e20)
    flat = t.reshape(-1).clone()
    one = flat.clone().float()
    one[int(g.integers(len(one)))] = numbers[int(g.integers(len(numbers)))]
    dtypes = [torch.float64, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool]
    dtypes += [torch.complex64] if kind != "safetensors" else []
    dtypes += [torch.bfloat16, torch.float8_e4m3fn] if kind == "safetensors" else []
    made: list[Callable[[], torch.Tensor]] = [
        *(lambda: one.reshape(t.shape), lambda: t.to(dtypes[int(g.integers(len(dtypes)))]), lambda: torch.full_like(one, numbers[0])),
        *(lambda: flat[:-1], lambda: flat.repeat(2), lambda: flat, lambda: t[None], lambda: t.T.contiguous() if t.ndim == 2 else t[None]),
        *(lambda: torch.zeros(0), lambda: flat[:1].reshape(()), lambda: t[: max(1, len(t) // 2)] if t.ndim else t, lambda: -t.float()),
        *(
            lambda: t.float() * 1e30,
            lambda: torch.zeros_like(t),
            lambda: flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(1))],
        ),
    ]
    if kind == "pt":
        made += [lambda: t.flip(0).T if t.ndim == 2 else t, lambda: flat[0].expand(t.shape), lambda: torch.zeros(1).expand(2**40)]
        made += [lambda: t.to_sparse(), lambda: torch.zeros(t.shape, device="meta"), lambda: torch.nn.Parameter(t.float())]
    return made[int(g.integers(len(made)))]()


def outcome(seed: Seed, ran: list[str]) -> str:
    """What comes of opening it: all readers look, one reads, and six tokens are encoded."""
    before = len(ran)
    signal.alarm(LIMIT_S)
    try:
        for adapter in ADAPTERS:
            adapter.sniff(seed.path)
            adapter.sniff(seed.file)
        try:
            sae = open_checkpoint(seed.path, seed.given).sae
        except CheckpointError as e:
            found = REFUSED if e.cause and e.remedy and e.exit_code == 3 and len(str(e).splitlines()) == 1 else RAISED
        else:
            codes = sae.encode(TOKENS if sae.d_in == TOKENS.shape[1] else torch.ones(len(TOKENS), sae.d_in))  # it may be another valid SAE
            same = codes.shape == seed.codes.shape and torch.equal(codes, seed.codes)
            found = SAME if same else OTHER if bool(torch.isfinite(codes).all()) else OVERFLOWS
    except HangError:
        found = HUNG
    except Exception as e:
        print(f"{seed.name} {seed.file.name}: {type(e).__name__} {e}", file=sys.stderr)
        found = RAISED
    finally:
        signal.alarm(0)
    return RAN if len(ran) > before else found


@contextmanager
def watched() -> Iterator[list[str]]:
    """Names of audited events, such as a process or a folder made, while `ran.append` is not `None`."""
    ran: list[str] = []
    active = [True]

    def hook(event: str, _: object) -> None:
        if active[0] and event in AUDITED:
            ran.append(event)

    def late(*_: object) -> None:
        raise HangError

    sys.addaudithook(hook)
    before = signal.signal(signal.SIGALRM, late)
    try:
        yield ran
    finally:
        active[0] = False
        signal.signal(signal.SIGALRM, before)


def fuzz(kind: str, n: int, seed: int = 0) -> dict[str, Any]:
    """Counts of outcomes by family, seconds, and MiB above those before."""
    found = {f: Counter[str]() for f in FAMILIES}
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name:
        all_seeds = seeds(Path(name))
        mine, everyone = all_seeds[kind], [s for k in KINDS for s in all_seeds[k]]
        before, start, slowest = peak_mib(), time.monotonic(), 0.0
        with watched() as ran:
            for i in range(n):
                g = np.random.default_rng([seed, KINDS.index(kind), i])
                one, family = mine[int(g.integers(len(mine)))], FAMILIES[i % 2]
                one.file.write_bytes(changed_bytes(one, everyone, g) if family == "bytes" else changed_structure(kind, one, everyone, g))
                begun = time.monotonic()
                found[family][outcome(one, ran)] += 1
                slowest = max(slowest, time.monotonic() - begun)
                one.file.write_bytes(one.data)
    facts = {"seconds": time.monotonic() - start, "slowest_s": slowest, "peak_mib": peak_mib() - before, "seeds": len(mine)}
    return {"kind": kind, "n": n, "counts": {f: dict(c) for f, c in found.items()}, **facts}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What work returns in a process of its own, with its peak memory above that at its start; killed after a minute."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(BOMB_LIMIT_S)
        before, start = peak_mib(), time.monotonic()
        try:
            found = work()
        except BaseException as e:
            found = {"outcome": RAISED, "why": f"{type(e).__name__} {e}"}
        found |= {"seconds": time.monotonic() - start, "peak_mib": peak_mib() - before}
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return json.loads(said) if said else {"outcome": HUNG if signalled == signal.SIGALRM else "crashed", "seconds": 0.0, "peak_mib": 0.0}


def opened(path: Path) -> dict[str, Any]:
    """Outcome of opening a path that is none of our seeds."""
    for adapter in ADAPTERS:
        adapter.sniff(path)
    try:
        open_checkpoint(path, Given())
    except CheckpointError as e:
        return {"outcome": REFUSED, "why": str(e)}
    return {"outcome": "loads"}


def bomb(name: str) -> dict[str, Any]:
    """A bomb's size on disk and declared, and what comes of it."""
    write, declared = BOMBS[name]
    with tempfile.TemporaryDirectory() as folder:
        made = in_child(lambda: {"path": str(write(Path(folder)))})
        if "path" not in made:
            return {"name": name, "outcome": f"not made: {made.get('why')}", "seconds": 0.0, "peak_mib": 0.0, "size": 0, "declared": 0}
        path = Path(made["path"])
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        size = sum(os.stat(p).st_blocks * 512 for p in files)
        return {"name": name, "size": size, "declared": declared, **in_child(lambda: opened(path))}


def fired(name: str) -> dict[str, Any]:
    """Whether a payload works when it is let, and in how many of the containers that carry it."""
    import pickle

    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "marker" / "fired"
        marker.parent.mkdir()
        data = payloads(marker)[name]
        in_child(lambda: {"outcome": str(pickle.loads(data))})
        live = marker.exists() or marker.with_name("fired.npy").exists()
        subprocess.run(["rm", "-rf", str(marker), str(marker.with_name("fired.npy"))], check=True)
        made = carriers(Path(folder), data)
        outcomes = Counter[str]()
        for path in made.values():
            found = in_child(lambda path=path: opened(path))["outcome"]
            ran = marker.exists() or marker.with_name("fired.npy").exists()
            outcomes[RAN if ran else found] += 1
        return {"name": name, "live": live, "carriers": len(made), "outcomes": dict(outcomes)}


def worker(task: str, arguments: list[str]) -> list[dict[str, Any]]:
    """What a subprocess of `started` does."""
    torch.set_num_threads(1)
    if task == "fuzz":
        return [fuzz(kind, int(arguments[0]), int(arguments[1])) for kind in arguments[2:]]
    if task == "bombs":
        return [bomb(name) for name in arguments or BOMBS]
    return [fired(name) for name in arguments or payloads(Path("x"))]


def started(task: str, *arguments: object) -> list[dict[str, Any]]:
    """A task in a process of its own, because it counts memory, watches events and may crash."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "--worker", task, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise RuntimeError(f"{task} ended with {done.returncode}: {done.stderr[-2000:]}")
    sys.stderr.write(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[list[object]]) -> str:
    head, *rest = [[str(c) for c in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest))


def report(n: int) -> str:
    """All tables, as in the docs."""
    counted = [started("fuzz", n, 0, kind)[0] for kind in KINDS]
    classes = (*LEGAL, *NEVER)
    rows: list[list[object]] = [["container", "family", "files", *classes, "slowest s", "peak MiB", "seconds"]]
    for c in counted:
        for family, counts in c["counts"].items():
            numbers = [f"{c['slowest_s']:.2f}", f"{c['peak_mib']:.0f}", f"{c['seconds']:.0f}"]
            rows.append([c["kind"], family, sum(counts.values()), *(counts.get(k, 0) for k in classes), *numbers])
    parts = [table(rows)]
    rows = [["bomb", "on disk, KiB", "declared, MiB", "outcome", "peak MiB", "seconds"]]
    for b in started("bombs"):
        declared = f"{b['declared'] / 2**20:,.0f}" if b["declared"] else "–"
        rows.append([b["name"], f"{b['size'] / 1024:,.0f}", declared, b["outcome"], f"{b['peak_mib']:.0f}", f"{b['seconds']:.1f}"])
    parts.append(table(rows))
    rows = [["payload", "works when let", "containers", "refused", "loads without running it", "fired"]]
    for p in started("payloads"):
        counts = p["outcomes"]
        rest = p["carriers"] - sum(counts.get(k, 0) for k in (REFUSED, "loads"))
        rows.append([p["name"], "yes" if p["live"] else "no", p["carriers"], counts.get(REFUSED, 0), counts.get("loads", 0), rest])
    parts.append(table(rows))
    import safetensors

    libraries = f"torch {torch.__version__}, NumPy {np.__version__}, safetensors {safetensors.__version__}"
    return "\n\n".join([f"Python {platform.python_version()}, {libraries}, {platform.system()} {platform.machine()}", *parts])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(sys.argv[2], sys.argv[3:])))
    else:
        print(report(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
