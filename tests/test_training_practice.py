"""Training in practice: kills, divergence, sweeps, streaming, what is logged, and the recipe's rules."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pexpect
import pytest
import torch
from torch import Tensor

from baselines import curves, display, parts, trackers
from baselines.activations import TrainingSet, harvested
from baselines.batchtopk import BatchTopK
from baselines.frozen_decoder import FrozenDecoder
from baselines.ortsae import OrtSAE
from baselines.parts import Forward, State, Weights, tied_init
from baselines.recipe import FitConfig, Job, steps_for
from baselines.relu import ReLU
from baselines.resume import RESUME, cut_back, recall, remember
from baselines.stream import Stream, streamed
from baselines.sweep import make_settings
from baselines.topk import TopK
from baselines.trainer import DivergedError, fit, fit_all
from bench.adapters import Given, open_checkpoint
from bench.errors import ResourceError, UsageError, VerificationError
from bench.lm import tiny
from bench.lm.harvest import Harvest, keep_mask, norm_cut
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.store import Store
from tests.worlds import corpus, dictionary, documents, sparse_world, tiny_context, training_set

SITE = {"lm": "tiny:random", "revision": "0", "hook": "blocks.1.hook_resid_post"}
ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")
LLAMA, MATPLOTLIB = "transformers.models.llama.modeling_llama", ["matplotlib.figure", "matplotlib.backends.backend_agg"]
FORKS.set_forkserver_preload(["bench.cli", "baselines.trainer", "baselines.sweep", "bench.runner", LLAMA, *MATPLOTLIB])


def weights_of(folder: Path) -> bytes:
    return (folder / "sae.safetensors").read_bytes()


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sae.json").read_text())["training"]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


# --- processes ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "text.txt").write_text("\n\n".join(documents(80)))
    return folder


def bench_process(site: Path, argv: list[str]) -> None:
    """The command line in a process of its own; what it says goes to files."""
    from bench.cli import main

    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(site / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    os.environ["ORTSAE_CACHE"] = str(site / "cache")
    torch.set_num_threads(1)
    main(argv)


def command(site: Path, *argv: str, kill_at: Path | None = None) -> int:
    """Exit code of a command; with `kill_at` it gets SIGKILL once that file has been written four times."""
    process = FORKS.Process(target=bench_process, args=(site, list(argv)))
    process.start()
    seen: set[int] = set()
    while kill_at is not None and len(seen) < 4 and process.is_alive():
        if kill_at.exists():
            seen.add(kill_at.stat().st_mtime_ns)
        time.sleep(0.001)
    if kill_at is not None:
        process.kill()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def asked(site: Path, out: str, *more: str) -> list[str]:
    sizes = ["--tokens", "4000", "--d-sae", "64", "--k", "4", "--batch", "64", "--steps", "200", "--save-every", "0.02"]
    place = ["--lm", "tiny:random", "--hook", "blocks.1.hook_resid_post", "--text", f"file:{site}/text.txt"]
    return ["train", *more, *sizes, *place, "--out", str(site / out)]


@pytest.fixture(scope="module")
def alone(site: Path) -> Callable[..., Path]:
    """Folder of an SAE that was trained in one go; the same line is trained once."""

    @functools.cache
    def train(*argv: str) -> Path:
        name = " ".join(["alone", *argv])
        assert command(site, *asked(site, name, *argv)) == 0, (site / "err").read_text()
        return site / name

    return train


KILLED = {"stored": ["batchtopk"], "a stream": ["relu", "--stream", "--buffer", "1000"]}


@pytest.mark.parametrize("case", KILLED)
def test_killed_training_goes_on_to_the_same_bytes(site: Path, alone: Callable[..., Path], case: str) -> None:
    killed, line = site / f"killed {case}", asked(site, f"killed {case}", *KILLED[case])
    assert command(site, *line, kill_at=killed / RESUME) == -9
    assert (killed / RESUME).exists() and not (killed / "sae.json").exists() and lines_of(killed)[-1]["step"] < 200
    assert command(site, *line) == 0
    assert "going on with an interrupted run" in (site / "err").read_text()
    whole = alone(*KILLED[case])
    assert weights_of(killed) == weights_of(whole) and not (killed / RESUME).exists()
    timing = ("seconds", "tokens_per_s")
    logs = [[{k: v for k, v in line.items() if k not in timing} for line in lines_of(folder)] for folder in (killed, whole)]
    assert logs[0] == logs[1]


SWEEP = """
d_sae = 32
data_seed = 0

