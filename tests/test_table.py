"""The table: the right records in the right rows, references at the nearest L0 and marked, numbers one can read."""

from __future__ import annotations

import pytest

from bench.record import MetricFacts, Record, SubjectFacts, TaskFacts, make_record
from bench.types import Metric, NotApplicable, Result
from leaderboard import table
from leaderboard.table import metric_lines, number, rows, text, with_references

TASKS = [TaskFacts(name="reconstruction", version=1, params={"tokens": 9}), TaskFacts(name="probing", version=2, params={})]
COLUMNS = ["reconstruction.l0", "reconstruction.ev", "probing.acc"]


def subject(name: str, sha: str = "", **changes: object) -> SubjectFacts:
    facts = {"name": name, "sha256": (sha or name).encode().hex().ljust(64, "0"), "format": "f", "architecture": "a", "d_in": 4, "d_sae": 8}
    site = {"lm": "m", "revision": "r", "lm_dtype": "float32", "hook": "blocks.1.hook_resid_post"}
    return SubjectFacts(**(facts | site | changes))  # pyright: ignore


def measured(who: SubjectFacts, l0: float, ev: float = 0.5, task: TaskFacts = TASKS[0]) -> Record:
    metrics = {
        "l0": Metric(l0, 12, "document", "shared", "neither"),
        "ev": Metric(ev, 12, "document", "shared", "higher", (ev - 0.125, ev + 0.125)),
    }
    return make_record(who, task, {}, 0, Result("ev", metrics), {})


def probed(who: SubjectFacts, acc: float) -> Record:
    return make_record(who, TASKS[1], {}, 0, Result("acc", {"acc": Metric(acc, 3, "family", "shared", "higher")}), {})


def published(*saes: tuple[str, float], **changes: object) -> list[table.Row]:
    return rows([measured(subject(n, f"{n}{l0}", **changes), l0) for n, l0 in saes], TASKS, COLUMNS, published=True)


def test_one_row_per_sae_and_site() -> None:
    a, b = subject("a"), subject("b")
    elsewhere = subject("a", hook="blocks.2.hook_resid_post")
    found = rows([measured(a, 4), probed(a, 0.75), measured(b, 5), measured(elsewhere, 6)], TASKS, COLUMNS)
    assert [(r.subject.name, r.subject.hook[7], r.l0) for r in found] == [("a", "1", 4), ("b", "1", 5), ("a", "2", 6)]
    assert found[0].cells["probing.acc"].value == 0.75 and found[1].notes["probing.acc"] == "–"


def test_other_versions_and_parameters_do_not_mix_in() -> None:
    older = TaskFacts(name="reconstruction", version=2, params={"tokens": 9})
    smaller = TaskFacts(name="reconstruction", version=1, params={"tokens": 8})
    a = subject("a")
    assert rows([measured(a, 4, task=older), measured(a, 4, task=smaller)], TASKS, COLUMNS) == []


def test_not_applicable_and_missing_cells() -> None:
    a = subject("a")
    skipped = make_record(a, TASKS[1], {}, 0, NotApplicable("no rows"), {})
    shown = text(rows([measured(a, 4), skipped], TASKS, [*COLUMNS, "reconstruction.nope"]), [*COLUMNS, "reconstruction.nope"], "t")
    line = shown.splitlines()[-1].split()
    assert line[-2:] == ["n/a", "–"]


def test_text() -> None:
    shown = text(
        rows([measured(subject("a"), 4, 0.5), measured(subject("longer"), 123.456, 0.25)], TASKS, COLUMNS[:2]), COLUMNS[:2], "title"
    )
    title, head, rule, *body = shown.splitlines()
    assert (title, head, set(rule)) == ("title", "SAE              l0     ev ↑", {"─"})
    assert body == ["a 61000000       4.000  0.500 [0.375, 0.625]", "longer 6c6f6e67  123.5  0.250 [0.125, 0.375]"]


