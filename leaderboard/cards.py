"""Metric cards: JSON and a picture per task, `leaderboard/cards/<task>@<version>.json` and `.svg`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from bench import registry
from bench.audit.card import Card, MetricCard
from bench.errors import VerificationError

_DIGITS = 7  # of numbers in a card; more are noise between machines


def folder() -> Path:
    """Where the suite's own cards lie."""
    return registry.package_folder("leaderboard") / "cards"


def path_of(task: str, version: int, where: Path | None = None) -> Path:
    """The JSON file of a card."""
    return (where or folder()) / f"{task.replace('/', '_')}@{version}.json"


def as_json(card: Card) -> str:
    """The card as text; parts that are absent are left out, numbers have seven digits.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(_plain(asdict(card)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(text: str, where: str = "card") -> Card:
    """A card from text, checked.

    Raises:
        VerificationError: It is no card.
    """
    from pydantic import ValidationError

    try:
        raw = json.loads(text, parse_constant=_refuse)
        card: Card = _schema().validate_python(raw)
        if _plain(asdict(card)) != _plain(raw):
            raise ValueError("it has parts that a card does not have")
    except (ValueError, ValidationError) as e:
        raise VerificationError(f"{where} is not a metric card: {str(e).splitlines()[0]}", "run python -m bench audit again") from e
    return card


def read(task: str, version: int, where: Path | None = None) -> Card | None:
    """The card of a task, or None where there is none."""
    path = path_of(task, version, where)
    return from_json(path.read_text(encoding="utf8"), str(path)) if path.exists() else None


def write(card: Card, where: Path | None = None) -> Path:
    """Write a card and its picture; returns the JSON file."""
    from leaderboard.card_picture import svg

    path = path_of(card.task, card.version, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = as_json(card)
    path.with_suffix(".svg").write_bytes(svg(from_json(text)))
    path.write_text(text, encoding="utf8")
    return path


def lines(card: Card) -> list[str]:
    """The card in a few lines."""
    out = [f"Metric card ({card.world}, defect {card.defect}):"]
    for name, m in card.metrics.items():
        out += [f"  {name}", *(f"    {line}" for line in _of_metric(m))]
    return out + ([f"  note: {card.note}"] if card.note else [])


def _of_metric(m: MetricCard) -> Iterable[str]:
    if p := m.planted:
        n = len(p.measured)
        recovery = f"slope {p.slope:.3g}, largest error {p.max_error:.2g} of a line"
        recovery += f", {p.truth_error:.2g} of the truth" if p.truth_error is not None else ""
        yield f"planted against measured: {recovery}; Spearman ≥ 0.9 on {p.spearman_enough}/{n} seeds (lowest {p.spearman_min:.2f})"
        yield f"10 % of the defect ranked right on {p.ranked_right}/{n} seeds (L0 within {p.l0_change:.1%}, EV within {p.ev_change:.3f})"
    if a := m.absence:
        yield f"10 % of {a.defect} instead: moves by no more than its {a.basis} (± {a.allowed:.2g}) on {a.within}/{len(a.moved)} seeds"
    facts = [f"reseed noise {m.noise.sd:.2g}"] if m.noise else []
    facts += [f"random dictionary {m.control:.3g}"] if m.control is not None else []
    facts += [f"smallest difference found {m.detectable.value:.2g} (n = {m.detectable.n}, {m.detectable.basis})"] if m.detectable else []
    if facts:
        yield "; ".join(facts)
    if s := m.stages:
        yield f"training stages told apart: {s.told_apart}/{s.pairs} pairs ({s.basis})"
    if m.subjects:
        yield "recorded: " + ", ".join(f"{s.name} {s.value:.3g}" + (" (control)" if s.control else "") for s in m.subjects)
    yield from (f"! {said}" for said in m.verdict)
    if m.missing:
        yield "not measured: " + "; ".join(f"{k} ({v})" for k, v in m.missing.items())


def _plain(value: Any) -> Any:
    """Plain data without absent parts."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of a card")


@cache
def _schema() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Card)