[[sae]]
method = "batchtopk"

[[sae]]
method = "relu"
seed = 5
lr = 2e-3

[[sae]]
method = "ortsae"
name = "wide"
base = "matryoshka"
gamma = 0.1
k = 6
"""
ALONE = {
    "batchtopk": ["batchtopk"],
    "relu": ["relu", "--seed", "5", "--data-seed", "0", "--lr", "2e-3"],
    "wide": ["ortsae", "--param", "base=matryoshka", "--param", "gamma=0.1", "--param", "k=6"],
}


def test_a_killed_sweep_ends_as_if_each_were_trained_alone(site: Path, alone: Callable[..., Path]) -> None:
    (site / "sweep.toml").write_text(SWEEP)
    line = asked(site, "sweep", "--sweep", str(site / "sweep.toml"))  # its --d-sae is before the file's
    assert command(site, *line, kill_at=site / "sweep" / "wide" / RESUME) == -9
    assert command(site, *line) == 0
    said = (site / "out").read_text()
    for name, argv in ALONE.items():
        assert weights_of(alone(*argv)) == weights_of(site / "sweep" / name), name
        assert f"sweep/{name}: " in said
    assert (site / "sweep" / "curves.png").exists()
    assert command(site, *line) == 2 and "already holds" in (site / "err").read_text()


def test_an_absurd_rate_ends_with_code_1_and_the_last_good_state(site: Path) -> None:
    assert command(site, *asked(site, "absurd", "batchtopk", "--lr", "1e30")) == 1
    said = [line for line in (site / "err").read_text().splitlines() if not line.startswith("{")]
    assert len(said) == 2 and said[0].startswith("error: training of absurd stopped at step") and said[1] == "  → lower --lr"
    facts = facts_of(site / "absurd")
    assert facts["stopped_early"]["step"] > facts["steps_done"]
    sae = open_checkpoint(site / "absurd", Given()).sae
    assert all(bool(t.isfinite().all()) for t in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    assert not (site / "absurd" / RESUME).exists()


def test_a_diverging_member_of_a_sweep_is_code_1_and_the_others_end_well(site: Path, alone: Callable[..., Path]) -> None:
    (site / "half.toml").write_text('[[sae]]\nmethod = "batchtopk"\n[[sae]]\nmethod = "relu"\nlr = 1e30\n')
    assert command(site, *asked(site, "half", "--sweep", str(site / "half.toml"))) == 1
    out, err = (site / "out").read_text(), (site / "err").read_text()
    assert "half/batchtopk: batchtopk, ev" in out and "half/relu: relu" in out and "stopped early at step" in out
    assert "error: 1 of 2 SAEs stopped early: relu" in err
    assert weights_of(site / "half" / "batchtopk") == weights_of(alone("batchtopk"))


WRONG = {
    "neither": (["train", "--out", "x"], "method or --sweep"),
    "both": (["train", "relu", "--sweep", "sweep.toml", "--out", "x"], "not both"),
    "no file": (["train", "--sweep", "none.toml", "--out", "x"], "is not a sweep"),
    "a parameter": (["train", "--sweep", "sweep.toml", "--param", "a=1", "--out", "x"], "does not apply to a sweep"),
    "a tracker": (["train", "relu", "--log", "tensorbord", "--out", "x"], "unknown tracker 'tensorbord'"),
    "a negative": (["train", "relu", "--buffer", "-1", "--out", "x"], "--buffer -1 is less than 1"),
    "a streamed world": (["train", "relu", "--lm", "world:tiny", "--stream", "--out", "x"], "is a planted world"),
    "a key": ('tokns = 1\n[[sae]]\nmethod = "relu"', "no parameter 'tokns'"),
    "a name": ('[[sae]]\nmethod = "relu"\nname = "../x"', "can be a folder's"),
    "two of one name": ('[[sae]]\nmethod = "relu"\n[[sae]]\nmethod = "relu"', "two SAEs named relu"),
    "an unknown method": ('[[sae]]\nmethod = "rellu"', "unknown method 'rellu'"),
    "no table": ("tokens = 1000", "is not a sweep"),
    "a type": ('[[sae]]\nmethod = "relu"\nlr = "fast"', "lr = 'fast'"),
}


def test_wrong_lines_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path / "cache"))
    for case, (line, cause) in WRONG.items():
        (tmp_path / "sweep.toml").write_text(line if isinstance(line, str) else "")
        argv = ["train", "--sweep", "sweep.toml", "--lm", "world:tiny", "--out", "x"] if isinstance(line, str) else line
        with pytest.raises(UsageError) as caught:
            app(argv, standalone_mode=False)
        assert cause in caught.value.cause, case
        assert caught.value.remedy and not (tmp_path / "x").exists(), case


# --- one process ---


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return training_set(sparse_world(6000, dictionary(48, 24, seed=3), 3, noise=0.01))


QUICK = FitConfig(steps=120, batch=128, lr=3e-3, log_every=20)
BASE = BatchTopK(d_sae=64, k=3)


@dataclass(frozen=True)
class Anchored(BatchTopK):
    """Pulls decoder rows to an anchor that is kept with the weights and never learned."""

    name: ClassVar[str] = "anchored"

    def init(self, mean: Tensor, rng: torch.Generator) -> Weights:
        start = tied_init(self.d_sae, mean, rng)
        return replace(start, extra={"anchor": start.W_dec.clone(), "order": torch.arange(self.d_sae)})

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        terms, forward = super().loss(w, x, state, rng)
        return {**terms, "pull": 0.1 * (w.W_dec - w.extra["anchor"].detach()).square().sum() / self.d_sae}, forward

    def update(self, state: State, forward: Forward) -> State:
        after = parts.count_silence(state, forward)
        return replace(after, extra={"mean": 0.9 * state.extra.get("mean", 0.0) + 0.1 * forward.codes.floor})


@dataclass(frozen=True)
class Breaks(BatchTopK):
    """Ends in infinity, or in an interrupt, at a step."""

    name: ClassVar[str] = "breaks"
    at: int = 70
    interrupt: bool = False

    def loss(self, w: Weights, x: Tensor, state: State, rng: torch.Generator) -> tuple[dict[str, Tensor], Forward]:
        terms, forward = super().loss(w, x, state, rng)
        if state.step == self.at and self.interrupt:
            raise KeyboardInterrupt
        return {**terms, "mse": terms["mse"] * (torch.inf if state.step == self.at else 1.0)}, forward


class Counted(TrainingSet):
    """Counts its batches, and can be interrupted before one."""

    def batch(self, step: int, size: int) -> Tensor:
        reads: list[int] = self.__dict__.setdefault("reads", [])
        if step == self.__dict__.get("stop"):
            self.__dict__.pop("stop")
            raise KeyboardInterrupt
        reads.append(step)
        return super().batch(step, size)


def counted(data: TrainingSet) -> Counted:
    return Counted(data.shards, data.kept, data.sha256, data.dropped, data.seed)


def test_weights_without_optimiser_state_and_a_method_s_memory_are_remembered(data: TrainingSet, tmp_path: Path) -> None:
    source = counted(data)
    source.__dict__["stop"] = 77
    with pytest.raises(KeyboardInterrupt):
        fit(Anchored(d_sae=64, k=3), source, QUICK, tmp_path / "a", SITE)
    with (tmp_path / "a" / "train.jsonl").open("a") as f:  # lines after the remembered step, and a torn one
        f.write(json.dumps({"step": 81, "tokens": 1}) + "\n" + '{"step": 1')
    fit(Anchored(d_sae=64, k=3), source, QUICK, tmp_path / "a", SITE)
    fit(Anchored(d_sae=64, k=3), data, QUICK, tmp_path / "b", SITE)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert source.__dict__["reads"] == list(range(120))
    steps = [line["step"] for line in lines_of(tmp_path / "a")]
    assert steps == [1, 21, 41, 61, 81, 101, 120] and lines_of(tmp_path / "a")[4]["mse"] == lines_of(tmp_path / "b")[4]["mse"]


def test_remember_and_recall_are_inverse(tmp_path: Path) -> None:
    def fresh(seed: int) -> tuple[Weights, torch.optim.Adam]:
        w = tied_init(5, torch.zeros(3), torch.Generator().manual_seed(seed))
        w = replace(w, extra={"anchor": torch.ones(5), "order": torch.arange(5)})
        learned = [t.requires_grad_(True) for n, t in w.named().items() if n not in ("anchor", "order")]
        return w, torch.optim.Adam(learned, fused=True)

    w, opt = fresh(0)
    (w.W_dec.square().sum() + w.W_enc.sum()).backward()
    opt.step()
    state = State(7, 9, torch.tensor([1, 2, 3, 4, 2**40]), 100, 0.1 + 0.2, {"strength": 1 / 3})
    remember(tmp_path, "me", w, opt, state, 12.5)
    again, other = fresh(1)
    back, seconds = recall(tmp_path, "me", again, other, State(0, 9, torch.zeros(5, dtype=torch.long), 100))
    assert seconds == 12.5 and back.extra == state.extra and back.floor == state.floor and back.step == 7
    assert torch.equal(back.silent, state.silent)
    assert all(torch.equal(t, again.named()[n]) for n, t in w.named().items())
    for n in ("W_dec", "W_enc"):
        mine, theirs = opt.state[w.named()[n]], other.state[again.named()[n]]
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert w.b_enc not in opt.state and again.b_enc not in other.state
    with pytest.raises(UsageError, match="other settings"):
        recall(tmp_path, "you", again, other, state)
    whole = (tmp_path / RESUME).read_bytes()
    for damaged in (whole[:-10], b"", b"\xff" * 100):
        (tmp_path / RESUME).write_bytes(damaged)
        with pytest.raises(UsageError, match="is damaged"):
            recall(tmp_path, "me", again, other, state)
    with pytest.raises(ResourceError):
        remember(tmp_path / "none", "me", w, opt, state, 0.0)


def test_an_interrupt_within_a_step_is_not_remembered(data: TrainingSet, tmp_path: Path) -> None:
    """A second Ctrl-C may come when weights have moved and the state has not."""
    with pytest.raises(KeyboardInterrupt):
        fit(Breaks(d_sae=64, k=3, interrupt=True), data, QUICK, tmp_path, SITE)
    assert not (tmp_path / RESUME).exists()


def test_the_state_before_an_infinite_loss_is_kept(data: TrainingSet, tmp_path: Path) -> None:
    method = Breaks(d_sae=64, k=3)
    with pytest.raises(DivergedError) as caught:
        fit(method, data, replace(QUICK, checkpoint_at=(61 / 120,)), tmp_path, SITE)
    assert caught.value.exit_code == 1 and "step 70" in caught.value.cause and "holds step 61" in caught.value.cause
    facts = facts_of(tmp_path)
    assert facts["steps_done"] == 61 and facts["stopped_early"]["step"] == 70
    assert weights_of(tmp_path) == weights_of(tmp_path / "stage-61")


def test_poisoned_data_keep_the_present_state(tmp_path: Path) -> None:
    data = training_set(sparse_world(6000, dictionary(48, 24, seed=3), 3, noise=0.01))
    assert data.moments[1] > 0  # measured before a bit flips
    x = data.batch(30, 128)[3].numpy()
    shard = next(s for s in data.shards if (s == x.astype(np.float16)).all(1).any())
    shard[(shard == x.astype(np.float16)).all(1), 5] = np.nan
    with pytest.raises(DivergedError) as caught:
        fit(BASE, data, replace(QUICK, checkpoint_at=(30 / 120,)), tmp_path, SITE)
    assert "activation" in caught.value.remedy
    assert facts_of(tmp_path)["steps_done"] == 30
    assert weights_of(tmp_path) == weights_of(tmp_path / "stage-30")
    broken = TrainingSet(data.shards, data.kept, data.sha256, 0.0, 0)
    with pytest.raises(VerificationError, match="variance nan"):
        fit(BASE, broken, QUICK, tmp_path / "never", SITE)


def test_a_sweep_reads_each_batch_once_and_survives_a_diverging_member(data: TrainingSet, tmp_path: Path) -> None:
    methods = {"a": BASE, "bad": Breaks(d_sae=64, k=3), "c": OrtSAE(base=ReLU(d_sae=80, k=3))}
    source = counted(data)
    ended = fit_all([Job(m, replace(QUICK, seed=i), tmp_path / n) for i, (n, m) in enumerate(methods.items())], source, SITE)
    assert source.__dict__["reads"] == list(range(120))
    assert [isinstance(e, DivergedError) for e in ended] == [False, True, False]
    for i, name in enumerate(methods):
        if name != "bad":
            fit(methods[name], data, replace(QUICK, seed=i), tmp_path / "alone" / name, SITE)
            assert weights_of(tmp_path / name) == weights_of(tmp_path / "alone" / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        fit(BASE, data, QUICK, tmp_path / "file" / "x", SITE)
    with pytest.raises(UsageError):
        fit_all([Job(BASE, QUICK, tmp_path / "x"), Job(BASE, replace(QUICK, batch=64), tmp_path / "y")], data, SITE)


def test_members_that_were_remembered_at_different_steps_meet_again(data: TrainingSet, tmp_path: Path) -> None:
    jobs = [Job(BASE, QUICK, tmp_path / "a"), Job(ReLU(d_sae=64, k=3), QUICK, tmp_path / "b")]
    for stop, chosen in ((60, jobs), (90, jobs[1:])):
        source = counted(data)
        source.__dict__["stop"] = stop
        with pytest.raises(KeyboardInterrupt):
            fit_all(chosen, source, SITE)
    source = counted(data)
    fit_all(jobs, source, SITE)
    assert source.__dict__["reads"] == list(range(60, 120))
    for job in jobs:
        fit(job.method, data, QUICK, tmp_path / "alone" / job.out.name, SITE)
        assert weights_of(job.out) == weights_of(tmp_path / "alone" / job.out.name)


def test_facts_tell_time_speed_and_kernel(data: TrainingSet, tmp_path: Path) -> None:
    start = time.perf_counter()
    fit(BASE, data, QUICK, tmp_path, SITE)
    spent = time.perf_counter() - start
    facts, last = facts_of(tmp_path), lines_of(tmp_path)[-1]
    assert 0 < facts["seconds"] < spent and facts["compiled_kernel"] in (True, False)
    assert facts["tokens_per_s"] == pytest.approx(120 * 128 / facts["seconds"], rel=0.01)
    assert last["tokens"] == 120 * 128 and last["tokens_per_s"] > 0 and "stopped_early" not in facts
    between = lines_of(tmp_path)
    pace = (between[3]["tokens"] - between[2]["tokens"]) / (between[3]["seconds"] - between[2]["seconds"])
    assert between[3]["tokens_per_s"] == pytest.approx(pace, rel=0.01)
    assert set(os.listdir(tmp_path)) == {"sae.json", "sae.safetensors", "train.jsonl", "curves.png"}


def test_a_log_is_cut_back_to_its_step(tmp_path: Path) -> None:
    log = tmp_path / "train.jsonl"
    assert cut_back(log, 3) == {}
    log.write_text('{"step": 1}\n{"step": 3, "ev": 0.5}\n{"step": 4}\n{"st')
    assert cut_back(log, 3) == {"step": 3, "ev": 0.5}
    assert log.read_text() == '{"step": 1}\n{"step": 3, "ev": 0.5}\n'
    log.write_text('{"step": 1}\n{"st')
    assert cut_back(log, 3) == {"step": 1} and log.read_text() == '{"step": 1}\n'


# --- recipe ---


def test_rules_of_the_recipe_by_hand() -> None:
    short, middle, long = (FitConfig(steps=n) for n in (19_999, 20_000, 50_000))
    assert [c.batch for c in (short, middle, long)] == [512, 2048, 2048]
    assert [c.lr for c in (short, middle, long)] == [1e-3, 1e-3, 2e-4]
    assert [c.warmup for c in (FitConfig(steps=10), short, long)] == [1, 999, 1000]
    dead = [FitConfig(steps=n).dead_after for n in (100, 40_000, 1_000_000)]
    assert dead == [200_000, 40_000 * 2048 // 50, 10_000_000]
    own = FitConfig(steps=60_000, batch=64, lr=0.5, warmup=7, dead_after=9, decay=0.5)
    assert (own.batch, own.lr, own.warmup, own.dead_after) == (64, 0.5, 7, 9)
    assert own.rate(6) == 0.5 and own.rate(30_000) == 0.5 and own.rate(45_000) == 0.25
    assert FitConfig(steps=10, lr=1.0, decay=0.0).rate(9) == 1.0
    assert steps_for(40_960_000, 0) == (20_000, 2048) and steps_for(40_959_999, 0) == (40_959_999 // 512, 512)
    assert steps_for(1000, 100) == (10, 100) and steps_for(10, 0) == (1, 512)
    a = FitConfig(steps=10)
    assert a.identity == replace(a, log_every=3, save_every=1.0, checkpoint_at=(0.5,)).identity != replace(a, clip=2.0).identity


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_without_steps_sees_the_text_as_often_as_it_says(stream: bool, tmp_path: Path) -> None:
    asked = make_settings({"stream": stream, "device": "cpu"})
    for n in (1_000_000, 9_000_000, 11_000_000, 19_500_000, 40_000_000, 60_000_000):
        config = asked.job(asked.member({"method": "topk"}, lambda name, rest: TopK(**rest)), n, tmp_path).config
        assert config.steps * config.batch == pytest.approx(n if stream else 2 * n, rel=0.01), n


@pytest.mark.parametrize("values", [{"d_sae": 1}, {"k": 0}, {"k": -3}, {"lr": -1e-3}])
def test_an_sae_s_own_values_are_bounded_too(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="is less than"):
        make_settings({}).member({"method": "topk", **values}, lambda name, rest: TopK(**rest))


def test_a_latent_is_dead_after_the_recipe_s_tokens(data: TrainingSet, tmp_path: Path) -> None:
    never = fit(FrozenDecoder(base=BASE), data, QUICK, tmp_path / "a", SITE).log["dead"]
    soon = fit(FrozenDecoder(base=BASE), data, replace(QUICK, dead_after=128), tmp_path / "b", SITE).log["dead"]
    assert never == 0 < soon


# --- what a reader sees ---


def log_lines(n: int, **more: float) -> list[dict[str, float]]:
    return [
        {
            "step": i,
            "tokens": 512 * i,
            "lr": 1e-3,
            "mse": 1 / i,
            "aux": 0.0 if i % 2 else 0.01,
            "ev": 1 - 1 / i,
            "l0": 40 - i,
            "dead": i / 100,
            **more,
        }
        for i in range(1, n + 1)
    ]


def test_curves_show_every_term_of_a_run(tmp_path: Path) -> None:
    run = curves.Run("one", log_lines(9, orth=0.5), k=32)
    assert run.terms == ("mse", "aux", "orth") and run.series("orth") == ([512 * i for i in range(1, 10)], [0.5] * 9)
    ev, loss, l0, dead = curves.figure_of([run]).axes
    for axis, key in ((ev, "ev"), (l0, "l0"), (dead, "dead")):
        assert axis.get_lines()[0].get_xydata().tolist() == [[t, v] for t, v in zip(*run.series(key), strict=True)]
    assert [line.get_label() for line in loss.get_lines()] == ["mse", "aux", "orth"]
    assert np.isnan(loss.get_lines()[1].get_ydata()[0]) and loss.get_yscale() == "log"  # a term of 0 is not drawn there
    assert l0.get_lines()[1].get_ydata()[0] == 32
    assert all(axis.get_ylabel() for axis in (ev, loss, l0, dead)) and all("tokens" in axis.get_xlabel() for axis in (l0, dead))
    colours = [line.get_color() for line in loss.get_lines()]
    assert len(set(colours)) == 3


def test_curves_of_many_runs_differ_in_colour_or_dashes(tmp_path: Path) -> None:
    runs = [curves.Run(f"run {i}", log_lines(4), k=5 + i % 2) for i in range(20)]
    figure = curves.figure_of(runs)
    looks = {
        (line.get_color(), str(line.get_linestyle()), line.is_dashed() and str(line._dash_pattern)) for line in figure.axes[0].get_lines()
    }
    assert len(looks) == 20
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [run.name for run in runs]
    curves.draw(runs, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG") and os.listdir(tmp_path) == ["x.png"]


def test_a_picture_that_cannot_be_drawn_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curves.update([Job(BASE, QUICK, tmp_path / "none")], tmp_path / "nowhere")
    assert "could not be drawn" in capsys.readouterr().err
    (tmp_path / "train.jsonl").write_text(json.dumps(log_lines(1)[0]) + "\n" + '{"step": 2, "tok')
    curves.update([Job(BASE, QUICK, tmp_path)], tmp_path)
    assert (tmp_path / "curves.png").exists()


def test_pace_and_end_leave_out_what_an_earlier_run_did(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_EVERY_S", 0.0)
    with display.bar("training x", total=1000, done=990, batch=10) as advance:
        for _ in range(2):
            time.sleep(0.05)
            advance([{"ev": 0.5, "l0": 3.0, "dead": 0.25}])
    event = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (event["done"], event["total"], event["ev"], event["dead"]) == (992, 1000, 0.5, 0.25)
    assert 20 < event["tokens_per_s"] <= 200 and event["eta_s"] <= 4


def test_a_terminal_shows_the_numbers() -> None:
    program = """
