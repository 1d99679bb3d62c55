"""Rules that hold for every task: golden numbers, invariances, the same twice, intervals that hold the value."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry
from bench.audit.entries import audits
from bench.context import Context
from bench.record import SubjectFacts, make_record, subject_task
from bench.sae.activations import JumpReLU, ReLU
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from bench.store import Store
from bench.types import Result
from bench.worlds.context import world_context
from bench.worlds.defects import DEFECTS
from bench.worlds.good import good_sae
from bench.worlds.names import open_world
from tasks.absorption import Absorption
from tasks.absorption_hierarchy import AbsorptionHierarchy
from tasks.autointerp import Autointerp
from tasks.composition import Composition
from tasks.distinct_features import DistinctFeatures
from tasks.ground_truth import GroundTruth
from tasks.multidimensional import Multidimensional
from tasks.reconstruction import Reconstruction
from tests.test_scr_tpp import planted, scr, tpp
from tests.test_tasks import golden_sae, letters, probing
from tests.worlds import corpus, dictionary, tiny_context

GOLDEN = Path(__file__).parent / "golden"
LETTERS = "world:letters?branching=16&d=160&n_features=256&roots=12"


@dataclass(frozen=True)
class Case:
    """A task, where it runs, on what, and how far a metric may move when latents are rescaled."""

    task: Any
    context: Callable[[Path], Context]
    sae: Callable[[Context], DenseSAE]
    tolerance: float = 1e-4


def language_model(folder: Path) -> Context:
    """The tiny model, with planted labels."""
    return planted(replace(tiny_context(Store(folder)), labelled=letters))


def text(folder: Path) -> Context:
    """The tiny model with more text."""
    return replace(tiny_context(Store(folder)), corpus=corpus(400))


def sparse(ctx: Context) -> DenseSAE:
    """Latents that fire on one token in two hundred, and nowhere near their threshold."""
    rows = dictionary(24, 32, 5) * torch.linspace(0.5, 2, 24)[:, None]
    zero, pre = torch.zeros(32), torch.from_numpy(ctx.text(20_000).kept).float() @ rows.T
    ordered = pre.sort(dim=0, descending=True).values
    cut = len(pre) // 200
    gaps = ordered[cut : 2 * cut] - ordered[cut + 1 : 2 * cut + 1]
    at = cut + gaps.argmax(dim=0)
    each = torch.arange(24)
    return DenseSAE(rows.T.contiguous(), torch.zeros(24), rows, zero, zero, JumpReLU((ordered[at, each] + ordered[at + 1, each]) / 2))


def world(name: str, folder: Path) -> Context:
    """A planted world."""
    return world_context(open_world(name), Store(folder))


def defective(ctx: Context) -> DenseSAE:
    """An SAE of the world in which every fifth child absorbs its parent."""
    place = open_world(LETTERS)
    return DEFECTS["absorbed"](good_sae(place), place, 0.2).sae


def mixed(ctx: Context) -> DenseSAE:
    """An SAE of the tiny world in which a quarter of the children absorb, then a quarter are conjunctions."""
    place = open_world("world:tiny")
    return DEFECTS["composed"](DEFECTS["absorbed"](good_sae(place), place, 0.25).sae, place, 0.25, seed=1).sae


CASES = [
    Case(Reconstruction(tokens=900), language_model, golden_sae),
    Case(DistinctFeatures(tokens=900), language_model, golden_sae),
    Case(probing(), language_model, golden_sae),
    Case(Multidimensional(tokens=900, quantile=0.95, fewest_active=200), language_model, golden_sae),
    Case(scr(), language_model, golden_sae),
    Case(tpp(), language_model, golden_sae),
    Case(Composition(tokens=900, steps=20, seeds=2, min_alive=32), language_model, golden_sae),
    Case(Absorption(), partial(world, LETTERS), defective),
    Case(AbsorptionHierarchy(), partial(world, LETTERS), defective),
    Case(Autointerp(tokens=20_000, latents=8), text, sparse),
    Case(GroundTruth(tokens=8_192), partial(world, "world:tiny"), mixed),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda c: c.task.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def run(case: Case, sae: DenseSAE, ctx: Context) -> Result:
    answer = case.task.run(Canonical(sae), ctx)
    assert isinstance(answer, Result), answer
    return answer


def test_no_task_is_missing_here() -> None:
    assert {c.task.name for c in CASES} == set(registry.tasks())


@every
def test_golden_numbers(case: Case, folder: Path) -> None:
    """Numbers may move only with the task's version: bump it and write its new file."""
    ctx = case.context(folder)
    found = {k: m.value for k, m in run(case, case.sae(ctx), ctx).metrics.items()}
    kept = json.loads((GOLDEN / f"{case.task.name}@{case.task.version}.json").read_text())
    assert found.keys() == kept.keys()
    assert found == pytest.approx(kept, rel=2e-4, abs=max(2e-5, case.tolerance / 4)), "numbers moved without a new version"


@every
def test_rescaling_and_permuting_latents_changes_nothing(case: Case, folder: Path) -> None:
    ctx, g = case.context(folder), torch.Generator().manual_seed(0)
    sae = case.sae(ctx)
    order, a = torch.randperm(sae.d_sae, generator=g), 0.2 + 3 * torch.rand(sae.d_sae, generator=g)
    act = ReLU() if isinstance(sae.act, ReLU) else JumpReLU((sae.act.threshold / a)[order])
    encoder, decoder = (sae.W_enc / a)[:, order].contiguous(), (sae.W_dec * a[:, None])[order]
    other = DenseSAE(encoder, (sae.b_enc / a)[order], decoder, sae.b_dec, sae.b_pre, act)
    one, two = run(case, sae, ctx), run(case, other, ctx)
    for name, m in one.metrics.items():
        assert m.value == pytest.approx(two.metrics[name].value, rel=case.tolerance, abs=case.tolerance), name


@every
def test_the_same_run_twice_gives_the_same_record(case: Case, folder: Path, tmp_path: Path) -> None:
    records = []
    for place in (folder, tmp_path):
        ctx = case.context(place)
        sae = Canonical(case.sae(ctx))
        subject = SubjectFacts(name="x", sha256=sae.sha256, format="f", architecture="a", d_in=sae.d_in, d_sae=sae.d_sae, **ctx.site)
        records.append(make_record(subject, subject_task(case.task), case.task.data(ctx), 0, case.task.run(sae, ctx), {}))
    assert records[0] == records[1]


@every
def test_headline_metrics_and_intervals_hold(case: Case, folder: Path) -> None:
    ctx = case.context(folder)
    r = run(case, case.sae(ctx), ctx)
    assert len([h for h in case.task.headline if h in r.metrics]) >= len(case.task.headline) - 1  # one that needs --against may be absent
    for name, m in r.metrics.items():
        assert (m.interval is None) == (m.unit_class == "census") or m.n < 2, name
        if m.interval:
            assert m.interval[0] - 1e-9 <= m.value <= m.interval[1] + 1e-9, name


@every
def test_audits_read_columns_that_the_unit_table_has(case: Case, folder: Path) -> None:
    ctx = case.context(folder)
    columns = set(run(case, case.sae(ctx), ctx).units)
    known = audits()
    assert (case.task.name in known.tasks) != (case.task.name in known.without)
    for metric, how in known.tasks[case.task.name].units.items() if case.task.name in known.tasks else ():
        read = {how.value, *how.keys, how.less, how.over, how.over_less, *how.where} - {""}
        assert read <= columns, f"{metric}: {sorted(read - columns)}"
