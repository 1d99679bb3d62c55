"""The command line in real processes: what it prints, what it keeps, and how it says no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bench
from bench import registry
from bench.record import Records
from bench.sae.activations import TopK
from bench.sae.checkpoint import save
from bench.sae.dense import DenseSAE
from bench.store import Store
from tests.worlds import documents

ROOT = Path(__file__).resolve().parents[1]
TASKS = "reconstruction,distinct_features"
SITE = {"lm": "tiny:random", "revision": "", "hook": "blocks.1.hook_resid_post"}

# Imports once what a run imports, then forks a process for each command line; it can kill one after some seconds.
FORKS = """
import json, os, runpy, signal, sys, time, traceback
import bench.planning, bench.runner, bench.citations, bench.verbs.run, leaderboard.table, baselines.trainer
import huggingface_hub, pandas, pyarrow.parquet, pydantic, torch, transformers
from bench.lm import tiny
tiny.load()

def child(case):
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    os.environ.update(case["env"])
    sys.argv = ["bench", *case["argv"]]
    try:
        runpy.run_module("bench", run_name="__main__")
        code = 0
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    case = json.loads(line)
    if (pid := os.fork()) == 0:
        child(case)
    if case["kill_after"] is not None:
        time.sleep(case["kill_after"])
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """A process that ended."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> str:
        """The closing table."""
        return self.out[self.out.index("\nsuite ") :].split("\nno published")[0].split("\n¹")[0]


@dataclass(frozen=True)
class Forks:
    """Command lines in processes of their own, without the seconds that imports take."""

    server: subprocess.Popen[str]
    folder: Path

    def run(self, *argv: str, kill_after: float | None = None, **env: str) -> Done:
        out, err = self.folder / "out", self.folder / "err"
        case = {"argv": argv, "env": env, "out": str(out), "err": str(err), "kill_after": kill_after}
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(case) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return Done(code, out.read_text() if out.exists() else "", err.read_text() if err.exists() else "")


def environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORTSAE", "HF_"))}
    own = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "ORTSAE_CACHE": str(folder / "cache"),
        "ORTSAE_RECORDS": str(folder / "records"),
    }
    return kept | own | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def start_forks(folder: Path) -> Forks:
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", FORKS], cwd=folder, env=environment(folder), text=True, stdin=pipe, stdout=pipe)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return Forks(server, folder)


def real(folder: Path, *argv: str, **env: str) -> Done:
    """`python -m bench …` as a user starts it."""
    command = [sys.executable, "-m", "bench", *argv]
    done = subprocess.run(command, cwd=folder, env=environment(folder) | env, capture_output=True, text=True, timeout=300, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def sae_at(folder: Path, seed: int = 0, d_in: int = 32, rows: int = 64, **facts: Any) -> Path:
    """A native checkpoint of a tied dictionary; rows beyond `rows` are zero."""
    w = torch.nn.functional.normalize(torch.randn(64, d_in, generator=torch.Generator().manual_seed(seed)), dim=1)
    decoder = torch.where(torch.arange(64)[:, None] < rows, w, 0)
    sae = DenseSAE(w.T.contiguous(), torch.zeros(64), decoder, torch.zeros(d_in), torch.zeros(d_in), TopK(4))
    save(sae, folder, {"name": folder.name, "method": "tied", **SITE, **facts})
    return folder


def make_site(folder: Path) -> Path:
    """A folder with text and checkpoints, as a user could have them."""
    (folder / "text.txt").write_text("\n\n".join(documents(80)))
    sae_at(folder / "tied")
    sae_at(folder / "lonely", rows=1)
    sae_at(folder / "bare", lm="", hook="")
    sae_at(folder / "narrow", d_in=16)
    (folder / "garbage").mkdir()
    for name, text in (("sae.safetensors", "x"), ("sae.json", '{"format": "ortsae-bench"}'), ("cfg.toml", "sae = "), ("file", "")):
        (folder / "garbage" / name).write_text(text)
    return folder


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


def run_line(*more: str, sae: str = "tied") -> list[str]:
    return ["run", "--sae", sae, "--text", "file:text.txt", "--limit", "600", "--tasks", TASKS, *more]


@pytest.fixture(scope="module")
def first(site: Path) -> Done:
    return real(site, *run_line())


@pytest.fixture
def here(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder and cache for calls from Python."""
    monkeypatch.chdir(site)
    monkeypatch.setenv("ORTSAE_CACHE", str(site / "cache"))
    monkeypatch.delenv("ORTSAE_RECORDS", raising=False)
    return site


