"""Ctrl-C and kill -9: what was finished is kept, the same command goes on, and the end is the same."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from safetensors.torch import load_file

from bench import interrupts, progress
from bench.record import Records
from bench.store import Store
from tests.test_cli import Forks, environment, make_site, run_line, sae_at, start_forks

KILL_POINTS = 10


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def forks(site: Path) -> Iterator[Forks]:
    started = start_forks(site)
    yield started
    assert started.server.stdin is not None and started.server.stdout is not None
    started.server.stdin.close()
    started.server.wait(30)
    started.server.stdout.close()


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def terminal(site: Path, *argv: str) -> pexpect.spawn:
    """`python -m bench …` in a terminal of its own."""
    import sys

    child = pexpect.spawn(sys.executable, ["-m", "bench", *argv], cwd=str(site), env=environment(site), timeout=90, encoding="utf8")
    child.setwinsize(40, 240)
    return child


def rest(child: pexpect.spawn) -> tuple[int, str]:
    """Exit code and everything that was printed until the end, without colours and movements of the cursor."""
    child.expect(pexpect.EOF)
    text = child.before or ""
    child.close()
    return child.exitstatus, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_first_asks_and_the_second_stops() -> None:
    with interrupts.polite():
        interrupts.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    interrupts.check()  # nothing is left pending


def test_the_unit_at_hand_is_finished() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), interrupts.polite(), progress.track("units", 9) as advance:
        for i in range(9):
            if i == 3:
                signal.raise_signal(signal.SIGINT)
            done.append(i)
            advance(1)
    assert done == [0, 1, 2, 3]


def test_afterwards_a_signal_is_what_it_was_before() -> None:
    mine = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background ignores SIGINT
    try:
        with interrupts.polite():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interrupts.check()
    finally:
        signal.signal(signal.SIGINT, mine)


def test_ctrl_c_during_a_run(site: Path, forks: Forks) -> None:
    """Several SAEs and long texts; after the interrupt the same command measures what is left and no more."""
    for i in range(6):
        sae_at(site / f"many {i}", seed=i)
    line = [word for i in range(6) for word in ("--sae", f"many {i}")]
    line = [
        "run",
        *line,
        "--text",
        "file:text.txt",
        "--limit",
        "3000",
        "--tasks",
        "reconstruction,distinct_features",
        "--records",
        "stopped",
    ]
    child = terminal(site, *line)
    child.expect("measuring")
    child.expect("measuring")
    child.sendintr()
    code, said = rest(child)
    assert code == 130, said
    assert "interrupted; what was finished is kept" in said and "Traceback" not in said
    resume = next(text for text in said.splitlines() if "python -m bench run" in text)
    assert "'many 0'" in resume and resume.strip().endswith("--records stopped")
    kept, bad = Records(site / "stopped").scan()
    assert not bad and 1 <= len(kept) < 12
    again = forks.run(*line)
    assert again.code == 0 and f"{12 - len(kept)} measured, {len(kept)} already recorded, 0 failed" in again.out
    whole = forks.run(*line[:-1], "whole")
    assert whole.summary == again.summary and "12 measured" in whole.out


def train_line(out: str) -> list[str]:
    sizes = ["--tokens", "4000", "--d-sae", "64", "--k", "4", "--batch", "64", "--steps", "1500"]
    place = ["--lm", "tiny:random", "--hook", "blocks.1.hook_resid_post", "--text", "file:text.txt"]
    return ["train", "batchtopk", *sizes, *place, "--out", out]


def test_ctrl_c_during_training(site: Path, forks: Forks) -> None:
    """The stopped and resumed training ends with the very weights of the undisturbed one."""
    child = terminal(site, *train_line("stopped-sae"))
    child.expect("training stopped-sae")
    time.sleep(0.5)
    child.sendintr()
    code, said = rest(child)
    assert code == 130, said
    assert "interrupted" in said and "python -m bench train batchtopk --tokens 4000" in said and "Traceback" not in said
    assert (site / "stopped-sae" / "resume.safetensors").exists() and not (site / "stopped-sae" / "sae.json").exists()
    again = forks.run(*train_line("stopped-sae"))
    assert again.code == 0 and "going on with an interrupted run" in again.err, again.err
    assert not (site / "stopped-sae" / "resume.safetensors").exists()
    assert forks.run(*train_line("whole-sae")).code == 0
    a, b = (load_file(site / name / "sae.safetensors") for name in ("stopped-sae", "whole-sae"))
    assert a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def test_other_settings_do_not_go_on_with_an_unfinished_training(site: Path, forks: Forks) -> None:
    child = terminal(site, *train_line("half-sae"))
    child.expect("training half-sae")
    time.sleep(0.3)
    child.sendintr()
    assert rest(child)[0] == 130
    other = forks.run(*train_line("half-sae"), "--seed", "1")
    assert other.code == 2 and "unfinished run with other settings" in other.err


def test_kill_at_any_point_then_the_same_command(site: Path, forks: Forks) -> None:
    """kill -9 at seeded points of a run, each with a cache and records of its own; the summary is that of an undisturbed run."""
    start = time.monotonic()
    whole = forks.run(*run_line("--records", "undisturbed"), ORTSAE_CACHE=str(site / "cache-undisturbed"))
    length = time.monotonic() - start
    assert whole.code == 0, whole.err
    rng = random.Random(0)
    killed = 0
    for case in range(KILL_POINTS):
        cache = site / f"cache-{case}"
        line, env = run_line("--records", f"killed-{case}"), {"ORTSAE_CACHE": str(cache)}
        for _ in range(2):
            dead = forks.run(*line, kill_after=rng.uniform(0.1, 1) * length, **env)
            killed += dead.code == -signal.SIGKILL
            assert dead.code in (0, -signal.SIGKILL)
            assert Records(site / f"killed-{case}").scan()[1] == []
            assert Store(cache).verify() == []
        again = forks.run(*line, **env)
        assert again.code == 0 and again.summary == whole.summary, (case, again.err)
        assert "2 measured" in again.out or "already recorded" in again.out
        shutil.rmtree(cache)
    assert killed >= KILL_POINTS
    kept = [Records(site / name).scan()[0] for name in ("undisturbed", "killed-0")]
    metrics = [{r.task.name: {n: m.value for n, m in r.metrics.items()} for r in records} for records in kept]
    assert metrics[0] == metrics[1]
