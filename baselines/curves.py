"""Curves of training runs, drawn from their `train.jsonl`: explained variance, loss terms, L0 and dead share over tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.recipe import Job
from bench import progress

LOG, PICTURE = "train.jsonl", "curves.png"
NOT_TERMS = {"step", "tokens", "lr", "ev", "l0", "dead", "seconds", "tokens_per_s"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito: told apart by everybody
_DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_PER_ROW = 4  # names in a row of the legend
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
}


@dataclass(frozen=True)
class Run:
    """One run's log.

    Args:
        name: Shown in the legend.
        lines: Log lines in order of steps; each has `tokens`, `ev`, `l0`, `dead`, and the method's loss terms.
        k: Target L0, or 0 if there is none.
    """

    name: str
    lines: Sequence[Mapping[str, float]]
    k: float = 0

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms, in the method's order."""
        return tuple(dict.fromkeys(n for line in self.lines for n in line if n not in NOT_TERMS))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Tokens and values of the lines that have this number."""
        found = [(line["tokens"], line[key]) for line in self.lines if key in line]
        return [t for t, _ in found], [v for _, v in found]


def update(jobs: Sequence[Job], folder: Path) -> None:
    """Draw the logs of some runs into a folder; a picture that cannot be drawn is reported and stops nothing."""
    try:
        draw([Run(j.out.name, list(_whole(j.out / LOG)), j.method.k) for j in jobs], folder / PICTURE)
    except Exception as e:  # fonts, disk, the library: no reason to lose hours of training
        progress.note("the curves could not be drawn", reason=str(e))


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the picture of `figure_of` as a PNG, replaced atomically."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with mpl.rc_context(_STYLE):
        work = path.with_name(f"{path.name}.tmp")
        FigureCanvasAgg(figure_of(runs)).print_figure(str(work), format="png", dpi=130)
    work.replace(path)


def figure_of(runs: Sequence[Run]) -> Any:
    """Four panels over tokens: explained variance, loss terms (of several runs the first of each), L0, dead share.

    Args:
        runs: At least one.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    below = 0.035 * math.ceil(len(runs) / _PER_ROW) if len(runs) > 1 else 0.0
    figure = Figure(figsize=(9.6, 6.0))
    figure.subplots_adjust(left=0.07, right=0.97, top=0.94 if len(runs) == 1 else 0.98, bottom=0.08 + below, wspace=0.28, hspace=0.1)
    ((ev, loss), (l0, dead)) = figure.subplots(2, 2, sharex=True)
    for axis, key, label in ((ev, "ev", "explained variance"), (l0, "l0", "L0 (dashed: target)"), (dead, "dead", "dead latents")):
        for i, run in enumerate(runs):
            axis.plot(*run.series(key), label=run.name, **_look(i))
        axis.set_ylabel(label)
    _losses(loss, runs)
    _targets(l0, runs)
    _finish(ev, l0, dead)
    if len(runs) > 1:
        handles, labels = ev.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=_PER_ROW, frameon=False)
    else:
        figure.suptitle(runs[0].name, x=0.01, y=0.99, ha="left", va="top", fontweight="bold")
    return figure


def _look(i: int) -> dict[str, Any]:
    return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)]}


def _losses(axis: Any, runs: Sequence[Run]) -> None:
    """Loss terms on a logarithmic scale; where a term is 0 there is no point."""
    shown = [(run, term) for run in runs for term in (run.terms if len(runs) == 1 else run.terms[:1])]
    for i, (run, term) in enumerate(shown):
        tokens, values = run.series(term)
        axis.plot(tokens, [v if v > 0 else float("nan") for v in values], label=term, **_look(i))
    axis.set_yscale("log")
    names = list(dict.fromkeys(term for _, term in shown))
    axis.set_ylabel("loss terms, as weighted" if len(runs) == 1 else f"loss: {', '.join(names)}")
    if len(runs) == 1 and names:
        axis.legend(frameon=False, ncols=2)


def _targets(axis: Any, runs: Sequence[Run]) -> None:
    """Target L0 as a dashed line; a logarithmic scale where L0 falls from far above it."""
    values = [v for run in runs for v in run.series("l0")[1] if v > 0]
    for k in sorted({run.k for run in runs if run.k > 0}):
        axis.axhline(k, color="#666666", linestyle=(0, (4, 3)), linewidth=1)
        axis.annotate(f" {k:g}", (1, k), xycoords=("axes fraction", "data"), ha="left", va="center", color="#666666", fontsize=8)
    if values and max(values) > 20 * min(values):
        axis.set_yscale("log")


def _finish(ev: Any, l0: Any, dead: Any) -> None:
    """Scales that a few wild values at the start do not decide; units on the axes."""
    from matplotlib.ticker import EngFormatter, PercentFormatter

    values = sorted(v for line in ev.get_lines() for v in line.get_ydata() if v == v)
    if values:
        low = max(-0.05, values[len(values) // 20])
        ev.set_ylim(low - 0.1 * (values[-1] - low) - 1e-3, values[-1] + 0.1 * max(0.0, values[-1] - low) + 1e-3)
    dead.yaxis.set_major_formatter(PercentFormatter(1.0))
    dead.set_ylim(bottom=0)
    for axis in (l0, dead):
        axis.set_xlabel("training tokens")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _whole(log: Path) -> Iterator[dict[str, float]]:
    if not log.exists():
        return
    for text in log.read_text().splitlines():
        try:
            yield json.loads(text)
        except ValueError:  # a line that is being written
            continue
