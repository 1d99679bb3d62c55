"""Intervals over pairs that share a level: equal to the slow jackknife, and they cover where Student's t does not."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.kernels.clusters import cluster_jackknife
from bench.kernels.statistics import mean_interval

SEEDS = st.integers(0, 2**32 - 1)


def all_pairs(k: int) -> list[tuple[str, str]]:
    return [(f"l{a}", f"l{b}") for a, b in combinations(range(k), 2)]


def test_pairs_without_common_levels_have_the_t_interval() -> None:
    x = np.array([0.1, 0.4, 0.3, 0.9])
    levels = [(f"a{i}", f"b{i}") for i in range(4)]
    assert cluster_jackknife(x, levels) == pytest.approx(mean_interval(x, np.random.default_rng(0)))


def test_by_hand_on_four_levels() -> None:
    """u = (0, 1, 2, 3), value of a pair = sum of its two; mean 3. Without level k the mean is 2·(6 − u_k)/3."""
    x = np.array([float(a + b) for a, b in combinations(range(4), 2)])
    by_level = 3 / 4 * sum((2 * (6 - u) / 3 - 3) ** 2 for u in range(4))
    by_pair = x.var(ddof=1) / 6
    reach = stats.t.ppf(0.975, 3) * np.sqrt(by_level - by_pair)
    assert cluster_jackknife(x, all_pairs(4)) == pytest.approx((3 - reach, 3 + reach))


@given(SEEDS, st.integers(3, 7))
def test_equals_a_slow_jackknife(seed: int, k: int) -> None:
    r = np.random.default_rng(seed)
    levels = [p for p in all_pairs(k) if r.random() < 0.8]
    x = r.standard_normal(len(levels))
    found = cluster_jackknife(x, levels)
    if len(levels) < 2:
        assert found is None
        return
    names = sorted({n for p in levels for n in p})
    names = [n for n in names if not all(n in p for p in levels)]
    without = [np.mean([v for v, p in zip(x, levels, strict=True) if n not in p]) for n in names]
    by_pair = x.var(ddof=1) / len(x)
    shared = any(sum(n in p for p in levels) > 1 for n in names)
    by_level = (len(names) - 1) / len(names) * sum((m - x.mean()) ** 2 for m in without)
    variance = max(by_pair, by_level - by_pair) if shared else by_pair
    freedom = min(len(x) - 1, len(names) - 1) if shared else len(x) - 1
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert found == pytest.approx((x.mean() - reach, x.mean() + reach))


@given(SEEDS, st.floats(-5, 5), st.floats(0.1, 10))
def test_moves_and_stretches_with_the_values_and_ignores_order_and_names(seed: int, shift: float, scale: float) -> None:
    r = np.random.default_rng(seed)
    levels, x = all_pairs(5), r.standard_normal(10)
    found = cluster_jackknife(x, levels)
    assert cluster_jackknife(scale * x + shift, levels) == pytest.approx(tuple(scale * v + shift for v in found))
    order = r.permutation(10)
    swapped = [(f"z{levels[i][1]}", f"z{levels[i][0]}") for i in order]
    assert cluster_jackknife(x[order], swapped) == pytest.approx(found)


def test_a_level_in_every_pair_is_taken_as_given() -> None:
    x = np.array([0.2, 0.5, 0.9])
    assert cluster_jackknife(x, [("gender", o) for o in "abc"]) == pytest.approx(mean_interval(x, np.random.default_rng(0)))
    assert cluster_jackknife(x[:1], [("a", "b")]) is None


@pytest.mark.parametrize(("k", "noise"), [(4, 0.3), (5, 1.0), (7, 0.0)])
def test_covers_when_levels_have_effects(k: int, noise: float) -> None:
    """The consequence it exists for: about 95 % where pairs share levels, while Student's t over pairs falls far short."""
    r = np.random.default_rng(0)
    pairs = list(combinations(range(k), 2))
    hits = plain = 0
    for _ in range(400):
        u = r.standard_normal(k)
        x = np.array([u[a] + u[b] for a, b in pairs]) + noise * r.standard_normal(len(pairs))
        low, high = cluster_jackknife(x, all_pairs(k))
        hits += low <= 0 <= high
        low, high = mean_interval(x, r)
        plain += low <= 0 <= high
    assert hits / 400 > 0.91 and plain / 400 < 0.85
