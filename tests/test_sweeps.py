"""A folder of several SAEs, and an input scale that no checkpoint holds: both through a whole run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import runner
from bench.adapters import Given, open_checkpoint, several
from bench.data.text import open_corpus, tokenised
from bench.errors import CheckpointError, UsageError
from bench.lm import tiny
from bench.lm.harvest import CALIBRATION_TOKENS, Harvest, keep_mask, norm_cut
from bench.lm.hooks import Hook
from bench.references import members
from bench.sae.activations import TopK
from bench.sae.checkpoint import save
from bench.sae.dense import DenseSAE
from bench.spec import RunSpec, make_spec
from bench.store import Store
from bench.subjects import lineup, single
from bench.verbs.run import execute

SITE = {"lm": "tiny:random", "hook": "blocks.1.hook_resid_post"}
SIZES = {"tasks": ("distinct_features",), "limit": 512}


def made(folder: Path, seed: int, name: str = "") -> Path:
    w = torch.randn(24, 32, generator=torch.Generator().manual_seed(seed))
    sae = DenseSAE(w.T.contiguous(), torch.zeros(24), w, torch.zeros(32), torch.zeros(32), TopK(4))
    save(sae, folder, {"name": name, **SITE} if name else dict(SITE))
    return folder


def lens(folder: Path, **cfg: object) -> Path:
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(5)
    shapes = {"W_enc": (32, 24), "b_enc": (24,), "W_dec": (24, 32), "b_dec": (32,)}
    save_file({n: torch.randn(s, generator=g) for n, s in shapes.items()}, folder / "sae_weights.safetensors")
    meta = {"model_name": SITE["lm"], "hook_name": SITE["hook"]}
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": 32, "d_sae": 24, "metadata": meta, **cfg}))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    for i in (10, 2, 1):
        made(folder / "layer 1" / f"trainer_{i}", i)
    made(folder / "other/trainer_1", 7)
    (folder / "notes.txt").write_text("not an SAE")
    return folder


def test_a_sweep_is_found_in_natural_order(sweep: Path) -> None:
    inside = [str(p.relative_to(sweep)) for p in several(sweep)]
    assert inside == ["layer 1/trainer_1", "layer 1/trainer_2", "layer 1/trainer_10", "other/trainer_1"]
    assert members(str(sweep)) == tuple(str(sweep / p) for p in inside)
    assert members("demo:ortsae") == ("demo:ortsae",) and several(sweep / "other/trainer_1") == []
    with pytest.raises(CheckpointError, match="no SAE itself but 4 below it: layer 1/trainer_1"):
        open_checkpoint(sweep, Given())


def test_every_sae_of_a_sweep_is_measured(sweep: Path, tmp_path: Path) -> None:
    spec = make_spec({"sae": str(sweep), "records": str(tmp_path / "records"), **SIZES})
    todo = runner.workload(spec)
    outcomes = list(runner.measure(todo))
    names = ["layer 1-trainer_1", "layer 1-trainer_2", "layer 1-trainer_10", "other-trainer_1"]  # by place
    assert [o.job.subject.name for o in outcomes] == names and not todo.refused
    assert len({o.record.subject.sha256 for o in outcomes if o.record}) == 4
    assert all(o.found for o in runner.measure(runner.workload(spec)))


def test_only_the_sae_at_hand_is_held(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    from bench import subjects

    alive: weakref.WeakSet[DenseSAE] = weakref.WeakSet()
    opening, before = subjects.open_sae, list[int]()

    def watched(*args: object) -> object:
        before.append(len(alive))
        opened = opening(*args)  # pyright: ignore[reportArgumentType]
        alive.add(opened.loaded.sae)
        return opened

    monkeypatch.setattr(subjects, "open_sae", watched)
    found = lineup(RunSpec(sae=(str(sweep),)))
    assert len(found.subjects) == 4 and len(alive) == 1
    assert len({s.sae.sha256 for s in found.subjects}) == 4 and len(alive) == 1
    assert len(before) == 8 and not any(before)  # the one before is let go first


def test_a_broken_member_is_counted_and_costs_the_others_nothing(sweep: Path, tmp_path: Path) -> None:
    (sweep / "other/trainer_1/sae.safetensors").write_bytes(b"cut off")
    todo = runner.workload(make_spec({"sae": str(sweep), "records": str(tmp_path), **SIZES}))
    assert list(todo.refused) == [str(sweep / "other/trainer_1")] and len(todo.jobs) == 3
    assert all(isinstance(e, CheckpointError) for e in todo.refused.values())
    with pytest.raises(CheckpointError, match="header"):
        runner.workload(make_spec({"sae": str(sweep / "other/trainer_1"), **SIZES}))


def test_a_member_whose_place_cannot_be_read_costs_the_others_nothing(sweep: Path, tmp_path: Path) -> None:
    facts = sweep / "other/trainer_1/sae.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "hook": "blocks.1.attn.hook_z"}))
    spec = {"sae": str(sweep), "records": str(tmp_path), **SIZES}
    todo = runner.workload(make_spec(spec))
    assert list(todo.refused) == [str(sweep / "other/trainer_1")] and len(todo.jobs) == 3
    with pytest.raises(UsageError, match="unknown hook"):
        lineup(make_spec({**spec, "sae": str(sweep / "other/trainer_1")}))
    named = lineup(make_spec({**spec, "sae": str(sweep / "other/trainer_1"), "hook": SITE["hook"]})).subjects[0]
    assert named.facts.hook == SITE["hook"] and any("names blocks.1.attn.hook_z; measured at" in n for n in named.notes)
    assert runner.workload(make_spec({**spec, "hook": SITE["hook"]})).refused == {}
    compared = lineup(make_spec({**spec, "sae": str(sweep / "layer 1"), "against": str(sweep / "other/trainer_1")}))
    assert all(any("was trained at blocks.1.attn.hook_z" in n for n in s.notes) for s in compared.subjects)


def test_what_is_refused_or_left_out_is_named(sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (sweep / "other/trainer_1/sae.safetensors").write_bytes(b"cut off")
    (sweep / "layer 1/trainer_3").mkdir()
    shutil.copy(sweep / "layer 1/trainer_1/sae.safetensors", sweep / "layer 1/trainer_3")  # its facts got lost
    (sweep / "latest").symlink_to(sweep / "layer 1/trainer_10")
    spec = make_spec({"sae": str(sweep), "records": str(tmp_path / "records"), **SIZES})
    code, done = execute(spec, as_json=False), capfd.readouterr()
    assert code == 3 and "3 measured, 0 already recorded, 0 failed, 1 SAEs refused" in done.out
    assert f"failed: {sweep / 'other/trainer_1'}: the file's header" in done.err
    assert "not read as SAEs" in done.err and "layer 1/trainer_3/sae.safetensors" in done.err and "latest" in done.err


def test_a_sae_that_changes_under_way_is_refused(sweep: Path) -> None:
    found = lineup(RunSpec(sae=(str(sweep),)))
    made(sweep / "layer 1/trainer_1", 99)
    with pytest.raises(CheckpointError, match="was changed while"):
        _ = found.subjects[0].sae


def test_one_sae_is_asked_for_where_several_make_no_sense(sweep: Path) -> None:
    with pytest.raises(UsageError, match="holds several SAEs: layer 1-trainer_1, layer 1-trainer_2"):
        single(RunSpec(sae=(str(sweep),)))
    assert single(RunSpec(sae=(str(sweep / "other"),))).facts.name == "trainer_1"


def test_the_scale_is_that_of_the_models_activations(tmp_path: Path) -> None:
    path = lens(tmp_path / "scaled", normalize_activations="expected_average_only_in")
    with pytest.raises(CheckpointError, match="needs a factor") as e:
        lineup(RunSpec(sae=(str(path),)))
    assert "--norm-scale estimate" in e.value.remedy
    subject = single(make_spec({"sae": str(path), "norm_scale": "estimate"}))
    lm, hook, store, corpus = tiny.load(), Hook(1), Store.default(), open_corpus()
    rows = tokenised(lm, corpus, "train", CALIBRATION_TOKENS, store)
    x = Harvest(lm, hook, store).tokens(rows)
    keep = keep_mask(rows, x, norm_cut(lm, hook, corpus, store))
    s = math.sqrt(32) / np.mean([np.sqrt((v.astype(np.float64) ** 2).sum()) for v in x[keep]])
    by_hand = open_checkpoint(path, Given(norm_scale=float(s))).sae
    np.testing.assert_allclose(subject.sae.inner.W_enc.numpy(), by_hand.W_enc.numpy(), rtol=1e-6)
    assert any("estimated from" in n and f"{s:.6g}" in n and "does not hold it" in n for n in subject.notes), subject.notes


def test_the_record_says_that_the_scale_was_estimated(tmp_path: Path) -> None:
    path = lens(tmp_path / "scaled", normalize_activations="expected_average_only_in")
    values = {"sae": str(path), "records": str(tmp_path / "records"), **SIZES}
    (outcome,) = runner.measure(runner.workload(make_spec({**values, "norm_scale": "estimate"})))
    assert outcome.record and any("estimated from" in w for w in outcome.record.warnings)
    (outcome,) = runner.measure(runner.workload(make_spec({**values, "norm_scale": 0.5})))
    assert outcome.record and any("0.5 given" in w for w in outcome.record.warnings)


def test_an_estimate_that_nothing_asked_for_is_refused(tmp_path: Path) -> None:
    path = lens(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="--norm-scale does not apply"):
        lineup(make_spec({"sae": str(path), "norm_scale": "estimate"}))
    with pytest.raises(UsageError, match="norm_scale"):
        make_spec({"sae": str(path), "norm_scale": "guess"})
