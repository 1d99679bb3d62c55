"""Intervals: how sure a mean or a ratio of sums is."""

from __future__ import annotations

import numpy as np
from scipy import stats

Interval = tuple[float, float]
CONFIDENCE = 0.95
_BOOTSTRAP = 2_000
_SMALL = 50


def mean_interval(values: np.ndarray, rng: np.random.Generator, low: float = -np.inf, high: float = np.inf) -> Interval | None:
    """95 % interval of the mean over independent units.

    Student's t below 50 units, studentised bootstrap (2,000 resamples) from 50 on; a percentile bootstrap
    under-covers when units are few.

    Args:
        values: [n] one finite value per unit.
        rng: Used by the bootstrap only.
        low: Smallest possible value of the metric; the interval is clipped to it.
        high: Largest possible value.

    Returns:
        (lower, upper), or None with fewer than two units.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        return None
    mean, error = x.mean(), x.std(ddof=1) / np.sqrt(n)
    if n < _SMALL or error == 0:
        lower = upper = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    else:
        lower, upper = _studentised(x, rng)
    return clip(mean - lower * error, mean + upper * error, low, high)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, low: float = -np.inf, high: float = np.inf) -> Interval | None:
    """95 % interval of Σ numerator / Σ denominator by the delete-one-unit jackknife, t with n − 1 degrees of freedom.

    Args:
        numerator: [n] sums per unit.
        denominator: [n] sums per unit.
        low: Smallest possible value.
        high: Largest possible value.

    Returns:
        (lower, upper), or None with fewer than two units or where leaving one out leaves a zero denominator.
    """
    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    n = len(a)
    rest = b.sum() - b
    if n < 2 or b.sum() == 0 or np.any(rest == 0):
        return None
    left_out = (a.sum() - a) / rest
    error = float(np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum()))
    value, t = float(a.sum() / b.sum()), float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    return clip(value - t * error, value + t * error, low, high)


def wilson_interval(successes: int, trials: int) -> Interval | None:
    """95 % interval of a share when every trial is one independent Bernoulli unit; None without trials.

    Example:
        >>> lower, upper = wilson_interval(5, 10)
        >>> round(lower, 3), round(upper, 3)
        (0.237, 0.763)
    """
    if trials == 0:
        return None
    found = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def spread(values: np.ndarray) -> Interval:
    """5th and 95th percentile over a census: how the latents differ, not how sure the mean is."""
    low, high = np.percentile(np.asarray(values, dtype=np.float64), [5, 95])
    return float(low), float(high)


def _studentised(x: np.ndarray, rng: np.random.Generator) -> Interval:
    """Bootstrap quantiles of (mean* − mean) / error*, as multiples of the error below and above the mean."""
    n, mean = len(x), x.mean()
    scores = np.empty(_BOOTSTRAP)
    for i in range(0, _BOOTSTRAP, 100):
        sample = x[rng.integers(0, n, (100, n))]
        error = sample.std(axis=1, ddof=1) / np.sqrt(n)
        scores[i : i + 100] = (sample.mean(axis=1) - mean) / np.where(error == 0, np.inf, error)
    low, high = np.quantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(high), float(-low)


def clip(lower: float, upper: float, low: float, high: float) -> Interval:
    """The interval cut to the metric's range."""
    return float(np.clip(lower, low, high)), float(np.clip(upper, low, high))
