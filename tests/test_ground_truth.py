"""The task on planted worlds: near 1 for the truth, low for random, each defect seen by its own number, and training end to end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.activations import planted
from baselines.batchtopk import BatchTopK
from baselines.frozen_decoder import FrozenDecoder
from baselines.random import Random
from baselines.trainer import FitConfig, fit
from bench import runner
from bench.errors import CheckpointError, UsageError
from bench.sae.activations import JumpReLU
from bench.sae.canonical import Canonical
from bench.sae.checkpoint import save
from bench.sae.dense import DenseSAE
from bench.spec import RunSpec
from bench.store import Store
from bench.types import NotApplicable, Result
from bench.verbs.train import _training_set
from bench.worlds.context import WorldContext, world_context
from bench.worlds.defects import DEFECTS
from bench.worlds.good import good_sae
from bench.worlds.names import open_world
from tasks.ground_truth import GroundTruth
from tests.worlds import dictionary, tied_sae, tiny_context

WORLD = open_world("world:tiny")
QUICK = GroundTruth(tokens=8_192)


@cache
def good() -> DenseSAE:
    return good_sae(WORLD)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> WorldContext:
    return world_context(WORLD, Store(tmp_path_factory.mktemp("store")))


def run(sae: DenseSAE, ctx: WorldContext) -> Result:
    answer = QUICK.run(Canonical(sae), ctx)
    assert isinstance(answer, Result)
    return answer


def value(r: Result, name: str) -> float:
    return r.metrics[name].value


def test_the_truth_scores_one_and_random_directions_low(ctx: WorldContext) -> None:
    best, worst = run(good(), ctx), run(tied_sae(dictionary(72, 48, 1), -0.3), ctx)
    assert value(best, "mcc") == pytest.approx(1, abs=1e-6) and value(best, "recovered_share") == 1
    assert value(best, "firing_f1") > 0.99 and value(best, "distinct_features") == 64
    assert value(best, "absorption_rate") < 0.005 and value(best, "composition_rate") == 0
    assert value(best, "true_l0") == pytest.approx(WORLD.mean_l0, abs=0.05)
    assert value(worst, "mcc") < 0.45 and value(worst, "recovered_share") == 0 and value(worst, "distinct_features") == 0
    assert value(worst, "firing_f1") < 0.3 and value(worst, "composition_rate") == 0


@pytest.mark.parametrize(
    ("defect", "metric", "direction"),
    [
        ("absorbed", "absorption_rate", 1),
        ("composed", "composition_rate", 1),
        ("duplicated", "distinct_features", -1),
        ("duplicated", "mcc", -1),
        ("split", "firing_f1", -1),
        ("rotated", "firing_f1", -1),
        ("entangled", "firing_f1", -1),
        ("shrunk", "explained_variance", -1),
    ],
)
def test_each_defect_moves_its_number_with_the_dose(defect: str, metric: str, direction: int, ctx: WorldContext) -> None:
    values = [value(run(DEFECTS[defect](good(), WORLD, dose).sae, ctx), metric) for dose in (0.0, 0.125, 0.25, 0.375)]
    assert all(direction * (b - a) > 0 for a, b in pairwise(values)), values


def test_rates_agree_with_what_was_planted(ctx: WorldContext) -> None:
    for defect, metric, scale in (("absorbed", "absorption_rate", 1.0), ("composed", "composition_rate", 24 / 72)):
        made = DEFECTS[defect](good(), WORLD, 0.25)
        assert value(run(made.sae, ctx), metric) == pytest.approx(made.rate * scale, abs=0.02)
    made = DEFECTS["duplicated"](good(), WORLD, 0.25)
    assert value(run(made.sae, ctx), "distinct_features") == 48 == 64 * (1 - made.rate)


def test_mcc_and_f1_equal_a_slow_reference(ctx: WorldContext) -> None:
    from scipy.optimize import linear_sum_assignment

    sae = DEFECTS["rotated"](good(), WORLD, 0.5).sae
    r, text = run(sae, ctx), ctx.text(8_192)
    w = sae.W_dec.double().numpy()
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    cosine = np.abs(WORLD.dictionary.astype(np.float64) @ w.T)
    i, j = linear_sum_assignment(-cosine)
    on, said = ctx.truth(text).matrix.toarray() > 0, sae.encode(torch.from_numpy(text.kept)).numpy() > 0
    f1 = np.array([2 * (on[:, a] & said[:, b]).sum() / (on[:, a].sum() + said[:, b].sum()) for a, b in zip(i, j, strict=True)])
    assert value(r, "mcc") == pytest.approx(cosine[i, j].mean(), abs=1e-6)
    assert value(r, "firing_f1") == pytest.approx(f1.mean(), abs=1e-4)
    assert np.allclose(r.units["cosine"], cosine[i, j], atol=1e-6) and r.units["latent"].tolist() == j.astype(str).tolist()
    x = text.kept.astype(np.float64)
    error = np.square(x - sae.decode(sae.encode(torch.from_numpy(text.kept))).numpy()).sum()
    assert value(r, "explained_variance") == pytest.approx(1 - error / np.square(x - x.mean(0)).sum(), abs=1e-5)


def test_units_intervals_and_counts_hold(ctx: WorldContext, tmp_path: Path) -> None:
    r = run(good(), ctx)
    assert set(QUICK.headline) <= set(r.metrics) and len(r.units["feature"]) == 64
    for name, m in r.metrics.items():
        assert (m.interval is None) == (m.unit_class == "census"), name
        assert m.interval is None or m.interval[0] <= m.value <= m.interval[1]
    assert r.counts["tokens"] == 8_064 and r.counts["edges"] == 24 and r.counts["features_unmatched"] == 0
    again = QUICK.run(Canonical(good()), world_context(open_world("world:tiny"), Store(tmp_path)))
    assert isinstance(again, Result) and again.metrics == r.metrics


def test_fewer_latents_zero_rows_and_lost_parents_are_counted(ctx: WorldContext) -> None:
    sae = good()
    few = replace(sae, W_enc=sae.W_enc[:, 8:40], b_enc=sae.b_enc[8:40], W_dec=sae.W_dec[8:40], act=JumpReLU(sae.act.threshold[8:40]))
    r = run(few, ctx)
    assert (
        r.counts["features_unmatched"] == 32
        and r.metrics["mcc"].n == 64
        and value(r, "mcc") == pytest.approx(0.5, abs=0.01)
        and value(r, "recovered_share") == 0.5
    )
    assert "absorption_rate" not in r.metrics and r.warnings and r.counts["edges_not_judged"] == 24
    rows = sae.W_dec.clone()
    rows[10] = 0
    assert run(replace(sae, W_dec=rows), ctx).counts["zero_rows"] == 1
    nothing = replace(sae, W_dec=torch.zeros_like(rows))
    assert isinstance(QUICK.run(Canonical(nothing), ctx), NotApplicable)


def test_a_language_model_has_no_truth(tmp_path: Path) -> None:
    answer = GroundTruth().run(Canonical(tied_sae(dictionary(40, 32))), tiny_context(Store(tmp_path)))
    assert isinstance(answer, NotApplicable) and "--lm world:small" in answer.reason
    with pytest.raises(UsageError):
        GroundTruth(tokens=10)


# training and running on a world


def test_training_recovers_what_controls_do_not(ctx: WorldContext, tmp_path: Path) -> None:
    data, found = planted(WORLD, 32_768, ctx.store, 0), {}
    base = BatchTopK(d_sae=64, k=2)
    for method in (base, Random(d_sae=64, k=2), FrozenDecoder(base)):
        site = {k: v for k, v in ctx.site.items() if k != "lm_dtype"}
        sae = fit(method, data, FitConfig(steps=250, batch=256, lr=1e-2), tmp_path / method.name, site).sae
        found[method.name] = run(sae, ctx)
    for control in ("random", "frozen_decoder"):
        assert value(found["batchtopk"], "mcc") > value(found[control], "mcc") + 0.3
        assert value(found["batchtopk"], "recovered_share") > 0.3 > value(found[control], "recovered_share")
    records = tmp_path / "records"
    spec = RunSpec(sae=(str(tmp_path / "batchtopk"),), tasks=("ground_truth", "reconstruction", "distinct_features"), records=str(records))
    outcomes = {o.job.task.name: o for o in runner.measure(runner.workload(replace(spec, limit=8_192)))}
    assert outcomes["ground_truth"].record.metrics["mcc"].value == pytest.approx(value(found["batchtopk"], "mcc"))
    assert outcomes["ground_truth"].record.subject.lm == "world:tiny" and outcomes["distinct_features"].record.outcome == "ok"
    shape = outcomes["reconstruction"].record
    assert shape.outcome == "ok" and "explained_variance" in shape.metrics and "ce_sae" not in shape.metrics
    assert all(o.found for o in runner.measure(runner.workload(replace(spec, limit=8_192))))
    with pytest.raises(CheckpointError):
        runner.workload(replace(spec, lm="world:small"))


def test_planted_training_sets_depend_on_the_world_and_their_order_on_the_seed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    a, b = planted(WORLD, 40_000, store, 0), planted(WORLD, 40_000, store, 1)
    assert a.n == 40_000 and a.d == 48 and a.sha256 == b.sha256 and len(a.shards) == 2
    assert np.array_equal(a.shards[0], b.shards[0]) and not torch.equal(a.batch(0, 64), b.batch(0, 64))
    assert a.sha256 != planted(open_world("world:tiny?noise=0.2"), 40_000, store, 0).sha256
    mean, variance = a.moments
    assert np.linalg.norm(mean.numpy() - WORLD.mean) < 0.03 and variance == pytest.approx(float(WORLD.variances.sum()), rel=0.1)


def test_objects_and_stale_checkpoints_are_placed_in_their_world(tmp_path: Path) -> None:
    spec = RunSpec(tasks=("ground_truth",), lm="world:tiny", records=str(tmp_path / "records"))
    job = runner.workload(spec, {"mine": good()}).jobs[0]
    assert isinstance(job.context, WorldContext) and job.subject.hook == "blocks.0.hook_resid_post" and not job.notes
    facts = {"name": "mine", "method": {"method": "batchtopk"}, "hook": job.subject.hook, "training": {}}
    save(good(), tmp_path / "old", {**facts, "lm": "world:tiny", "revision": "0" * 64})
    save(good(), tmp_path / "other", {**facts, "lm": "world:tiny?noise=0.3", "revision": open_world("world:tiny?noise=0.3").spec.sha256})
    notes = [runner.workload(replace(spec, sae=(str(tmp_path / n),))).jobs[0].notes for n in ("old", "other")]
    assert "not what it was" in notes[0][0] and "measured on world:tiny" in notes[1][0]
    assert not runner.workload(replace(spec, sae=(str(tmp_path / "other"),), lm="")).jobs[0].notes


@pytest.mark.parametrize("site", [("world:tiny", "blocks.3.hook_resid_post", None, "cpu"), ("world:tiny", None, "file:x", "cpu")])
def test_a_world_has_one_place_and_no_text(site: tuple[str, str | None, str | None, str]) -> None:
    with pytest.raises(UsageError):
        _training_set(site, 1_000, 0)
