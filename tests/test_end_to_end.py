"""The main job on the embedded model and real text: from a real checkpoint to a printed table, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench import registry
from bench.adapters import Given, open_checkpoint
from bench.data import labelled
from bench.data.text import open_corpus, part_of, text_hash
from bench.kernels.cosine import nearest_cosine
from bench.lm import embedded

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[1]
LIMIT = "700"
TASKS = "reconstruction,distinct_features,sparse_probing,tpp"  # the README's commands, which the docs tier runs, take them all


def command(*args: str, records: Path) -> list[str]:
    return [sys.executable, "-m", "bench", "run", "--suite", "smoke", "--tasks", TASKS, "--limit", LIMIT, "--records", str(records), *args]


def finished(argv: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def summary(stdout: str) -> str:
    """The closing table, without timings and file names."""
    return stdout[stdout.index("suite smoke,") :].split("\n¹")[0].split("\nno published")[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    records = tmp_path_factory.mktemp("records")
    return records, finished(command("--sae", "demo:ortsae", records=records)).stdout


def test_a_table_with_intervals_is_printed(first: tuple[Path, str]) -> None:
    out = first[1]
    for task in ("reconstruction@1", "distinct_features@2", "sparse_probing@1", "tpp@1"):
        assert task in out
    assert re.search(r"explained_variance +0\.\d{3} +\[0\.\d{3}, 0\.\d{3}\]", out)
    assert "4 measured, 0 already recorded, 0 failed" in out


def test_a_second_run_does_no_work_and_says_so(first: tuple[Path, str]) -> None:
    again = finished(command("--sae", "demo:ortsae", records=first[0]))
    assert "0 measured, 4 already recorded, 0 failed" in again.stdout and "nothing was left to do" in again.stdout
    assert summary(again.stdout) == summary(first[1])


def test_another_sae_at_the_same_site_harvests_nothing(first: tuple[Path, str]) -> None:
    other = finished(command("--sae", "demo:batchtopk", records=first[0]))
    stages = {json.loads(line).get("stage", "") for line in other.stderr.splitlines() if line.startswith("{")}
    assert not any("activations of" in s or "untouched" in s or "zero" in s for s in stages)


def test_python_gives_the_same_numbers(first: tuple[Path, str], tmp_path: Path) -> None:
    results = bench.evaluate("demo:ortsae", ["distinct_features"], suite="smoke", limit=int(LIMIT), records=str(tmp_path))
    frame = results.to_dataframe().set_index("metric")["value"]
    path = next(first[0].glob("distinct_features@2/ortsae-*.json"))
    kept = {k: m["value"] for k, m in json.loads(path.read_text())["metrics"].items()}
    assert frame.to_dict() == kept


def test_killed_at_any_point_the_next_run_gives_the_same_table(first: tuple[Path, str], tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    for delay in r.uniform(3.0, 14.0, 3):
        p = subprocess.Popen(
            command("--sae", "demo:ortsae", records=tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        time.sleep(delay)
        os.kill(p.pid, signal.SIGKILL)
        p.wait()
    resumed = finished(command("--sae", "demo:ortsae", records=tmp_path))
    assert summary(resumed.stdout) == summary(first[1])


def test_a_foreign_checkpoint_of_the_same_weights_scores_the_same(first: tuple[Path, str], tmp_path: Path) -> None:
    """dictionary_learning's layout of the demo: other file, same function, so the very same record is found."""
    sae = open_checkpoint(registry.demos()["ortsae"], Given()).sae
    folder = tmp_path / "resid_post_layer_7" / "trainer_0"
    folder.mkdir(parents=True)
    state = {
        "encoder.weight": sae.W_enc.T.contiguous(),
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T.contiguous(),
        "b_dec": sae.b_dec,
        "k": torch.tensor(32, dtype=torch.int32),
        "threshold": sae.act.threshold[0].clone(),
    }
    torch.save(state, folder / "ae.pt")
    trainer = {"trainer_class": "BatchTopKTrainer", "dict_class": "BatchTopKSAE", "activation_dim": 576, "dict_size": sae.d_sae, "k": 32}
    trainer |= {"layer": 7, "lm_name": "HuggingFaceTB/SmolLM2-135M", "submodule_name": "resid_post_layer_7"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}}))
    foreign = finished(command("--sae", str(folder), "--lm", embedded.NAME, "--json", records=tmp_path / "records"))
    native = [json.loads(p.read_text()) for p in first[0].glob("*@*/ortsae-*.json")]
    for record in json.loads(foreign.stdout):
        twin = next(n for n in native if n["task"] == record["task"])
        assert record["subject"]["format"] != twin["subject"]["format"]
        for name, m in record["metrics"].items():
            assert m["value"] == pytest.approx(twin["metrics"][name]["value"], abs=1e-5), name


def test_demo_checkpoints_keep_their_promises() -> None:
    demos = {n: open_checkpoint(p, Given()) for n, p in registry.demos().items()}
    assert {"batchtopk", "ortsae"} <= set(demos)
    for name, loaded in demos.items():
        training = loaded.facts["training"]
        assert training["tokens_distinct"] >= 2_000_000 and training["steps_done"] >= 2_000, name
        assert sum(p.stat().st_size for p in registry.demos()[name].glob("*.safetensors")) <= 12 * 2**20
    assert demos["batchtopk"].facts["training"]["data_sha256"] == demos["ortsae"].facts["training"]["data_sha256"]
    alike = {n: float(nearest_cosine(v.sae.W_dec).mean()) for n, v in demos.items()}
    assert alike["ortsae"] < alike["batchtopk"]


def test_exported_l0_on_evaluation_text_is_near_k(first: tuple[Path, str]) -> None:
    for path in first[0].glob("reconstruction@1/*.json"):
        record = json.loads(path.read_text())
        if record["subject"]["name"] in ("ortsae", "batchtopk"):
            assert record["metrics"]["l0"]["value"] == pytest.approx(32, rel=0.1)


def test_the_index_of_labelled_sets_is_what_the_package_holds() -> None:
    kept = json.loads((ROOT / "bench" / "data" / "probe_sets.json").read_text(encoding="utf8"))
    assert labelled.build_catalogue() == kept and len(kept) == 113


def test_training_and_evaluation_texts_are_apart() -> None:
    corpus, side = open_corpus(), {}
    for text in corpus.read():  # every copy of a text, in whatever file and spelling, is on one side
        assert side.setdefault(text_hash(text), part_of(text)) == part_of(text)
    assert len(side) == 297_775
    for name in ("113_movie_sent", "94_ai_gen", "56_wikidatasex_or_gender"):
        assert all(side[text_hash(t)] == "eval" for t in labelled.load_set(name).texts)


def test_vader_and_bbc_have_their_published_sizes() -> None:
    vader = labelled.vader()
    assert len(vader) == 23_703 and vader["domain"].value_counts()["movie"] == 10_605
    assert len(labelled.bbc()) == 2_225
