"""Intervals for units that are not independent because they share a member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from bench.kernels.statistics import CONFIDENCE, Interval, clip


def cluster_jackknife(values: np.ndarray, levels: Sequence[tuple[str, str]], low: float = -np.inf, high: float = np.inf) -> Interval | None:
    """95 % interval of the mean over pairs of levels, where pairs that share a level are not independent.

    Two-way cluster variance by the jackknife: leave out every level in turn with all its pairs, add that up, and take
    away the leave-one-pair-out variance, which the two levels of a pair would count twice (Cameron, Gelbach and
    Miller 2011, with delete-one estimates for the sums; for pairs, Fafchamps and Gubert 2007). Never below the
    leave-one-pair-out variance. A level that is in every pair is taken as given. Student's t, degrees of freedom one
    less than the number of pairs or, if fewer, of levels.

    Args:
        values: [n] one finite value per pair.
        levels: The two levels of each pair.
        low: Smallest possible value; the interval is clipped to it.
        high: Largest possible value.

    Returns:
        (lower, upper), or None with fewer than two pairs.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        return None
    variance, freedom = float(x.var(ddof=1) / n), n - 1
    names = sorted({level for pair in levels for level in pair})
    inside = np.array([[level in pair for pair in levels] for level in names])
    inside = inside[~inside.all(1)]
    if (inside.sum(1) > 1).any():
        k = len(inside)
        left_out = (~inside @ x) / (~inside).sum(1)
        by_level = (k - 1) / k * float(np.square(left_out - x.mean()).sum())
        variance, freedom = max(variance, by_level - variance), min(freedom, k - 1)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * float(np.sqrt(variance))
    return clip(float(x.mean()) - reach, float(x.mean()) + reach, low, high)