def test_a_run_prints_a_table(first: Done, site: Path) -> None:
    assert first.code == 0, first.err
    assert "tied  reconstruction@1" in first.out and "tied  distinct_features@2" in first.out
    assert "suite standard, tiny:random, blocks.1.hook_resid_post" in first.summary
    sha = Records(site / "records").scan()[0][0].subject.sha256
    (row,) = [line for line in first.summary.splitlines() if line.startswith(f"tied {sha[:8]}")]
    assert "[" in row and "4.000" in row
    assert "2 measured, 0 already recorded, 0 failed" in first.out and "Traceback" not in first.err
    assert all(json.loads(line) for line in first.err.splitlines() if line.startswith("{"))


def test_a_second_run_has_nothing_to_do(first: Done, forks: Forks) -> None:
    again = forks.run(*run_line())
    assert again.code == 0 and "0 measured, 2 already recorded, 0 failed" in again.out
    assert "nothing was left to do" in again.out and again.summary == first.summary
    assert '"measuring"' not in again.err


def test_more_tasks_measure_only_what_is_new(first: Done, forks: Forks, tmp_path: Path) -> None:
    one = forks.run(*run_line("--tasks", "reconstruction", "--records", str(tmp_path)))
    assert "1 measured" in one.out
    assert "1 measured, 1 already recorded" in forks.run(*run_line("--records", str(tmp_path))).out


def test_json_equals_python(first: Done, forks: Forks, here: Path) -> None:
    shown = json.loads(forks.run(*run_line("--json")).out)
    found = bench.evaluate("tied", TASKS.split(","), text="file:text.txt", limit=600, records=str(here / "records-of-python"), device="cpu")
    assert not found.errors and len(shown) == len(found.records) == 2
    for a, b in zip(shown, found.records, strict=True):
        b = b.model_dump(mode="json")
        assert a["found"] and (a["key"], a["task"], a["subject"], a["data"]) == (b["key"], b["task"], b["subject"], b["data"])
        assert a["metrics"].keys() == b["metrics"].keys() and a["counts"] == b["counts"]
        for name, m in a["metrics"].items():
            assert m["value"] == pytest.approx(b["metrics"][name]["value"], rel=1e-5, abs=1e-7), name
            assert (m["n"], m["unit"], m["better"]) == tuple(b["metrics"][name][k] for k in ("n", "unit", "better"))
    frame = found.to_dataframe()
    assert set(frame["metric"]) == {m for r in found.records for m in r.metrics} and len(frame) == sum(
        len(r.metrics) for r in found.records
    )
    copied = Records(found.save(here / "saved"))
    assert sorted(r.key for r in copied.scan()[0]) == sorted(r.key for r in found.records) and copied.scan()[1] == []


def test_config_file_and_plan(first: Done, forks: Forks, site: Path) -> None:
    (site / "run.toml").write_text(f'sae = "tied"\ntext = "file:text.txt"\nlimit = 600\ntasks = "{TASKS}"\n')
    assert "nothing was left to do" in forks.run("run", "--config", "run.toml").out
    plan = forks.run("plan", "--config", "run.toml")
    assert plan.code == 0 and plan.out.count("already recorded") == 2
    dry = forks.run(*run_line("--dry-run", "--seed", "5"))
    assert dry.code == 0 and "tokens to read" in dry.out and not [r for r in Records(site / "records").scan()[0] if r.seed == 5]


def test_a_second_sae_at_the_same_site_reads_no_activations_again(first: Done, forks: Forks, site: Path) -> None:
    sae_at(site / "other", seed=1)
    before = sum(e.kind == "activations" for e in Store(site / "cache").entries())
    both = forks.run(*run_line("--sae", "other"))
    assert "2 measured, 2 already recorded" in both.out and before > 0
    assert sum(e.kind == "activations" for e in Store(site / "cache").entries()) == before
    assert both.summary.count("\ntied ") == both.summary.count("\nother ") == 1


