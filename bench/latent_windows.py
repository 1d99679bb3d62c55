"""Which windows of a latent are shown, and the offline judge's opinion where no record has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.context import Context, Tokens
from bench.examples import Firings, Reader, spread_out, strongest
from bench.judge.questions import Detect, Explain
from bench.judge.statistics import OFFLINE, readable
from bench.kernels import windows
from bench.latent_facts import ExplanationPart, VerdictPart, WindowPart
from bench.latent_records import Judged, score

TOP = 16
_EACH = 2  # windows of every tenth
_INACTIVE = 16
_CONTRAST = 40  # inactive windows that the offline judge compares with
_EXPLAIN = 10  # strongest windows by which it explains
_DRAWN = 50  # candidates drawn for each inactive window
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Chosen:
    """Windows of one latent by their centres.

    Args:
        shown: (kind, centre), the strongest first, the inactive ones last; no two overlap.
        contrast: Inactive windows that are not shown.
    """

    shown: list[tuple[str, int]]
    contrast: np.ndarray

    def judged_here(self, reader: Reader, fired: Firings) -> list[Judged]:
        """The offline judge's explanation by the strongest windows, tested on the others; nothing where either are missing."""
        active = [c for kind, c in self.shown if kind != "inactive"]
        n = min(_EXPLAIN, (len(active) + 1) // 2)
        inactive = [c for kind, c in self.shown if kind == "inactive"]
        test = [*active[n:], *inactive]
        if not (n and len(active) > n and inactive):
            return []
        explain = Explain(*(tuple(reader.window(int(c), fired) for c in at) for at in (active[:n], self.contrast)))
        text = OFFLINE.ask([explain])[0].explanation
        answer = OFFLINE.ask([Detect(text, tuple(reader.window(c, fired).tokens for c in test))])[0]
        rows = [
            {"token": c, "list": "random", "active": c not in inactive, "said": said, "score": value, "status": answer.status}
            for c, said, value in zip(test, answer.said, answer.score, strict=True)
        ]
        scores = [s for s in (score("random", rows),) if s]
        part = ExplanationPart(
            by="statistics", judge="judge statistics", source="here", text=text, shown=readable(text), scores=scores, verdicts=[]
        )
        return [Judged(part, rows, len(reader.tokens.rows.ids))]


def chosen_windows(reader: Reader, fired: Firings, rng: np.random.Generator) -> Chosen:
    """The strongest windows, some from every tenth of the rest, and random inactive ones.

    Args:
        reader: Text.
        fired: Where the latent fires.
        rng: For the choice.
    """
    text, spread = reader.layout, spread_out(fired, rng)
    top = windows.apart(text, strongest(fired), TOP, _NONE)
    rest = windows.apart(text, spread, len(spread), top)
    tenths = windows.by_decile(fired.strength[np.searchsorted(fired.at, rest)], _EACH, rng)
    sizes = [min(_EACH, len(t)) for t in np.array_split(rest, 10)]
    kinds = [f"decile {i + 1}" for i, size in enumerate(sizes) for _ in range(size)]
    used = np.concatenate([top, rest[tenths]])
    place = reader.kept
    some = rng.choice(place, min(len(place), _DRAWN * (_INACTIVE + _CONTRAST)), replace=False)
    inactive = windows.apart(text, windows.silent(text, fired.at, some), _INACTIVE + _CONTRAST, used)
    shown = [("top", int(c)) for c in top] + [(k, int(rest[i])) for k, i in zip(kinds, tenths, strict=True)]
    return Chosen(shown + [("inactive", int(c)) for c in inactive[:_INACTIVE]], inactive[_INACTIVE:])


def with_verdicts(chosen: Chosen, judged: Sequence[Judged], tokens: int) -> tuple[list[tuple[str, int]], list[ExplanationPart]]:
    """Windows to show, those of verdicts among them, and explanations whose verdicts point to them.

    Args:
        chosen: Windows of the latent.
        judged: Explanations; verdicts on another latent's explanation are scored, not listed.
        tokens: Tokens of the text that can be shown; verdicts beyond are counted.

    Returns:
        ((kind, centre) of every window, explanations).
    """
    items, parts = list(chosen.shown), list[ExplanationPart]()
    place = {centre: i for i, (_, centre) in enumerate(items)}
    for j in judged:
        listed = [r for r in j.rows if j.part.by != "shuffled" and int(r["token"]) < min(j.tokens, tokens)]
        for centre in (int(r["token"]) for r in listed):
            if centre not in place:
                place[centre] = len(items)
                items.append(("judged", centre))
        verdicts = [VerdictPart(window=place[int(r["token"])], **{k: r[k] for k in ("list", "active", "said", "score")}) for r in listed]
        beyond = 0 if j.part.by == "shuffled" else len(j.rows) - len(listed)
        parts.append(j.part.model_copy(update={"verdicts": verdicts, "beyond": beyond}))
    return items, parts


def wide_reader(reader: Reader, ctx: Context, tokens: int) -> Reader:
    """A longer stretch of the same text, without codes; the reader itself where it is long enough.

    Args:
        reader: What was read.
        ctx: Gives the text.
        tokens: How many are wanted.
    """
    if tokens <= len(reader.tokens.rows.ids):
        return reader
    rows = ctx.evaluation_rows(tokens)
    pieces = {int(i): reader.decode([int(i)]) for i in np.unique(rows.ids)}
    return replace(reader, tokens=Tokens(rows, np.empty((0, 0)), np.zeros(len(rows.ids), dtype=bool)), pieces=pieces)


def written(reader: Reader, wide: Reader, items: Sequence[tuple[str, int]], fired: Firings) -> list[WindowPart]:
    """Windows with their text; without codes beyond what was read.

    Args:
        reader: What was read.
        wide: The text in which all windows lie.
        items: (kind, centre).
        fired: Where the latent fires.
    """
    made = list[WindowPart]()
    for kind, centre in items:
        text = reader if centre < len(reader.tokens.rows.ids) else wide
        start, end = int(text.layout.start[centre]), int(text.layout.end[centre])
        made.append(
            WindowPart(
                kind=kind,
                document=int(text.documents(np.array([centre]))[0]),
                centre=centre,
                start=start,
                tokens=list(text.strings(start, end)),
                codes=[float(c) for c in fired.codes(start, end)] if text is reader else None,
            )
        )
    return made
