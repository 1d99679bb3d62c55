"""Audits: the arithmetic by hand and against scipy, the protocol on cells of known slope and noise, a real small audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench import registry
from bench.audit import statistics
from bench.audit.entries import Entry, Units, audits, chosen
from bench.audit.planted import DOSES, Cell, Grid, Ground, grid
from bench.audit.protocol import planted_card
from bench.audit.real import alike, unit_values, with_records, with_stages
from bench.audit.tail import AuditContext
from bench.errors import UsageError
from bench.record import Records, SubjectFacts, TaskFacts, make_record
from bench.sae.canonical import Canonical
from bench.store import Store
from bench.types import Metric, NotApplicable, Result
from bench.worlds.defects import shrunk
from tasks.reconstruction import Reconstruction

ENTRY = Entry("toy", ("score",), "world:tiny", "absorbed", "shrunk")


# arithmetic


def test_a_line_through_points_by_hand() -> None:
    found = statistics.line(np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 3.0]))
    assert (found.slope, found.intercept, found.max_error) == pytest.approx((1.5, 0.5, 1.0))
    flat = statistics.line(np.ones(3), np.array([1.0, 2.0, 6.0]))
    assert (flat.slope, flat.intercept, flat.max_error) == pytest.approx((0.0, 3.0, 3.0))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
def test_rank_correlation_is_that_of_scipy(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, float).T
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert statistics.spearman(x, y) == 0
    else:
        assert statistics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_the_detectable_difference_by_hand_and_by_its_power() -> None:
    assert statistics.detectable(1.0, 9) == pytest.approx(2.262157 + 0.883404, abs=1e-5)  # t tables, 9 degrees of freedom
    n, runs = 40, 2_000
    d = np.random.default_rng(0).standard_normal((runs, n)) + statistics.detectable(1 / np.sqrt(n), n - 1)
    error = d.std(1, ddof=1) / np.sqrt(n)
    assert (np.abs(d.mean(1) / error) > stats.t.ppf(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.03)


def test_pseudo_values_of_a_ratio() -> None:
    a = np.array([1.0, 4.0, 2.0])
    assert statistics.pseudo_values(a, np.ones(3)) == pytest.approx(a)  # a mean's are the values themselves
    b = np.array([1.0, 2.0, 5.0])
    by_hand = [3 * 7 / 8 - 2 * (7 - x) / (8 - y) for x, y in zip(a, b, strict=True)]
    assert statistics.pseudo_values(a, b) == pytest.approx(by_hand)


def test_paired_differences_use_common_units_only() -> None:
    a = {u: float(u) for u in range(6)}
    assert statistics.told_apart(a, {u: v - 1 - 0.01 * u for u, v in a.items()}) is True
    assert statistics.told_apart(a, {u: v + (-1) ** u for u, v in a.items()}) is False
    assert statistics.told_apart(a, {0: 1.0, 9: 2.0}) is None and statistics.paired(a, {3: 1.0, 9: 0.0}).tolist() == [2.0]


def test_values_per_unit_are_nested_means() -> None:
    rows = [
        {"family": "a", "set": 1, "k": 1, "hit": 1.0, "miss": 0.0},
        {"family": "a", "set": 2, "k": 1, "hit": 0.0, "miss": 0.5},
        {"family": "a", "set": 2, "k": 1, "hit": 1.0, "miss": 0.5},
        {"family": "b", "set": 3, "k": 1, "hit": 0.25, "miss": 0.25},
    ]
    assert unit_values(rows, Units("hit", ("family", "set"))) == {"a": 0.75, "b": 0.25}
    assert unit_values(rows, Units("hit", ("family", "set"), less="miss")) == {"a": 0.5, "b": 0.0}
    assert unit_values([], Units("hit")) == {}
    assert list(unit_values(rows, Units("hit", over="k")).values()) == pytest.approx([1.0, 0.0, 1.0, 0.25])
    ratio = unit_values(rows, Units("hit", over="k", over_less="miss"))  # 1, 0, 1, 0.25 over 1, 0.5, 0.5, 0.75
    assert ratio[0] == pytest.approx(4 * 2.25 / 2.75 - 3 * 1.25 / 1.75) and len(ratio) == 4


# entries


def test_every_entry_names_a_task_a_defect_and_a_world_that_exist() -> None:
    from bench.worlds.defects import DEFECTS
    from bench.worlds.names import open_world

    known, tasks = audits(), registry.tasks()
    for name, entry in known.tasks.items():
        assert {entry.defect, entry.absent} <= set(DEFECTS) and entry.defect != entry.absent and entry.metrics
        assert open_world(entry.world).name.startswith("world:") and registry.build(tasks[name], entry.params).name == name
        assert set(entry.truth) <= set(entry.metrics) and set(entry.units) <= set(entry.metrics)
    assert not set(known.tasks) & set(known.without)


def test_a_metric_is_chosen_by_task_or_by_both_names() -> None:
    known = audits()
    assert chosen("absorption", known)[1] == known.tasks["absorption"].metrics
    assert chosen("absorption.probe_f1", known) == (known.tasks["absorption"], ("probe_f1",))
    with pytest.raises(UsageError, match=r"did you mean|known"):
        chosen("absorbtion", known)
    with pytest.raises(UsageError, match="because"):
        chosen("toy", replace(known, without={"toy": "because"}))


@pytest.mark.parametrize("text", ["", 'pair = ["a", "b"]\n[tasks]', 'controls=[]\npair=["a","b"]\nx=1\n[tasks]', "tasks = 3"])
def test_a_file_that_holds_no_audits_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "audits.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        audits(path)


def test_unknown_names_in_an_entry_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "audits.toml"
    whole = 'controls = []\npair = ["a", "b"]\n[tasks.t]\nmetrics = ["m"]\nworld = "w"\ndefect = "d"\nabsent = "e"\n'
    path.write_text(whole)
    assert audits(path).tasks["t"].metrics == ("m",) and audits(path).tasks["t"].sha256 != ENTRY.sha256
    plain = audits(path).tasks["t"]
    assert replace(plain, units={"m": Units("v")}).sha256 == replace(plain, units={"m": Units("v", keys=())}).sha256 != plain.sha256
    for more in ("size = 3\n", '[tasks.t.units.m]\nvalue = "v"\nby = "x"\n'):
        path.write_text(whole + more)
        with pytest.raises(UsageError):
            audits(path)


# the protocol on cells of known slope and noise


def cell(value: float | None, rate: float, half: float | None = 0.01, l0: float = 10.0, ev: float = 0.9) -> Cell:
    interval = None if value is None or half is None else (value - half, value + half)
    metric = {} if value is None else {"score": Metric(value, 9, "unit", "census" if half is None else "shared", "lower", interval)}
    return Cell(rate, l0, ev, 100, 80, metric)


def toy_grid(slope: float = 0.5, noise: float = 0.0, absent: float = 0.0, half: float | None = 0.01, **shape: float) -> Grid:
    r = np.random.default_rng(0)
    own = tuple(
        tuple(cell(0.2 + slope * d + noise * r.standard_normal(), d, half, **(shape if d == 0.1 else {})) for d in DOSES) for _ in range(20)
    )
    other = tuple(cell(row[0].values["score"].value + absent, 0.0, half) for row in own)
    return Grid(DOSES, own, other, tuple(cell(0.25 + 0.001 * i, 0.1, half) for i in range(8)), cell(0.9, 0.0, half))


def test_a_metric_that_follows_its_defect_passes() -> None:
    card = planted_card(ENTRY, "score", toy_grid())
    p = card.planted
    assert p and card.worse == "higher" and card.verdict == () and card.control == 0.9 and p.truth_error is None
    assert (p.slope, p.intercept, p.max_error) == pytest.approx((0.5, 0.2, 0.0), abs=1e-12)
    assert (p.spearman_min, p.spearman_enough, p.ranked_right, p.left_out) == (pytest.approx(1.0), 20, 20, 0)
    assert card.noise and card.noise.sd == pytest.approx(0.001 * np.std(range(8), ddof=1))
    assert card.absence and card.absence.allowed == pytest.approx(0.01) and card.absence.within == 20
    assert card.absence.own == pytest.approx([0.05] * 20) and card.detectable is None and "detectable" in card.missing


def test_slope_and_error_are_those_of_the_cells() -> None:
    p = planted_card(ENTRY, "score", toy_grid(noise=0.02)).planted
    assert p and p.slope == pytest.approx(0.5, abs=0.05) and 0.04 < p.max_error < 0.08
    expected = np.polyfit(np.ravel(p.truth), np.ravel(p.measured), 1)
    assert (p.slope, p.intercept) == pytest.approx(tuple(expected))


def test_what_does_not_hold_is_said() -> None:
    blind = planted_card(ENTRY, "score", toy_grid(slope=0.0))
    assert blind.planted and blind.planted.ranked_right == 0 and blind.planted.spearman_min == 0
    assert len(blind.verdict) == 2 and "ranked right on 0 of 20" in blind.verdict[0] and "on 20 of 20 seeds" in blind.verdict[1]
    wrong = planted_card(ENTRY, "score", toy_grid(slope=-0.5))
    assert wrong.planted and wrong.planted.spearman_min == pytest.approx(-1) and "not monotone" in wrong.verdict[1]
    restless = planted_card(ENTRY, "score", toy_grid(absent=0.03))
    assert restless.absence and restless.absence.within == 0 and "60% of what its own defect does" in restless.verdict[0]
    visible = planted_card(ENTRY, "score", toy_grid(l0=11.0, ev=0.8))
    assert (
        len(visible.verdict) == 2
        and "explained variance moves by 0.100" in visible.verdict[0]
        and "L0 moves by 10.0%" in visible.verdict[1]
    )


def test_a_metric_without_an_answer_is_counted_or_missing() -> None:
    whole = toy_grid()
    holes = replace(whole, own=((cell(None, 0.0), *whole.own[0][1:]), *whole.own[1:]), absent=(cell(None, 0.0),) * 20, control=None)
    card = planted_card(ENTRY, "score", holes)
    assert card.planted and card.planted.left_out == 1 and len(card.planted.measured) == 19
    assert card.absence is None and card.control is None and {"absence", "control"} <= set(card.missing)
    assert "no answer in 1 of 20 seeds" in card.verdict
    never = replace(whole, own=tuple((cell(None, 0.0), *row[1:]) for row in whole.own))
    assert planted_card(ENTRY, "score", never).planted is None and "planted" in planted_card(ENTRY, "score", never).missing
    with pytest.raises(UsageError, match="gives no 'other'"):
        planted_card(ENTRY, "other", whole)


def test_a_census_has_the_noise_of_reseeding_and_estimates_are_held_against_the_truth() -> None:
    card = planted_card(replace(ENTRY, truth={"score": "distinct"}), "score", toy_grid(half=None))
    sd = 0.001 * np.std(range(8), ddof=1)
    assert card.absence and card.absence.basis == "reseed noise" and card.absence.allowed == pytest.approx(1.96 * np.sqrt(2) * sd, rel=1e-4)
    assert card.detectable and card.detectable.value == pytest.approx((2.364624 + 0.896030) * np.sqrt(2) * sd, rel=1e-4)
    assert card.planted and card.planted.truth[0] == pytest.approx([100 - 80 * d for d in DOSES])
    assert card.planted.truth_error == pytest.approx(99.8)
    kept = planted_card(replace(ENTRY, truth={"score": "kept"}), "score", toy_grid()).planted
    assert kept and kept.truth[3] == pytest.approx([1 - d for d in DOSES])


def test_a_metric_without_a_direction_needs_one() -> None:
    def turned(c: Cell) -> Cell:
        return replace(c, values={"score": replace(c.values["score"], better="neither")})

    whole = toy_grid(slope=-0.5)
    neither = replace(whole, own=tuple(tuple(turned(c) for c in row) for row in whole.own))
    with pytest.raises(UsageError, match="no better direction"):
        planted_card(ENTRY, "score", neither)
    assert planted_card(replace(ENTRY, worse={"score": "lower"}), "score", neither).verdict == ()


# cells on real worlds


@dataclass(frozen=True)
class Counting:
    """A task that fails at one of its calls and says how often it was asked."""

    name: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    asked: ClassVar[list[int]] = []
    fail_at: ClassVar[list[int]] = []

    def run(self, sae: Canonical, ctx: Any) -> Result | NotApplicable:
        self.asked.append(ctx.seed)
        if len(self.asked) in self.fail_at:
            raise KeyboardInterrupt
        return Result("score", {"score": Metric(float(sae.W_dec[0, 0]), 1, "latent", "census", "lower")})


def test_an_interrupted_audit_goes_on_where_it_stopped(tmp_path: Path) -> None:
    Counting.asked.clear()
    Counting.fail_at[:] = [8]
    store, cells = Store(tmp_path), 2 * (len(DOSES) + 1) + 3 - 1
    with pytest.raises(KeyboardInterrupt):
        grid(ENTRY, Counting(), store, seeds=2, reseeds=3)
    first = grid(ENTRY, Counting(), store, seeds=2, reseeds=3)
    assert len(Counting.asked) == cells + 1  # the one that failed was asked twice
    again = grid(ENTRY, Counting(), store, seeds=2, reseeds=3)
    assert len(Counting.asked) == cells + 1 and again == first and len(first.reseeds) == 3
    assert set(Counting.asked) == {0, 1, 1_000, 2_000}  # task seeds: one per world, and those of the fixed SAE
    Counting.fail_at.clear()


def test_a_real_audit_recovers_the_planted_rate(tmp_path: Path) -> None:
    entry = Entry(
        "ground_truth",
        ("absorption_rate", "firing_f1"),
        "world:tiny",
        "absorbed",
        "composed",
        {"tokens": 4096},
        truth={"absorption_rate": "rate"},
    )
    task = registry.build(registry.tasks()["ground_truth"], entry.params)
    cells = grid(entry, task, Store(tmp_path), seeds=3, reseeds=2)
    assert len({row[2].values["firing_f1"].value for row in cells.own}) == 3  # every seed is another world
    card = planted_card(entry, "absorption_rate", cells)
    p = card.planted
    assert p and p.slope == pytest.approx(1, abs=0.05) and p.truth_error is not None and p.truth_error < 0.02
    assert (p.ranked_right, p.spearman_enough) == (3, 3) and p.ev_change < 0.02 and p.l0_change < 0.02
    assert card.absence and max(map(abs, card.absence.moved)) < 0.2 * min(card.absence.own)


def test_tasks_that_splice_run_on_a_planted_language_model(tmp_path: Path) -> None:
    ground = Ground("world:tiny", 0, Store(tmp_path))
    ctx = ground.context(0)
    assert isinstance(ctx, AuditContext) and ctx.has_lm and ctx.device == "cpu" and ground.context(2).seed == 2_000
    splicer = ctx.splicer(ctx.text(2_048))
    clean, zero = splicer.clean(), splicer.ablated("zero")
    assert np.abs(clean["kl"]).max() < 1e-5 and zero["ce"].mean() > clean["ce"].mean() + 0.1
    assert zero["ce"] == pytest.approx(np.full(splicer.scored.sum(), np.log(64)), abs=1e-4)  # every word alike
    good, bad = (Reconstruction(tokens=2_048).run(Canonical(s), ctx) for s in (ground.good, shrunk(ground.good, ground.world, 0.4).sae))
    assert isinstance(good, Result) and isinstance(bad, Result)
    for name in ("explained_variance", "ce_recovered_zero", "kl_score_zero", "shrinkage_slope"):
        assert good.metrics[name].value > bad.metrics[name].value + 0.02, name


# records


PAIR = ("first", "second")


def written(folder: Path, name: str, scores: list[float], params: Mapping[str, object] | None = None, sha: str = "") -> Records:
    """A record of a task whose metric is the mean of a column of its unit table."""
    subject = SubjectFacts(
        name=name,
        sha256=sha or f"sha of {name}",
        format="f",
        architecture="a",
        d_in=2,
        d_sae=3,
        lm="m",
        revision="r",
        lm_dtype="float32",
        hook="h",
    )
    facts = TaskFacts(name="toy", version=1, params=dict(params or {}))
    metric = Metric(float(np.mean(scores)), len(scores), "unit", "shared", "lower", (0.0, 1.0))
    units = {"unit": [f"u{i}" for i in range(len(scores))], "x": scores}
    records = Records(folder)
    records.write(make_record(subject, facts, {"text": "t"}, 0, Result("score", {"score": metric}, units), {}), units)
    return records


def test_recorded_saes_join_by_name(tmp_path: Path) -> None:
    a, b = [0.1, 0.3, 0.2, 0.5], [0.2, 0.3, 0.4, 0.4]
    for name, scores in (("first", a), ("second", b), ("nothing", [0.9] * 4), ("newcomer", [0.4] * 4)):
        written(tmp_path, name, scores)
    records = written(tmp_path, "elsewhere", [0.0] * 4, params={"size": 3})
    entry = replace(ENTRY, units={"score": Units("x", ("unit",))})
    base = planted_card(entry, "score", toy_grid())
    card = with_records(base, entry, "score", alike("toy", 1, [records], PAIR), (PAIR, ("nothing",)))
    assert [(s.name, s.control) for s in card.subjects] == [("first", False), ("newcomer", False), ("nothing", True), ("second", False)]
    d = np.array(a) - np.array(b)
    expected = (stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)) * d.std(ddof=1) / 2
    assert card.detectable and card.detectable.value == pytest.approx(expected) and card.detectable.n == 4
    assert not {"real", "detectable"} & set(card.missing) and "stages" in card.missing
    none = with_records(base, entry, "score", alike("toy", 2, [records], PAIR), (PAIR, ()))
    assert none.subjects == () and "no records" in none.missing["real"] and none.detectable is None
    assert alike("toy", 1, [records], ("elsewhere", "first")).records.keys() != {("elsewhere", 0)}  # one of each: the larger group
    assert alike("toy", 1, [records], ("elsewhere", "none")).records.keys() == {("elsewhere", 0)}


def test_of_equal_groups_the_one_with_most_units_is_read(tmp_path: Path) -> None:
    records = written(tmp_path, "first", [0.1, 0.2, 0.3], params={"size": 1})
    for size in (2, 3, 4):
        written(tmp_path, "first", [0.1, 0.2], params={"size": size})
    assert alike("toy", 1, [records], PAIR).records["first", 0].task.params == {"size": 1}
    assert alike("toy", 1, [records], PAIR, {"size": 3}).records["first", 0].task.params == {"size": 3}
    assert alike("toy", 1, [records], PAIR, {"size": 9}).records["first", 0].task.params == {"size": 1}


def test_two_saes_of_one_name_are_both_kept(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", "first", [0.1, 0.2]), written(tmp_path / "b", "first", [0.3, 0.4], sha="99999999ff")
    found = alike("toy", 1, [first, second, first], PAIR)
    assert set(found.records) == {("first", 0), ("first 99999999", 0)}


def test_stages_are_told_apart_by_their_units_or_by_reseed_noise(tmp_path: Path) -> None:
    early, late, same = [0.1, 0.3, 0.2, 0.5], [0.3, 0.5, 0.41, 0.69], [0.31, 0.49, 0.42, 0.68]
    for name, scores in (("s1", early), ("s2", late), ("s3", same)):
        written(tmp_path, name, scores)
    found, runs = alike("toy", 1, [Records(tmp_path)], PAIR), {"run": ["s1", "s2", "s3"], "short": ["s1"]}
    paired = replace(ENTRY, units={"score": Units("x", ("unit",))})
    base = planted_card(ENTRY, "score", toy_grid())
    card = with_stages(base, paired, "score", found, runs)
    assert card.stages and (card.stages.pairs, card.stages.told_apart, card.stages.basis) == (3, 2, "paired units")
    assert list(card.stages.runs) == ["run"] and card.stages.runs["run"] == pytest.approx([np.mean(s) for s in (early, late, same)])
    blunt = with_stages(base, ENTRY, "score", found, runs)
    assert blunt.stages and (blunt.stages.told_apart, blunt.stages.basis) == (2, "reseed noise")
    assert with_stages(base, ENTRY, "score", found, {"short": ["s1"]}).stages is None