def test_what_does_not_apply_is_no_failure(forks: Forks) -> None:
    done = forks.run(*run_line(sae="lonely"))
    assert done.code == 0 and "distinct_features@2  not applicable: fewer than two decoder rows" in done.out
    assert "n/a" in done.summary and "0 failed" in done.out
    assert "not applicable" in forks.run(*run_line(sae="lonely")).out


class ThirdParty:
    """Somebody's SAE, made of nothing of ours."""

    def __init__(self) -> None:
        self.d_in, self.d_sae = 32, 48
        self.W_dec = torch.randn(48, 32, generator=torch.Generator().manual_seed(3))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_dec.T)

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec


def test_an_object_of_a_third_party(here: Path) -> None:
    settings: dict[str, Any] = {"text": "file:text.txt", "limit": 600, "lm": SITE["lm"], "hook": SITE["hook"], "records": "third"}
    found = bench.evaluate(ThirdParty(), TASKS.split(","), **settings)
    assert not found.errors and {r.subject.name for r in found.records} == {"ThirdParty"}
    (reconstruction, distinct) = found.records
    assert reconstruction.metrics["l0"].value > 4 and distinct.counts["latents"] == 48
    again = bench.evaluate(ThirdParty(), "distinct_features", name="ours", **settings)
    assert [r.key for r in again.records] == [distinct.key]


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Boom:
    "A task that fails."
    name: ClassVar[str] = "me/boom"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple] = ()
    caveats: ClassVar[tuple] = ()
    headline: ClassVar[tuple] = ("x",)

    def data(self, ctx):
        return {}

    def run(self, sae, ctx):
        raise RuntimeError("boom went off")