NUMBERS = [
    (0, "0.000"),
    (1, "1.000"),
    (0.12345, "0.123"),
    (-0.5, "-0.500"),
    (31.99, "31.990"),
    (100, "100"),
    (123.456, "123.5"),
    (65536, "65536"),
]


@pytest.mark.parametrize(("value", "shown"), NUMBERS, ids=str)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_references_come_at_the_nearest_l0() -> None:
    own = rows([measured(subject("mine"), 30)], TASKS, COLUMNS)
    board = published(("batchtopk", 16), ("batchtopk", 32), ("batchtopk", 64), ("random", 31), ("other", 30))
    found = with_references(own, board)
    assert [(r.subject.name, r.l0, r.published) for r in found] == [("mine", 30, False), ("batchtopk", 32, True), ("random", 31, True)]
    assert [r.mark for r in found] == ["", "", ""]


def test_a_reference_far_in_l0_or_size_is_marked() -> None:
    own = rows([measured(subject("mine"), 30)], TASKS, COLUMNS)
    (_, far) = with_references(own, published(("ortsae", 64)))
    assert "64.000 differs from 30.000" in far.mark and "not comparable" in far.mark
    (_, wide) = with_references(own, published(("ortsae", 30), d_sae=16))
    assert wide.mark == "d_sae 16 differs from 8"
    shown = text([*own, far], COLUMNS, "t")
    assert "ortsae " in shown and " ¹" in shown and shown.splitlines()[-1].startswith("ortsae: L0 64.000 differs")


def test_the_same_size_comes_before_the_nearest_l0() -> None:
    own = rows([measured(subject("mine"), 30)], TASKS, COLUMNS)
    (_, chosen) = with_references(own, [*published(("ortsae", 30), d_sae=16), *published(("ortsae", 40))])
    assert chosen.l0 == 40 and chosen.subject.d_sae == 8


@pytest.mark.parametrize(
    "change", [{"lm": "x"}, {"revision": "x"}, {"lm_dtype": "bfloat16"}, {"hook": "blocks.2.hook_resid_post"}], ids=str
)
def test_references_of_other_sites_stay_out(change: dict[str, str]) -> None:
    own = rows([measured(subject("mine"), 30)], TASKS, COLUMNS)
    assert with_references(own, published(("ortsae", 30), **change)) == own


def test_an_sae_is_not_its_own_reference() -> None:
    board = published(("ortsae", 30))
    own = rows([measured(board[0].subject, 30)], TASKS, COLUMNS)
    assert with_references(own, board) == own
    assert with_references([], board) == board


def test_metric_lines() -> None:
    made = measured(subject("a"), 4)
    dead = MetricFacts(value=0.1, n=1, unit="latent", unit_class="census", better="lower", spread=(0.0, 1.0))
    made = made.model_copy(update={"metrics": {**made.metrics, "dead": dead}})
    lines = metric_lines(made, ["ev", "dead", "absent"])
    assert lines[0] == "  ev       0.500  [0.375, 0.625]         n = 12 documents ↑"
    assert lines[1].split() == ["dead", "0.100", "spread", "0.000", "…", "1.000", "n", "=", "1", "latent", "↓"]
    assert len(lines) == 2
    assert metric_lines(probed(subject("a"), 0.5), ["acc"])[0].endswith("n = 3 families ↑")


def test_judges_of_latents_do_not_mix() -> None:
    task, a = TaskFacts(name="autointerp", version=1, params={}), subject("a")

    def judged(by: str, acc: float) -> Record:
        return make_record(a, task, {"judge": by}, 0, Result("acc", {"acc": Metric(acc, 3, "latent", "own", "higher")}), {})

    records = [measured(a, 4), judged("judge statistics, version 1", 0.5), judged("explainer m, judge openai, scorer m", 0.75)]
    found = rows(records, [*TASKS, task], ["reconstruction.l0", "autointerp.acc"])
    assert sorted((r.cells["autointerp.acc"].value, r.l0, "openai" in r.mark) for r in found) == [(0.5, 4, False), (0.75, 4, True)]
