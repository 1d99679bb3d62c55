"""Arithmetic of an audit: lines, rank correlations, the smallest difference that can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA, POWER = 0.05, 0.8
_FEWEST = 3


@dataclass(frozen=True)
class Line:
    """A least-squares line.

    Args:
        slope: Change of y per unit of x.
        intercept: Its value at x = 0.
        max_error: Largest distance of a point from it, in y.
    """

    slope: float
    intercept: float
    max_error: float


def line(x: np.ndarray, y: np.ndarray) -> Line:
    """The least-squares line through points; flat through the mean where all x are equal.

    Example:
        >>> line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
        Line(slope=2.0, intercept=1.0, max_error=0.0)
    """
    dx = x - x.mean()
    slope = float(dx @ y / (dx @ dx)) if np.any(dx) else 0.0
    intercept = float(y.mean() - slope * x.mean())
    return Line(slope, intercept, float(np.abs(y - intercept - slope * x).max()))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; 0 where one side is constant: it follows nothing."""
    a, b = (stats.rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else 0.0


def detectable(error: float, freedom: int) -> float:
    """Minimum detectable difference of a paired comparison: (t_{1−α/2} + t_{power}) × standard error.

    The true difference that a two-sided test at α = 0.05 finds with power 0.8. Source: Bloom 1995, Evaluation Review
    19(5), "Minimum detectable effects", with Student's t of the given degrees of freedom.

    Args:
        error: Standard error of the difference.
        freedom: Degrees of freedom with which it was estimated, ≥ 1.
    """
    return float((stats.t.ppf(1 - ALPHA / 2, freedom) + stats.t.ppf(POWER, freedom)) * error)


def paired_error(differences: np.ndarray) -> float:
    """Standard error of the mean of paired differences, at least two."""
    return float(differences.std(ddof=1) / np.sqrt(len(differences)))


def pseudo_values(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """[n] jackknife pseudo-values of Σ numerator / Σ denominator, whose mean and standard error stand for the ratio's.

    n·R − (n − 1)·R_{−i} (Tukey 1958).
    """
    n, ratio = len(numerator), numerator.sum() / denominator.sum()
    left_out = (numerator.sum() - numerator) / (denominator.sum() - denominator)
    return n * ratio - (n - 1) * left_out


def told_apart(a: Mapping[object, float], b: Mapping[object, float]) -> bool | None:
    """Whether a paired t-test over common units finds a difference at α = 0.05; None with fewer than three of them."""
    d = paired(a, b)
    if len(d) < _FEWEST:
        return None
    error = paired_error(d)
    return bool(abs(d.mean()) > stats.t.ppf(1 - ALPHA / 2, len(d) - 1) * error)


def paired(a: Mapping[object, float], b: Mapping[object, float]) -> np.ndarray:
    """Differences a − b of the units that both have."""
    return np.array([a[u] - b[u] for u in a if u in b], dtype=np.float64)


def grouped(keys: Sequence[tuple[object, ...]], values: np.ndarray) -> dict[object, float]:
    """Nested means: over rows of equal keys, then over the last key, …; the first key is left.

    Example:
        >>> grouped([("a", 1), ("a", 1), ("a", 2), ("b", 1)], np.array([0.0, 2.0, 5.0, 4.0]))
        {'a': 3.0, 'b': 4.0}
    """
    held: dict[tuple[object, ...], list[float]] = {}
    for key, value in zip(keys, values.tolist(), strict=True):
        held.setdefault(key, []).append(value)
    means = {key: float(np.mean(v)) for key, v in held.items()}
    if not means or len(next(iter(means))) == 1:
        return {key[0]: v for key, v in means.items()}
    return grouped([key[:-1] for key in means], np.array(list(means.values())))
