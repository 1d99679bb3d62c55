"""A page per latent and an index of them, drawn from the JSON files in a folder. Loads no SAE and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.latent_facts import (
    ExplanationPart,
    HistogramPart,
    LatentFacts,
    ScorePart,
    SubjectPart,
    VerdictPart,
    WindowPart,
    read_all,
    write_whole,
)
from leaderboard.site.page import draw, step

HEIGHT = 100  # of a histogram, in its own units
_WORD = {True: "active", False: "inactive"}
_SECTIONS = (
    ("top", "Strongest windows", True),
    ("decile", "From every tenth of the other windows, the strongest first", True),
    ("inactive", "Random windows without it", False),
    ("judged", "Other windows that the judge was asked about", False),
)


@dataclass(frozen=True)
class Bar:
    """One bin: `x` and `height` in the units of the picture, and what it counts."""

    x: int
    height: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Said:
    """A judge's verdicts on one window that say the same.

    Args:
        active: Truth.
        said: Answer; None where it could not be read.
        lists: On which lists.
    """

    active: bool
    said: bool | None
    lists: tuple[str, ...]

    @property
    def tone(self) -> str:
        """Class of the mark."""
        return "none" if self.said is None else "right" if self.said == self.active else "wrong"

    @property
    def words(self) -> str:
        """The verdict in words."""
        if self.said is None:
            return f"{_WORD[self.active]} · the answer could not be read"
        return f"{_WORD[self.active]} · judge said {_WORD[self.said]} · {self.tone}"


@dataclass(frozen=True)
class Shown:
    """A window with its tokens, how strongly each is marked, and what was said of it."""

    part: WindowPart
    tokens: list[tuple[str, int, float, bool]]
    said: list[Said]

    @property
    def largest(self) -> float:
        """Largest code."""
        return max(self.part.codes or [0.0])


@dataclass(frozen=True)
class Section:
    """Windows of one kind."""

    title: str
    open: bool
    windows: list[Shown]


@dataclass(frozen=True)
class View:
    """A latent as the templates want it."""

    facts: LatentFacts

    @property
    def file(self) -> str:
        """Name of its page."""
        return page_name(self.facts.latent)

    @property
    def main(self) -> ExplanationPart | None:
        """The explanation that stands first."""
        return next((e for e in self.facts.explanations if e.by != "shuffled"), None)

    @property
    def score(self) -> ScorePart | None:
        """Its first score: against windows in which a similar latent is active, where there are some."""
        return self.main.scores[0] if self.main and self.main.scores else None

    @property
    def bars(self) -> list[Bar]:
        """The histogram."""
        return bars(self.facts.histogram) if self.facts.histogram else []

    @property
    def sections(self) -> list[Section]:
        """Windows by kind, those of a kind that has some."""
        shown = self._shown()
        made = ((title, opened, [w for w in shown if w.part.kind.split()[0] == kind]) for kind, title, opened in _SECTIONS)
        return [Section(*m) for m in made if m[2]]

    def _shown(self) -> list[Shown]:
        largest = self.facts.quantiles.get("100", 0.0)
        verdicts = self.main.verdicts if self.main else []
        by_window: dict[int, list[VerdictPart]] = {}
        for v in verdicts:
            by_window.setdefault(v.window, []).append(v)
        return [Shown(w, marked(w, largest), said_of(by_window.get(i, []))) for i, w in enumerate(self.facts.windows)]


def page_name(latent: int) -> str:
    """File of a latent's page."""
    return f"latent-{latent}.html"


def bars(histogram: HistogramPart) -> list[Bar]:
    """Bins with their heights; one that holds anything is at least one unit high."""
    most = max([*histogram.counts, 1])
    heights = [max(HEIGHT * c / most, 1.0) if c else 0.0 for c in histogram.counts]
    edges = zip(histogram.edges, histogram.edges[1:], strict=False)
    return [Bar(i, round(h, 2), low, high, c) for i, (h, c, (low, high)) in enumerate(zip(heights, histogram.counts, edges, strict=True))]


def marked(window: WindowPart, largest: float) -> list[tuple[str, int, float, bool]]:
    """(text, mark, code, whether it is the centre) of each token; the centre is told only where the latent fires on it."""
    codes = window.codes or [0.0] * len(window.tokens)
    at = window.centre - window.start
    known = window.codes is not None
    return [
        (t, step(c, largest), c, i == at and (c > 0 or (not known and window.kind == "top")))
        for i, (t, c) in enumerate(zip(window.tokens, codes, strict=True))
    ]


def said_of(verdicts: Sequence[VerdictPart]) -> list[Said]:
    """Verdicts on one window; lists on which the same was said stand together."""
    groups: dict[tuple[bool, bool | None], list[str]] = {}
    for v in verdicts:
        groups.setdefault((v.active, v.said), []).append(v.list)
    return [Said(active, said, tuple(dict.fromkeys(lists))) for (active, said), lists in groups.items()]


def latent_html(facts: LatentFacts, before: int | None, after: int | None, pages: frozenset[int]) -> str:
    """The page of one latent.

    Args:
        facts: Of the latent.
        before: Latent whose page comes before this one.
        after: Likewise, after it.
        pages: Latents that have a page.
    """
    return draw("latent.html", view=View(facts), f=facts, before=before, after=after, pages=pages, height=HEIGHT, page_name=page_name)


def index_html(found: Sequence[LatentFacts]) -> str:
    """The index of some latents, in the order given."""
    return draw(
        "index.html",
        views=[View(f) for f in found],
        subject=found[0].subject,
        texts=list(dict.fromkeys((f.text.name, f.text.tokens) for f in found)),
        height=HEIGHT,
    )


def check_folder(folder: Path, subject: SubjectPart) -> None:
    """Refuse a folder in which the pages of an SAE cannot be written; before anything is measured.

    Raises:
        UsageError: It is a file, or holds latents of another SAE or place.
        VerificationError: A JSON file in it is damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "choose another --out folder")
    if any(f.subject != subject for f in read_all(folder)):
        raise UsageError(f"{folder} holds latents of another SAE or another place of the model", "choose another --out folder")


def draw_folder(folder: Path) -> list[Path]:
    """Draw the pages of all latents in a folder, and their index; returns the files, the index first.

    Raises:
        UsageError: The folder holds latents of several SAEs, or none.
        VerificationError: A JSON file is damaged.
        ResourceError: The folder cannot be written.
    """
    found = read_all(folder)
    if not found:
        raise UsageError(f"{folder} holds no latents", "run python -m bench show first")
    numbers = [f.latent for f in found]
    around = zip(found, [None, *numbers[:-1]], [*numbers[1:], None], strict=True)
    pages = [write_whole(folder / page_name(f.latent), latent_html(f, before, after, frozenset(numbers))) for f, before, after in around]
    return [write_whole(folder / "index.html", index_html(found)), *pages]
