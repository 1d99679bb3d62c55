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
_Seen = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class StatisticsJudge:
    """Log-odds of tokens where the latent fires against where it does not, found on the explanation's windows alone."""

    identity: Mapping[str, str] = field(default_factory=lambda: {"judge": "statistics", "version": VERSION})
    spending: Spending = field(default_factory=lambda: Spending(usd=0.0))

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to every question; an explanation that is not one of this judge's leaves a detection unscored."""
        return [_explain(q) if isinstance(q, Explain) else _detect(q) for q in questions]


OFFLINE = StatisticsJudge()


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
    background = Counter(t for w in q.contrast for t in _folded(w.tokens))
    largest = max((max(w.codes, default=0.0) for w in q.examples), default=0.0) or 1.0
    seen = [_seen(w, largest) for w in q.examples]
    model = _model(seen, background)
    held_out = [_score(_model(seen[:i] + seen[i + 1 :], background), w.tokens) for i, w in enumerate(q.examples)]
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


def _seen(w: Window, largest: float) -> _Seen:
    """How much of a window's activation stands at each place with each token."""
    tokens, seen = _folded(w.tokens), {place: defaultdict[str, float](float) for place in _PLACES}
    for i, code in enumerate(w.codes):
        if code > 0:
            seen["on"][tokens[i]] += code / largest
            seen["after"][tokens[i - 1] if i else ""] += code / largest
    for t in {t for t, code in zip(tokens, w.codes, strict=True) if code <= 0}:
        seen["near"][t] += 1 / len(tokens)
    return seen


def _model(windows: Sequence[_Seen], background: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """For each place, the tokens that are likelier there by the logarithm of the ratio, those that matter most first."""
    total = max(sum(background.values()), 1)
    found: dict[str, dict[str, float]] = {}
    for place in _PLACES:
        share = defaultdict[str, float](float)
        for w in windows:
            for t, weight in w[place].items():
                share[t] += weight
        mass, kept = sum(share.values()) + _PRIOR, list[tuple[float, str, float]]()
        for t, weight in share.items():
            usual = max(background.get(t, 0), _RARE) / total
            if t and (ratio := round(math.log((weight + _PRIOR * usual) / mass / usual), _DIGITS)) > 0:
                kept.append((-ratio * weight, t, ratio))
        found[place] = {t: ratio for _, t, ratio in sorted(kept)[:_KEPT]}
    return found


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