import time
from baselines import display
with display.bar("training x", 30, 0, 512) as advance:
    for i in range(30):
        time.sleep(0.02)
        advance([{"ev": 0.8125, "l0": 31.96, "dead": 0.034}])
"""
    child = pexpect.spawn(sys.executable, ["-c", program], cwd=str(ROOT), timeout=60, encoding="utf8", dimensions=(40, 200))
    child.expect(pexpect.EOF)
    child.close()
    said = child.before or ""
    assert "training x" in said and "tokens/s" in said and "EV 0.812" in said and "L0 32.0" in said and "dead 3.4%" in said
    assert display.summary([{"ev": 0.5}, {}, {"ev": 0.75}]) == "2 SAEs  EV 0.500 to 0.750" and display.summary([{}]) == ""


STUB = """
import json, time
{at_import}
class Run:
    def log(self, line, step):
        {at_log}
        with open({lines!r}, "a") as f:
            f.write(json.dumps([step, line]) + chr(10))
    def finish(self):
        {at_finish}
def init(project, name, config):
    {at_init}
    assert config["lm"] and config["method"]["k"] == 3
    return Run()
"""
BAD = {
    "import": {"at_import": "raise OSError('no such library')"},
    "leaves the process": {"at_init": "raise SystemExit(3)"},
    "network": {"at_init": "raise ConnectionError('unreachable')"},
    "middle": {"at_log": "assert step < 40, 'quota'"},
    "end": {"at_finish": "raise KeyboardInterrupt"},
    "hangs": {"at_log": "time.sleep(60)"},
}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(**at: str) -> Path:
        places = {f"at_{p}": "pass" for p in ("import", "log", "finish", "init")} | at
        (tmp_path / "trackio.py").write_text(STUB.format(lines=str(tmp_path / "lines"), **places))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "trackio", raising=False)
        return tmp_path / "lines"

    yield write
    sys.modules.pop("trackio", None)


TRACKED = replace(QUICK, steps=40, log_every=5)


@pytest.fixture(scope="module")
def untracked(data: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("untracked")
    fit(BASE, data, TRACKED, folder, SITE)
    return weights_of(folder)


def test_a_tracker_gets_every_line(data: TrainingSet, stub: Any, tmp_path: Path) -> None:
    lines = stub()
    fit(BASE, data, TRACKED, tmp_path / "x", SITE, "trackio")
    got = [json.loads(line) for line in lines.read_text().splitlines()]
    expected = [(line.pop("step"), line) for line in lines_of(tmp_path / "x")]
    assert [tuple(g) for g in got] == expected


@pytest.mark.parametrize("where", BAD)
def test_a_failing_tracker_is_one_warning(
    where: str,
    data: TrainingSet,
    untracked: bytes,
    stub: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.3)
    stub(**BAD[where])
    fit(BASE, data, TRACKED, tmp_path / "x", SITE, "trackio")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "the tracker failed" in line]
    assert len(warnings) == 1, warnings
    assert weights_of(tmp_path / "x") == untracked


def test_a_tracker_that_is_not_installed_is_one_warning(
    data: TrainingSet, untracked: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import of a missing package comes to
    fit(BASE, data, TRACKED, tmp_path, SITE, "wandb")
    assert capsys.readouterr().err.count("the tracker failed") == 1 and weights_of(tmp_path) == untracked


# --- streaming ---


def streaming(root: Path, seed: int = 0, buffer: int = 1000, tokens: int = 4000) -> Stream:
    return streamed(tiny.load(), Hook(1), corpus(), tokens, Store(root), seed, buffer)


def sorted_rows(x: Tensor) -> np.ndarray:
    return x.numpy()[np.lexsort(x.numpy().T)]


def test_one_pass_of_a_stream_is_the_harvested_set(tmp_path: Path) -> None:
    stream = streaming(tmp_path / "a")
    stored = harvested(tiny.load(), Hook(1), corpus(), 4000, Store(tmp_path / "b"), 0)
    assert stored.n % 32 == 0 and stored.n <= stream.n and len(stream.blocks) == 4
    epoch = torch.cat([stream.batch(i, stored.n // 32) for i in range(32)])
    line = torch.randn(32, generator=torch.Generator().manual_seed(0))  # tokens as numbers: each is there as often
    mine, theirs = ((x @ line).sort().values for x in (epoch, stored.gather(np.arange(stored.n))))
    assert torch.allclose(mine, theirs, atol=1e-2 * float(theirs.std()))
    assert stream.dropped == pytest.approx(stored.dropped, abs=1e-9)
    (a, va), (b, vb) = stream.moments, stored.moments
    assert torch.allclose(a, b, atol=1e-3) and va == pytest.approx(vb, rel=1e-3)
    assert len(stream.calibration()) == stored.n  # fewer than 65,536: all of them


def test_a_stream_has_the_mask_of_everywhere(tmp_path: Path) -> None:
    stream = streaming(tmp_path)
    x = Harvest(stream.lm, stream.hook, stream.store, "float16").tokens(stream.rows)
    tight = replace(stream, cut=float(np.median(np.linalg.norm(x.astype(np.float32), axis=1))))
    kept = keep_mask(stream.rows, x, tight.cut)
    assert 0.4 < kept.mean() < 0.6
    one_pass = tight.batch(0, int(kept.sum()))
    assert float(one_pass.norm(dim=1).max()) <= tight.cut * 1.001
    assert tight.dropped == pytest.approx(1 - kept.mean())
    assert np.allclose(one_pass.numpy().mean(0), x[kept].astype(np.float64).mean(0), atol=1e-3)


def test_a_stream_s_order_is_the_seed_s_alone(tmp_path: Path) -> None:
    steps = [0, 3, 40, 41, 90]
    one = {s: streaming(tmp_path).batch(s, 100) for s in steps}  # each from the start, as after a kill
    again, other = streaming(tmp_path / "b"), streaming(tmp_path / "b", seed=1)
    assert all(torch.equal(again.batch(s, 100), one[s]) for s in reversed(steps))
    assert not torch.equal(other.batch(0, 100), one[0])
    first = int((~again.rows.take(again.blocks[0]).special).sum())  # a block is handed out whole before the next is read
    assert np.array_equal(sorted_rows(other.batch(0, first)), sorted_rows(again.batch(0, first)))
    turns = -(-again.n // first)
    assert not torch.equal(again.batch(turns, again.n)[:first], again.batch(0, again.n)[:first])  # a second pass, another order


def test_a_stream_keeps_no_activations_on_disk(tmp_path: Path) -> None:
    stream = streaming(tmp_path)
    fit(BatchTopK(d_sae=64, k=4), stream, FitConfig(steps=100, batch=100), tmp_path / "sae", SITE)
    kept = [e for e in stream.store.entries() if e.kind == "stream"]
    assert len(kept) == 1 + len(stream.blocks) and sum(e.bytes for e in kept) < 400 * len(kept)
    other = Store(tmp_path / "other")
    norm_cut(tiny.load(), Hook(1), corpus(), other)  # the site's mask needs some activations, here as everywhere
    stored = [sorted(e.key for e in store.entries() if e.kind == "activations") for store in (stream.store, other)]
    assert stored[0] == stored[1]


class Reader(LanguageModel):
    """Counts the tokens it reads."""

    def read(self, ids: Tensor, hooks: Sequence[Hook], past: Any = None) -> dict[Hook, Tensor]:
        self.__dict__["seen"] = self.__dict__.get("seen", 0) + ids.numel()
        return super().read(ids, hooks, past)


def test_an_interrupted_stream_harvests_only_its_block_again(tmp_path: Path) -> None:
    stream = streaming(tmp_path)
    expected = [stream.batch(s, 100) for s in range(35)][34]
    lm = tiny.load()
    reader = Reader(**{f.name: getattr(lm, f.name) for f in fields(lm)})
    resumed = replace(stream, lm=reader)
    variance = stream.moments[1]
    assert resumed.moments[1] == variance
    assert torch.equal(resumed.batch(34, 100), expected)
    rows = stream.rows.lengths[stream.blocks[3]]
    assert reader.__dict__["seen"] == rows.sum() < 0.3 * len(stream.rows.ids)


def test_an_sae_of_a_stream_has_the_target_l0_on_held_out_text(tmp_path: Path) -> None:
    stream = streaming(tmp_path)
    fit(BatchTopK(d_sae=64, k=4), stream, FitConfig(steps=300, batch=100), tmp_path / "sae", SITE)
    sae = open_checkpoint(tmp_path / "sae", Given()).sae
    x = tiny_context(Store(tmp_path)).text(4000).kept
    assert sae.encode_sparse(x).l0().mean() == pytest.approx(4, rel=0.1)
