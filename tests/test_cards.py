"""Metric cards: whole, current, the same bytes every time, and shown where the task is shown."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from bench import registry
from bench.audit.card import Card, Detectable, Stages, Subject
from bench.audit.entries import Entry, audits
from bench.audit.protocol import planted_card
from bench.cli import main
from bench.errors import VerificationError
from leaderboard import cards
from leaderboard.card_picture import svg
from tests.test_audit import ENTRY, toy_grid

TASKS = registry.tasks()


def toy_card() -> Card:
    whole = planted_card(replace(ENTRY, truth={"score": "rate"}), "score", toy_grid())
    subjects = (Subject("first", "ab", 0.5, False, (0.4, 0.6)), Subject("nothing", "cd", 0.9, True))
    more = replace(
        whole,
        subjects=subjects,
        stages=Stages({"run": (0.5, 0.4)}, 1, 1, "paired units"),
        detectable=Detectable(0.02, 12, "paired units", ("first", "second")),
        missing={},
    )
    blind = planted_card(ENTRY, "score", toy_grid(slope=0.0, half=None))
    return Card("toy", 1, ENTRY.sha256, ENTRY.world, ENTRY.defect, {"size": 3}, {"score": more, "other": blind}, "a note", {"numpy": "2"})


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    card = toy_card()
    path = cards.write(card, tmp_path)
    again = cards.read("toy", 1, tmp_path)
    assert again is not None and path.name == "toy@1.json" and cards.as_json(again) == cards.as_json(card) == path.read_text()
    assert (
        again.metrics["score"].subjects == card.metrics["score"].subjects
        and again.metrics["other"].verdict == card.metrics["other"].verdict
    )
    assert cards.read("toy", 2, tmp_path) is None
    raw = json.loads(path.read_text())
    assert "stages" not in raw["metrics"]["other"] and "stages" in raw["metrics"]["other"]["missing"]  # absent, and named


def test_numbers_that_are_none_and_parts_that_are_unknown_are_refused() -> None:
    text = cards.as_json(toy_card())
    raw = json.loads(text)
    for wrong in (
        text.replace('"sd": 0.0', '"sd": NaN', 1) if '"sd": 0.0' in text else text.replace('"slope": 0.5', '"slope": NaN', 1),
        json.dumps({**raw, "more": 1}),
        json.dumps({k: v for k, v in raw.items() if k != "world"}),
        json.dumps({**raw, "schema_version": 2}),
        "no json",
    ):
        with pytest.raises(VerificationError):
            cards.from_json(wrong)
    broken = replace(toy_card().metrics["score"], control=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        cards.as_json(replace(toy_card(), metrics={"score": broken}))


def test_the_picture_is_the_same_bytes_and_shows_the_parts() -> None:
    card = toy_card()
    first = svg(card)
    assert svg(card) == first
    root = ET.fromstring(first)
    words = " ".join(t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text"))
    for word in ("toy@1 on world:tiny: absorbed", "score", "identity", "random dictionary", "nothing", "not measured:", "shrunk"):
        assert word in words
    assert b"<dc:date>" not in first
    assert svg(replace(card, metrics={"score": card.metrics["score"]})) != first


def test_a_card_in_a_few_lines() -> None:
    text = "\n".join(cards.lines(toy_card()))
    assert "slope 0.5" in text and "of the truth" in text and "20/20 seeds" in text and "stages told apart: 1/1" in text
    assert "nothing 0.9 (control)" in text and "! at 10 % of the defect ranked right on 0 of 20" in text and "note: a note" in text
    assert "smallest difference found 0.02 (n = 12, paired units)" in text and max(map(len, text.splitlines())) < 260


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_current_card_or_a_reason(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    known, card = audits(), cards.read(name, TASKS[name].version)
    with pytest.raises(SystemExit) as stop:
        main(["tasks", "show", name])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    if name in known.without:
        assert card is None and known.without[name] in shown
        return
    assert card is not None, f"run python -m bench audit {name}"
    entry: Entry = known.tasks[name]
    assert (card.id, card.entry_sha256) == (f"{name}@{TASKS[name].version}", entry.sha256), f"run python -m bench audit {name}"
    assert list(card.metrics)[: len(entry.metrics)] == list(entry.metrics) and "Metric card" in shown
    assert cards.path_of(name, card.version).with_suffix(".svg").read_bytes().startswith(b"<?xml")


def test_no_card_is_left_of_a_task_that_is_gone() -> None:
    held = {p.stem for p in cards.folder().glob("*.json")}
    assert held <= {f"{n.replace('/', '_')}@{c.version}" for n, c in TASKS.items()} and held == {
        p.stem for p in cards.folder().glob("*.svg")
    }


def test_an_audit_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ORTSAE_CACHE", str(tmp_path / "cache"))

    def bench(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        assert stop.value.code == 0
        return capsys.readouterr().out

    def audit(*flags: str) -> str:
        return bench("audit", *flags, "--seeds", "2", "--out", str(tmp_path))

    assert "absorption_rate" in audit("ground_truth", "--planted-only")
    more = audit("ground_truth.explained_variance")
    card = cards.read("ground_truth", TASKS["ground_truth"].version, tmp_path)
    assert card is not None and "explained_variance" in more and next(iter(card.metrics)) == "absorption_rate"
    assert card.metrics["absorption_rate"].control is not None or "control" in card.metrics["absorption_rate"].missing
    before = cards.as_json(card)
    audit("ground_truth", "--keep-planted", "--planted-only")
    after = cards.read("ground_truth", card.version, tmp_path)
    assert after is not None and cards.as_json(after) == before
    run, records = tmp_path / "run", tmp_path / "records"
    sizes = ("--d-sae", "64", "--k", "2", "--tokens", "4096", "--steps", "60", "--batch", "128", "--checkpoint-at", "0.5,1.0")
    bench("train", "batchtopk", "--lm", "world:tiny", "--out", str(run), *sizes)
    bench("run", "--sae", str(run), "--tasks", "ground_truth", "--records", str(records))
    shown = audit("ground_truth", "--keep-planted", "--records", str(records), "--stages", str(run))
    staged = cards.read("ground_truth", card.version, tmp_path)
    assert staged is not None and "recorded: batchtopk " in shown
    stages = staged.metrics["mcc"].stages
    assert stages is not None and stages.pairs == 1 and stages.runs["run"][0] < stages.runs["run"][1]  # training recovers features
    assert staged.metrics["mcc"].planted == after.metrics["mcc"].planted