"""


def test_a_failing_task_costs_the_others_nothing(site: Path, tmp_path: Path) -> None:
    """A plugin that raises: exit 1, named, the other task is measured; a plugin that does not load is reported."""
    (tmp_path / "boomplug.py").write_text(PLUGIN)
    info = tmp_path / "boomplug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boomplug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ortsae_bench.tasks]\nme/boom = boomplug:Boom\nme/gone = no_such_module_here:X\n")
    line = run_line("--tasks", "me/boom,distinct_features", "--records", str(tmp_path / "records"))
    done = real(site, *line, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.code == 1, done.err
    assert "me/boom@1  FAILED" in done.out and "RuntimeError: boom went off" in done.out and "ORTSAE_DEBUG=1" in done.out
    assert "1 measured, 0 already recorded, 1 failed" in done.out and "Traceback" not in done.err
    assert "me/gone" in done.err and "failed: RuntimeError: boom went off" in done.err
    assert [r.task.name for r in Records(tmp_path / "records").scan()[0]] == ["distinct_features"]


RUN = ["run", "--text", "file:text.txt", "--limit", "600", "--tasks", "distinct_features"]
TIED = [*RUN, "--sae", "tied"]
BARE = [*RUN, "--sae", "bare"]
ERRORS: dict[str, tuple[list[str], int, str, str]] = {
    "no sae": (RUN, 2, "no SAE to evaluate", "--sae"),
    "missing checkpoint": ([*RUN, "--sae", "nope"], 2, "no checkpoint at 'nope'", "hf:REPO"),
    "unknown demo": ([*RUN, "--sae", "demo:nope"], 2, "unknown demo 'nope'", ""),
    "hub without network": ([*RUN, "--sae", "hf:no/such"], 4, "hf:no/such cannot be fetched", "network"),
    "garbage checkpoint": ([*RUN, "--sae", "garbage"], 3, "", ""),
    "garbage file": ([*RUN, "--sae", "garbage/sae.safetensors"], 3, "", ""),
    "empty file": ([*RUN, "--sae", "garbage/file"], 3, "", ""),
    "missing --lm": (BARE, 2, "which language model", "--lm"),
    "missing --hook": ([*BARE, "--lm", "tiny:random"], 2, "which hook", "--hook"),
    "unknown hook": ([*BARE, "--lm", "tiny:random", "--hook", "middle"], 2, "unknown hook 'middle'", "blocks."),
    "unknown lm": ([*TIED, "--lm", "nope:x"], 2, "unknown language model 'nope:x'", "hf:NAME"),
    "lm that cannot be had": ([*TIED, "--lm", "hf:no/such"], 4, "hf:no/such cannot be opened", "network"),
    "unknown device": ([*TIED, "--device", "cpuu"], 2, "unknown device 'cpuu'", "auto, cpu or cuda"),
    "meta device": ([*TIED, "--device", "meta"], 2, "unknown device 'meta'", "auto, cpu or cuda"),
    "absent GPU": ([*TIED, "--device", "cuda:99"], 2, "no GPU for --device cuda:99", "cpu"),
    "unknown dtype": ([*TIED, "--dtype", "int4"], 2, "int4", "run --help"),
    "a flag for another SAE": ([*TIED, "--threshold", "0.5"], 3, "--threshold does not apply", "leave out"),
    "unknown task": ([*TIED, "--tasks", "reconstrution"], 2, "unknown task 'reconstrution'", "did you mean reconstruction"),
    "unknown suite": ([*TIED, "--suite", "smok"], 2, "unknown suite 'smok'", "smoke"),
    "missing suite file": ([*TIED, "--suite", "x.toml"], 2, "x.toml is not a suite", "standard.toml"),
    "missing text": ([*TIED, "--text", "file:none.txt"], 4, "no text file at none.txt", "file:PATH"),
    "unknown text": ([*TIED, "--text", "none"], 2, "unknown text source 'none'", "file:PATH"),
    "bad config": ([*TIED, "--config", "garbage/cfg.toml"], 2, "cannot be read", "TOML"),
    "missing config": ([*TIED, "--config", "none.toml"], 2, "none.toml", ""),
    "plan": (["plan", "--sae", "nope"], 2, "no checkpoint at 'nope'", ""),
    "table": (["table", "--suite", "nope"], 2, "unknown suite", "standard"),
    "cite": (["cite", "nope"], 2, "no recorded SAE 'nope'", ""),
    "cite a file": (["cite", "garbage/sae.json"], 7, "is not a record", ""),
    "tasks show": (["tasks", "show", "reconstrution"], 2, "unknown task", "did you mean"),
    "sae check": (["sae", "check", "nope"], 2, "no checkpoint", ""),
    "sae check garbage": (["sae", "check", "garbage"], 3, "", ""),
    "data show": (["data", "show", "113_movie_snt"], 2, "no labelled set", "113_movie_sent"),
    "unknown method": (["train", "nope", "--out", "new"], 2, "unknown method 'nope'", "batchtopk"),
    "unknown parameter": (["train", "batchtopk", "--out", "new", "--param", "gama=1"], 2, "has no parameter 'gama'", ""),
    "bad parameter": (["train", "batchtopk", "--out", "new", "--param", "gamma"], 2, "is not name=value", "gamma=0.25"),
    "bad stage": (["train", "batchtopk", "--out", "new", "--checkpoint-at", "2"], 2, "fractions", "0.1"),
    "finished folder": (["train", "batchtopk", "--out", "tied"], 2, "already holds", "--out"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_two_lines_and_a_documented_code(forks: Forks, case: str) -> None:
    argv, code, cause, remedy = ERRORS[case]
    done = forks.run(*argv)
    lines = [line for line in done.err.splitlines() if not line.startswith('{"event"')]
    assert done.code == code, done.err
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  → "), done.err
    assert cause in lines[0] and remedy in lines[1] and len(lines[1]) > 6, lines
    assert done.out == "" and "Traceback" not in done.err


LATE = {
    "no such layer": ([*TIED, "--hook", "blocks.9.hook_resid_post"], {}, 2, "has 3 layers"),
    "another width": ([*RUN, "--sae", "narrow"], {}, 3, "takes 16 numbers, tiny:random gives 32"),
    "records that are a file": ([*TIED, "--seed", "7", "--records", "garbage/file"], {}, 6, "cannot write"),
    "cache that is a file": ([*TIED, "--seed", "8"], {"ORTSAE_CACHE": "garbage/file"}, 6, "cannot write the cache"),
}


@pytest.mark.parametrize("case", LATE)
def test_an_error_while_measuring_is_shown_at_its_task(forks: Forks, case: str) -> None:
    argv, env, code, cause = LATE[case]
    done = forks.run(*argv, **env)
    assert done.code == code, done.err
    assert "FAILED" in done.out and cause in done.out and "  → " in done.out and "0 measured" in done.out
    assert f"failed: {done.out.split('FAILED')[1].strip().splitlines()[0]}" in done.err and "Traceback" not in done.err


USAGE = {
    "unknown verb": (["nope"], "No such command 'nope'"),
    "unknown flag": (["run", "--sea", "x"], "No such option"),
    "not a number": (["run", "--limit", "x"], "--limit"),
    "missing argument": (["sae", "check"], "Missing argument"),
    "missing --out": (["train", "batchtopk"], "--out"),
    "too few tokens": (["train", "batchtopk", "--out", "new", "--tokens", "1"], "--tokens"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_points_to_the_help(forks: Forks, case: str) -> None:
    argv, cause = USAGE[case]
    done = forks.run(*argv)
    assert done.code == 2 and cause in done.err and "--help" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("verb", ["run", "plan", "table", "show", "train", "cite", "doctor", "tasks", "sae", "data", "cache"])
def test_every_help_has_an_example(forks: Forks, verb: str) -> None:
    done = forks.run(verb, "--help")
    assert done.code == 0 and "Example" in done.out and f"python -m bench {verb}" in done.out


def test_help_lists_the_verbs_and_starts_quickly(site: Path) -> None:
    start = time.monotonic()
    done = real(site, "--help")
    assert done.code == 0 and time.monotonic() - start < 5
    assert all(f"\n  {verb}" in done.out for verb in ("run", "plan", "table", "train", "cite", "doctor", "tasks", "sae", "data", "cache"))
    assert "130 interrupted" in " ".join(done.out.split())


def test_verbs_that_only_show(first: Done, forks: Forks, site: Path) -> None:
    for name in registry.tasks():
        shown = forks.run("tasks", "show", name)
        assert shown.code == 0 and "Known weaknesses" in shown.out and "Parameters:" in shown.out
    assert set(registry.tasks()) <= {row["name"] for row in json.loads(forks.run("tasks", "list", "--json").out)}
    assert json.loads(forks.run("sae", "check", "tied", "--json").out)
    assert json.loads(forks.run("doctor", "--json").out)["cache"].startswith(str(site / "cache"))
    assert len(json.loads(forks.run("data", "list", "--json").out)) == 113
    assert "@" in forks.run("cite").out and "tiny:random" in forks.run("cite", "tied").out


def test_table(first: Done, forks: Forks) -> None:
    rows = json.loads(forks.run("table", "--json").out)
    assert {r["task"]["name"] for r in rows} >= set(TASKS.split(","))
    lines = forks.run("table", "--csv").out.splitlines()
    assert lines[0].startswith("sae,sha256,task,metric,value") and len(lines) > 20
    assert "no records of suite standard" in forks.run("table").out  # sizes of --limit are not the suite's


def test_a_damaged_record_is_reported_and_measured_again(first: Done, forks: Forks, site: Path, tmp_path: Path) -> None:
    line = run_line("--records", str(tmp_path))
    clean = forks.run(*line)
    path = next(tmp_path.glob("distinct*/*.json"))
    path.write_text(path.read_text().replace('"n": 64', '"n": 65', 1))
    told = forks.run("table", "--records", str(tmp_path))
    assert told.code == 0 and "left out" in told.err and str(path) in told.err
    again = forks.run(*line)
    assert "1 measured, 1 already recorded" in again.out and again.summary == clean.summary == first.summary


def test_cache_verbs(first: Done, forks: Forks, site: Path) -> None:
    assert "activations" in forks.run("cache", "list").out
    assert "entries intact" in forks.run("cache", "verify").out
    entry = next(e for e in Store(site / "cache").entries() if e.kind == "activations")
    with (entry.path / "x.npy").open("ab") as f:
        f.write(b"!")
    bad = forks.run("cache", "verify")
    assert bad.code == 7 and entry.key[:12] in bad.err and "cache clear" in bad.err
    repaired = forks.run(*run_line("--seed", "11"))
    assert repaired.code == 0 and "damaged" in repaired.err
    assert forks.run("cache", "verify").code == 0
    assert forks.run("cache", "prune", "--gb", "0").code == 0 and not list(Store(site / "cache").entries())
    assert forks.run("cache", "clear", "--yes").code == 0
    odd = forks.run("cache", "list", ORTSAE_CACHE_GB="lots")
    assert odd.code == 2 and "ORTSAE_CACHE_GB" in odd.err


def test_output_into_a_closed_pipe(site: Path) -> None:
    command = f"{sys.executable} -m bench data list | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=site, env=environment(site), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr and len(done.stdout.splitlines()) == 1
