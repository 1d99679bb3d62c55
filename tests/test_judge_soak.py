"""A judge under faults and kill -9: nothing is lost, and nothing that was kept is asked again."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.judge.answers import Answers
from bench.judge.openai import OpenAIJudge
from tests.judge_server import Asked, Server, questions, serving

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ("429", "429 seconds", "500", "cut", "slow", "malformed", "nonsense")
SHARE = 0.3
CONCURRENCY, TIMEOUT_S, SLOW_S = 16, 1.5, 2.0


@dataclass(frozen=True)
class Soak:
    """What came of it.

    Args:
        status: How many questions have which.
        requests: That the server saw.
        faults: Of them.
        kills: Of the client.
        repeated: Good answers beyond the first to a question.
        after_kept: Requests for a question whose answer was on disk at an earlier kill.
        seconds: In all.
    """

    status: dict[str, int]
    requests: int
    faults: dict[str, int]
    kills: int
    repeated: int
    after_kept: int
    seconds: float


def plan(asked: Asked) -> str:
    """The same fault for the same attempt, however often the soak is run."""
    drawn = hashlib.sha256(f"{asked.name}/{asked.nth}".encode()).digest()
    if int.from_bytes(drawn[:4], "big") / 2**32 >= SHARE:
        return "ok"
    return FAULTS[drawn[4] % len(FAULTS)]


def start(server: Server, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.judge_client", server.url, str(n), str(CONCURRENCY), str(TIMEOUT_S)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed_after(process: subprocess.Popen[str], server: Server, requests: int) -> bool:
    """Kill the process once the server has seen so many requests; False if it ended before."""
    while len(server.asked) < requests:
        if process.poll() is not None:
            break
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def soak(n: int, kills: int, seed: int = 0) -> Soak:
    """Ask `n` questions of a server with faults, killing the client and starting it again."""
    rng, begun, done, after_kept = random.Random(seed), time.monotonic(), 0, 0
    with serving(plan, slow_s=SLOW_S, wait_s=0.05) as server:
        judge = OpenAIJudge("m", base_url=server.url)
        names = {judge.request(q).prompt: f"latent {i}" for i, q in enumerate(questions(n))}
        kept_at: dict[str, int] = {}  # how many requests the server had seen when an answer was first found on disk
        for point in sorted(rng.uniform(0.02, 0.95) * n for _ in range(kills)):
            done += killed_after(start(server, n), server, max(round(point), len(server.asked) + 1))
            with Answers() as answers:
                on_disk = answers.get(list(names))
            kept_at = {names[p]: len(server.asked) for p in on_disk} | kept_at
        last = start(server, n)
        out, _ = last.communicate()
        after_kept = sum(i >= kept_at.get(a.name, 10**9) for i, a in enumerate(server.asked))
        requests = len(server.asked)
        again, _ = start(server, n).communicate()
        assert json.loads(again) == {"status": json.loads(out)["status"], "calls": 0, "cached": n}
        assert len(server.asked) == requests
        repeated = len(server.good) - len({name for name, _ in server.good})
        status = Counter(json.loads(out)["status"])
        return Soak(dict(status), requests, server.faults, done, repeated, after_kept, time.monotonic() - begun)


def check(found: Soak, n: int) -> None:
    assert found.status.keys() <= {"ok", "unscored"} and sum(found.status.values()) == n
    assert found.after_kept == 0
    assert found.repeated <= found.kills * CONCURRENCY
    assert found.status["unscored"] >= found.faults["nonsense"] - found.repeated
    assert set(found.faults) == {"ok", *FAULTS}
    assert 0.2 < 1 - found.faults["ok"] / found.requests < 0.4


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_two_hundred_questions() -> None:
    found = soak(200, kills=3)
    assert found.kills == 3
    check(found, 200)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_questions() -> None:
    found = soak(10_000, kills=12)
    print(found)
    assert found.kills == 12
    check(found, 10_000)
