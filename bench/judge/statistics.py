"""The offline judge: a latent is explained by the tokens on which it fires, those before them, and those around them.

It is a baseline beside every language model's score: how far does a list of tokens get? Deterministic, free, and the same
on every machine.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.judge.questions import Answer, Detect, Explain, Question, Spending, Window, prompt_hash

VERSION = "1"
_PLACES = ("on", "after", "near")  # the token itself, the one before it, any other of the window
_WEIGHT = {"on": 1.0, "after": 0.5, "near": 0.25}
_PRIOR = 0.5  # tokens' worth of belief that a latent fires on anything
_RARE = 0.5  # a token that no contrast window has counts as half seen there
_KEPT = 20  # tokens of each place in an explanation
_DIGITS = 3


@dataclass(frozen=True)
class StatisticsJudge:
    """Log-odds of tokens where the latent fires against where it does not, found on the explanation's windows alone."""

    identity: Mapping[str, str] = field(default_factory=lambda: {"judge": "statistics", "version": VERSION})
    spending: Spending = field(default_factory=lambda: Spending(usd=0.0))

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to every question; an explanation that is not one of this judge's leaves a detection unscored."""
        return [_explain(q) if isinstance(q, Explain) else _detect(q) for q in questions]


def readable(explanation: str) -> str:
    """One of this judge's explanations for a reader; any other as it is.

    Example:
        >>> readable('{"on": {"dog": 3.1, "cat": 2.0}, "after": {"the": 0.7}, "near": {}, "at_least": 1.5}')
        'fires on “dog”, “cat”; after “the”'
    """
    model = _read(explanation)
    if model is None:
        return explanation
    parts = (f"{place} " + ", ".join(f"“{t}”" for t in list(model[place])[:6]) for place in _PLACES if model[place])
    return "fires " + "; ".join(parts) if any(model[p] for p in _PLACES) else "fires on nothing in particular"


def _explain(q: Explain) -> Answer:
    model = _fit(q.examples, q.contrast)
    held_out = [_score(_fit(_without(q.examples, i), q.contrast), q.examples[i].tokens) for i in range(len(q.examples))]
    others = [_score(model, w.tokens) for w in q.contrast]
    raw = json.dumps({**model, "at_least": _threshold(held_out, others)}, ensure_ascii=False)
    return Answer(prompt_hash(VERSION, q), raw, "ok", explanation=raw)


def _detect(q: Detect) -> Answer:
    model = _read(q.explanation)
    if model is None:
        return Answer(prompt_hash(VERSION, q), "", "unscored")
    margins = [_score(model, w) - model["at_least"] for w in q.windows]
    score = tuple(round(1 / (1 + math.exp(-max(-30.0, min(30.0, m)))), 6) for m in margins)
    said = tuple(m > 0 for m in margins)
    return Answer(prompt_hash(VERSION, q), json.dumps(score), "ok", said=said, score=score)


def _fit(examples: Sequence[Window], contrast: Sequence[Window]) -> dict[str, dict[str, float]]:
    """For each place, the tokens that are likelier there by the logarithm of the ratio, the largest first."""
    background = Counter(t for w in contrast for t in _folded(w.tokens))
    total = sum(background.values())
    share = {place: defaultdict[str, float](float) for place in _PLACES}
    largest = max((max(w.codes, default=0.0) for w in examples), default=0.0) or 1.0
    for w in examples:
        tokens = _folded(w.tokens)
        weights = [max(0.0, c) / largest for c in w.codes]
        for i, weight in enumerate(weights):
            share["on"][tokens[i]] += weight
            share["after"][tokens[i - 1] if i else ""] += weight
        for t in {t for t, weight in zip(tokens, weights, strict=True) if not weight}:
            share["near"][t] += 1 / len(tokens)

    def ratio(place: str, token: str) -> float:
        usual = max(background[token], _RARE) / max(total, 1)
        mass = sum(share[place].values())
        return round(math.log((share[place][token] + _PRIOR * usual) / (mass + _PRIOR) / usual), _DIGITS)

    found = {p: {t: r for t in share[p] if t and (r := ratio(p, t)) > 0} for p in _PLACES}
    return {p: dict(sorted(f.items(), key=lambda item: (-item[1] * share[p][item[0]], item[0]))[:_KEPT]) for p, f in found.items()}


def _score(model: Mapping[str, Mapping[str, float]], tokens: Sequence[str]) -> float:
    """How much a window speaks for the latent: its best token with the one before it, and what is around."""
    folded = _folded(tokens)
    pairs = zip(["", *folded], folded, strict=False)
    best = max((_WEIGHT["on"] * model["on"].get(t, 0.0) + _WEIGHT["after"] * model["after"].get(b, 0.0) for b, t in pairs), default=0.0)
    return best + _WEIGHT["near"] * sum(model["near"].get(t, 0.0) for t in set(folded))


def _threshold(active: Sequence[float], inactive: Sequence[float]) -> float:
    """Score above which most is right on both sides, each side counting half; the middle of the gap there."""
    if not active or not inactive:
        return 0.0
    levels = sorted({*active, *inactive})
    cuts = [levels[0] - 1, *((a + b) / 2 for a, b in pairwise(levels))]

    def right(cut: float) -> float:
        return sum(a > cut for a in active) / len(active) + sum(i <= cut for i in inactive) / len(inactive)

    return round(max(cuts, key=lambda c: (right(c), c)), _DIGITS)


def _without(examples: Sequence[Window], i: int) -> list[Window]:
    return [w for j, w in enumerate(examples) if j != i]


def _folded(tokens: Iterable[str]) -> list[str]:
    """Tokens without case and surrounding spaces, unless that is all they are."""
    return [t.strip().lower() or t for t in tokens]


def _read(explanation: str) -> dict | None:
    """An explanation of this judge; None where it is not one."""
    try:
        model = json.loads(explanation)
        known = set(model) == {*_PLACES, "at_least"} and all(isinstance(v, float | int) for p in _PLACES for v in model[p].values())
        return model if known and isinstance(model["at_least"], float | int) else None
    except (ValueError, TypeError, AttributeError):
        return None
