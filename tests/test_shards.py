"""Several processes that share one SAE: the same weights as one process, whatever is divided among how many."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from baselines.mp import MP
from baselines.shards import Shards, joined
from baselines.trainer import RESUME, Job, fit_all
from bench.errors import UsageError
from tests.shards_worker import METHODS, SITE, UNDIVIDED, K, M, config, source

ROOT = Path(__file__).resolve().parents[1]
STEPS = 25
FAR = 4e-6  # of weights of size 1, after steps of 3e-3: sums in another order, and no code selected otherwise


def launch(processes: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def run(processes: int, *arguments: str) -> str:
    process = launch(processes, *arguments)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out[-3000:]
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    fit_all([Job(method, config(STEPS), folder / name) for name, method in (METHODS | UNDIVIDED).items()], source(), SITE)
    return folder


def assert_same(a: Path, b: Path) -> None:
    mine, other = load_file(a / "sae.safetensors"), load_file(b / "sae.safetensors")
    assert mine.keys() == other.keys()
    for name, t in mine.items():
        assert float((t - other[name]).abs().max()) < FAR, name
    lines = [[json.loads(line) for line in (f / "train.jsonl").read_text().splitlines()] for f in (a, b)]
    for one, two in zip(*lines, strict=True):
        for name in one.keys() - {"seconds", "tokens_per_s"}:
            assert two[name] == pytest.approx(one[name], abs=2e-5), name
    assert "aux" not in lines[0][0] or max(line["aux"] for line in lines[0]) > 0, "the auxiliary loss had nothing to do"


SOME = ("batchtopk", "topk", "jumprelu", "matryoshka", "ortsae", "c2r")
DIVIDED = {"latents": (2, 1, METHODS), "latents of four": (4, 1, SOME), "latents and batch": (4, 2, SOME), "batch": (2, 2, UNDIVIDED)}


@pytest.mark.parametrize("what", DIVIDED)
def test_several_processes_give_what_one_gives(what: str, alone: Path, tmp_path: Path) -> None:
    processes, parts, names = DIVIDED[what]
    run(processes, "tests.shards_worker", str(tmp_path), str(parts), str(STEPS), *names)
    for name in names:
        assert_same(alone / name, tmp_path / name)
        assert json.loads((tmp_path / name / "sae.json").read_text())["training"]["processes"] == processes


def test_killed_processes_leave_what_one_process_goes_on_from(tmp_path: Path) -> None:
    steps, name = 200, "ortsae"
    process = launch(2, "tests.shards_worker", str(tmp_path / "cut"), "1", str(steps), name, "--save")
    kept = tmp_path / "cut" / name / RESUME
    deadline = time.monotonic() + 300
    while not kept.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert len(workers) == 2
    assert kept.exists() and not (tmp_path / "cut" / name / "sae.json").exists()
    for folder in ("cut", "whole"):
        fit_all([Job(METHODS[name], config(steps), tmp_path / folder / name)], source(), SITE)
    cut, whole = (load_file(tmp_path / f / name / "sae.safetensors")["W_dec"] for f in ("cut", "whole"))
    # over hundreds of steps differences of rounding grow, as they do between any two orders of summation
    assert float(torch.nn.functional.cosine_similarity(cut, whole).median()) > 0.999


def test_the_command_line_trains_with_torchrun_and_speaks_once(tmp_path: Path) -> None:
    arguments = ["--lm", "world:small", "--d-sae", "64", "--k", "4", "--tokens", "4000", "--steps", "12", "--batch", "128"]
    out = run(2, "bench", "train", "batchtopk", *arguments, "--out", str(tmp_path / "sae"))
    assert out.count("wrote ") == 1 and out.count('"training set"') == 1
    assert (tmp_path / "sae" / "sae.safetensors").exists() and not (tmp_path / "sae" / RESUME).exists()


def test_what_cannot_be_divided_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="mp cannot be divided"):
        fit_all([Job(MP(M, K), config(2), tmp_path)], source(), SITE, shards=Shards(0, 2))
    with pytest.raises(UsageError, match="batch of 128"):
        fit_all([Job(METHODS["topk"], config(2), tmp_path)], source(), SITE, shards=Shards(0, 1, 0, 3))
    with pytest.raises(UsageError, match="199 latents"):
        fit_all([Job(METHODS["topk"], config(2), tmp_path)], source(), SITE, shards=Shards(0, 200))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="4 processes"):
        joined(3)


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_of_the_latents_are_all_of_them_once(m: int, count: int) -> None:
    parts = [Shards(r, count).mine(torch.arange(m)) for r in range(count)]
    assert torch.equal(torch.cat(parts), torch.arange(m))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    tokens = [Shards(0, 1, r, count).tokens(torch.arange(m)) for r in range(count)]
    assert sorted(torch.cat(tokens).tolist()) == list(range(m))


@given(st.lists(st.sampled_from([1e-30, 0.5, 1.0, 1.0000001, 3e8]) | st.floats(2**-10, 2**10, width=32), max_size=60), st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_by_their_bits_are_the_largest(dtype: torch.dtype, numbers: list[float], data: st.DataObject) -> None:
    values = torch.tensor(numbers, dtype=dtype)
    count = data.draw(st.integers(0, len(values)))
    found = Shards().largest(values, count)
    expected = np.zeros(len(values), dtype=bool)
    expected[np.argsort(-values.numpy(), kind="stable")[:count]] = True  # among equal ones the first
    assert np.array_equal(found.numpy(), expected)
