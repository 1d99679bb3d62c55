"""From a grid of cells to a metric's card: recovery, ranking, monotonicity, absence of other defects, noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.audit import statistics
from bench.audit.card import Absence, Detectable, MetricCard, Noise, Planted
from bench.audit.entries import Entry, Side, Truth
from bench.audit.planted import BAD, Cell, Grid
from bench.errors import UsageError
from bench.types import Metric

MONOTONE = 0.9  # rank correlation that every seed must reach
RANKED = 0.95  # share of seeds that must rank the planted-bad SAE below the good one
EV_CHANGE, L0_CHANGE = 0.02, 0.02  # what the planted-bad SAE may differ by
_NORMAL = 1.959964


def planted_card(entry: Entry, metric: str, grid: Grid) -> MetricCard:
    """The planted part of a metric's card.

    Raises:
        UsageError: The metric was never measured, or has no direction.
    """
    found = [c.values[metric] for row in grid.own for c in row if metric in c.values]
    if not found:
        known = sorted({name for row in grid.own for c in row for name in c.values})
        raise UsageError(f"{entry.task} gives no {metric!r} on {entry.world}", f"it gives: {', '.join(known) or 'no answer'}")
    worse = _worse(entry, metric, found[0])
    missing = {"real": "no records were read", "stages": "no stages were given"}
    base = MetricCard(worse, found[0].unit, found[0].unit_class, missing=missing)
    whole = [i for i, row in enumerate(grid.own) if all(metric in c.values for c in row)]
    if not whole:
        said = f"no seed has an answer at every dose ({len(found)} of {sum(map(len, grid.own))} cells have one)"
        return replace(base, missing={**missing, "planted": said}, verdict=(said,))
    noise = _noise(metric, grid)
    card = replace(
        base,
        planted=_planted(entry, metric, grid, whole, worse),
        absence=_absence(entry, metric, grid, whole, noise),
        noise=noise,
        control=_value(grid.control, metric),
        detectable=_from_noise(noise) if noise and noise.sd > 0 and base.unit_class == "census" else None,
    )
    gone = {
        "absence": None if card.absence else "no answer where the other defect is",
        "noise": None if noise else "no answer under other seeds",
        "control": None if card.control is not None else "no answer for a random dictionary",
        "detectable": None if card.detectable else _no_difference(card),
    }
    return judged(replace(card, missing={**missing, **{k: v for k, v in gone.items() if v}}))


def judged(card: MetricCard) -> MetricCard:
    """The card with its verdict: a sentence for everything that does not hold."""
    said: list[str] = []
    if p := card.planted:
        n = len(p.measured)
        if p.left_out:
            said.append(f"no answer in {p.left_out} of {n + p.left_out} seeds")
        if p.ranked_right < RANKED * n:
            said.append(f"at 10 % of the defect ranked right on {p.ranked_right} of {n} seeds only")
        if p.spearman_min < MONOTONE:
            said.append(f"not monotone: Spearman below {MONOTONE} on {n - p.spearman_enough} of {n} seeds, lowest {p.spearman_min:.2f}")
        if p.ev_change > EV_CHANGE:
            said.append(f"explained variance moves by {p.ev_change:.3f} at 10 %: the defect is visible there, too")
        if p.l0_change > L0_CHANGE:
            said.append(f"L0 moves by {p.l0_change:.1%} at 10 %")
    if (a := card.absence) and a.within < len(a.moved):
        what = "its interval" if a.basis == "interval" else "reseeding"
        share = np.abs(np.mean(a.moved)) / max(abs(np.mean(a.own)), 1e-12)
        said.append(
            f"moves by more than {what} in {len(a.moved) - a.within} of {len(a.moved)} seeds where only {a.defect} is present "
            f"(on average {share:.0%} of what its own defect does)"
        )
    return replace(card, verdict=tuple(said))


def _planted(entry: Entry, metric: str, grid: Grid, whole: list[int], worse: Side) -> Planted:
    kind = entry.truth.get(metric)
    rates = np.array([[c.rate for c in grid.own[i]] for i in whole])
    truth = np.array([[_truth(c, kind) for c in grid.own[i]] for i in whole])
    measured = np.array([[c.values[metric].value for c in grid.own[i]] for i in whole])
    sign = 1 if worse == "higher" else -1
    rho = np.array([statistics.spearman(r, sign * m) for r, m in zip(rates, measured, strict=True)])
    line = statistics.line(truth.ravel(), measured.ravel())
    good, bad = grid.doses.index(0.0), grid.doses.index(BAD)
    shapes = [(grid.own[i][good], grid.own[i][bad]) for i in whole]
    return Planted(
        doses=grid.doses,
        rates=_rows(rates),
        truth=_rows(truth),
        measured=_rows(measured),
        slope=line.slope,
        intercept=line.intercept,
        max_error=line.max_error,
        spearman_min=float(rho.min()),
        spearman_enough=int((rho >= MONOTONE - 1e-9).sum()),
        ranked_right=int((sign * (measured[:, bad] - measured[:, good]) > 0).sum()),
        l0_change=max(abs(b.l0 - a.l0) / a.l0 for a, b in shapes),
        ev_change=max(abs(b.ev - a.ev) for a, b in shapes),
        left_out=len(grid.own) - len(whole),
        truth_error=float(np.abs(measured - truth).max()) if kind else None,
    )


def _absence(entry: Entry, metric: str, grid: Grid, whole: list[int], noise: Noise | None) -> Absence | None:
    good, bad = grid.doses.index(0.0), grid.doses.index(BAD)
    seeds = [i for i in whole if metric in grid.absent[i].values]
    if not seeds:
        return None
    of_good = np.array([grid.own[i][good].values[metric].value for i in seeds])
    moved = np.array([grid.absent[i].values[metric].value for i in seeds]) - of_good
    own = np.array([grid.own[i][bad].values[metric].value for i in seeds]) - of_good
    intervals = [grid.own[i][bad].values[metric].interval for i in seeds]
    halves = [(high - low) / 2 for low, high in (v for v in intervals if v)]
    if halves:
        allowed, basis = float(np.mean(halves)), "interval"
    else:
        allowed, basis = _NORMAL * np.sqrt(2) * (noise.sd if noise else 0.0), "reseed noise"
    return Absence(entry.absent, tuple(moved.tolist()), tuple(own.tolist()), float(allowed), basis, int((abs(moved) <= allowed).sum()))


def _noise(metric: str, grid: Grid) -> Noise | None:
    values = [c.values[metric].value for c in grid.reseeds if metric in c.values]
    if len(values) < 2:
        return None
    return Noise(tuple(values), float(np.std(values, ddof=1)), "the planted-bad SAE of the first world")


def _from_noise(noise: Noise) -> Detectable:
    """A census has no units that pair two SAEs: what two single measurements must differ by to exceed reseeding."""
    n = len(noise.values)
    return Detectable(statistics.detectable(np.sqrt(2) * noise.sd, n - 1), n, "reseed noise", ("planted",))


def _no_difference(card: MetricCard) -> str:
    if card.unit_class == "census" and card.noise and card.noise.sd == 0:
        return "other seeds do not change it, so any difference is one of the dictionaries"
    return "needs unit tables of two SAEs of a language model"


def _truth(cell: Cell, kind: Truth | None) -> float:
    if kind == "distinct":
        return cell.latents - cell.rate * cell.features
    return 1 - cell.rate if kind == "kept" else cell.rate


def _worse(entry: Entry, metric: str, found: Metric) -> Side:
    if metric in entry.worse:
        return entry.worse[metric]
    if found.better == "neither":
        raise UsageError(f"{entry.task}.{metric} has no better direction", f"give worse.{metric} in leaderboard/audits.toml")
    return "lower" if found.better == "higher" else "higher"


def _value(cell: Cell | None, metric: str) -> float | None:
    return cell.values[metric].value if cell and metric in cell.values else None


def _rows(a: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in a.tolist())
