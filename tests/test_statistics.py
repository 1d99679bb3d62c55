"""Intervals: hand values, slow references, and that 95 % intervals hold the truth in about 95 % of simulated studies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.kernels.statistics import mean_interval, ratio_interval, spread, wilson_interval
from bench.rng import numpy_rng, seed_of, torch_rng

T_2 = 4.302652729911275  # 97.5 % point of Student's t with 2 degrees of freedom, from tables
SEEDS = st.integers(0, 2**32 - 1)


def nobody() -> np.random.Generator:
    return np.random.default_rng(0)


def covers(study: Callable[[np.random.Generator], tuple[float, float] | None], truth: float, times: int) -> float:
    """Share of simulated studies whose interval holds the truth."""
    g = np.random.default_rng(7)
    found = [study(g) for _ in range(times)]
    return float(np.mean([f is not None and f[0] <= truth <= f[1] for f in found]))


# mean_interval


def test_mean_by_hand() -> None:
    assert mean_interval(np.array([1, 2, 3]), nobody()) == pytest.approx((2 - T_2 / math.sqrt(3), 2 + T_2 / math.sqrt(3)))


@pytest.mark.parametrize("values", [[], [1.0]])
def test_mean_of_fewer_than_two_has_no_interval(values: list[float]) -> None:
    assert mean_interval(np.array(values), nobody()) is None


@pytest.mark.parametrize("n", [2, 49, 50, 200])
def test_mean_of_equal_values_is_a_point(n: int) -> None:
    assert mean_interval(np.full(n, 0.75), nobody()) == (0.75, 0.75)


@pytest.mark.parametrize("n", [5, 60])
def test_mean_is_clipped_to_the_range_of_the_metric(n: int) -> None:
    values = np.r_[np.ones(n - 1), 0.0]
    free, clipped = mean_interval(values, nobody()), mean_interval(values, nobody(), 0, 1)
    assert free is not None and clipped is not None
    assert clipped == (max(free[0], 0), min(free[1], 1))
    assert free[1] > 1 or n == 60


def test_student_below_fifty_and_bootstrap_from_fifty() -> None:
    x = np.random.default_rng(1).exponential(size=50)
    assert mean_interval(x[:49], np.random.default_rng(1)) == mean_interval(x[:49], np.random.default_rng(2))
    assert mean_interval(x, np.random.default_rng(1)) != mean_interval(x, np.random.default_rng(2))
    assert mean_interval(x, np.random.default_rng(1)) == mean_interval(x, np.random.default_rng(1))


def test_bootstrap_equals_a_slow_one_with_its_own_draws() -> None:
    x, g = np.random.default_rng(3).exponential(size=80), np.random.default_rng(4)
    n, mean, error = len(x), x.mean(), x.std(ddof=1) / math.sqrt(len(x))
    scores = []
    for _ in range(20_000):
        sample = x[g.integers(0, n, n)]
        scores.append((sample.mean() - mean) / (sample.std(ddof=1) / math.sqrt(n)))
    low, high = np.quantile(scores, [0.025, 0.975])
    many = np.mean([mean_interval(x, np.random.default_rng(s)) for s in range(20)], axis=0)
    assert many == pytest.approx((mean - high * error, mean - low * error), abs=0.03 * error * (high - low))
    assert many[1] - mean > mean - many[0]  # the long tail is above


@given(SEEDS, st.integers(2, 49), st.floats(0.1, 10), st.floats(-5, 5))
def test_mean_ignores_order_and_follows_units(seed: int, n: int, a: float, b: float) -> None:
    g = np.random.default_rng(seed)
    x = g.standard_normal(n)
    found = mean_interval(x, nobody())
    assert found is not None
    assert mean_interval(g.permutation(x), nobody()) == pytest.approx(found)
    assert mean_interval(a * x + b, nobody()) == pytest.approx((a * found[0] + b, a * found[1] + b), abs=1e-9)


def test_bootstrap_follows_units() -> None:
    x = np.random.default_rng(5).exponential(size=70)
    found = mean_interval(x, nobody())
    assert found is not None
    assert mean_interval(3 * x - 2, nobody()) == pytest.approx((3 * found[0] - 2, 3 * found[1] - 2))
    assert mean_interval(-x, nobody()) == pytest.approx((-found[1], -found[0]), rel=0.02)


def test_bootstrap_of_a_rare_event_is_finite() -> None:
    found = mean_interval(np.r_[np.zeros(59), 1.0], nobody(), 0, 1)
    assert found is not None and np.isfinite(found).all() and found[0] <= 1 / 60 <= found[1]


@pytest.mark.parametrize("n", [2, 8, 30])
def test_student_intervals_cover(n: int) -> None:
    assert 0.92 < covers(lambda g: mean_interval(g.normal(3, 2, n), g), 3, 600) < 0.98


def test_bootstrap_intervals_cover_skewed_data() -> None:
    assert 0.90 < covers(lambda g: mean_interval(g.exponential(size=60), g), 1, 250) < 0.99


# ratio_interval


def test_ratio_by_hand() -> None:
    half = T_2 * math.sqrt(1 / 12)  # leave-one-out ratios 5/4, 1, 3/4
    assert ratio_interval(np.array([1.0, 2, 3]), np.array([2.0, 2, 2])) == pytest.approx((1 - half, 1 + half))


@given(SEEDS, st.integers(2, 40))
def test_ratio_equals_a_slow_jackknife(seed: int, n: int) -> None:
    g = np.random.default_rng(seed)
    a, b = g.normal(2, 1, n), g.uniform(0.5, 3, n)
    ratios = []
    for i in range(n):
        top = bottom = 0.0
        for j in range(n):
            if j != i:
                top, bottom = top + a[j], bottom + b[j]
        ratios.append(top / bottom)
    middle = sum(ratios) / n
    half = stats.t.ppf(0.975, n - 1) * math.sqrt((n - 1) / n * sum((r - middle) ** 2 for r in ratios))
    value = sum(a) / sum(b)
    assert ratio_interval(a, b) == pytest.approx((value - half, value + half), rel=1e-9, abs=1e-12)


@given(SEEDS, st.integers(2, 49), st.floats(0.1, 10))
def test_ratio_over_equal_denominators_is_the_mean(seed: int, n: int, b: float) -> None:
    a = np.random.default_rng(seed).standard_normal(n)
    assert ratio_interval(a, np.full(n, b)) == pytest.approx(mean_interval(a / b, nobody()), rel=1e-9, abs=1e-9)


@given(SEEDS, st.integers(3, 30), st.floats(0.1, 10))
def test_ratio_ignores_order_and_follows_units(seed: int, n: int, scale: float) -> None:
    g = np.random.default_rng(seed)
    a, b, order = g.uniform(0, 1, n), g.uniform(1, 2, n), g.permutation(n)
    found = ratio_interval(a, b)
    assert found is not None
    assert ratio_interval(a[order], b[order]) == pytest.approx(found)
    assert ratio_interval(scale * a, scale * b) == pytest.approx(found)
    assert ratio_interval(scale * a, b) == pytest.approx((scale * found[0], scale * found[1]))


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([1], [2]), ([1, 2], [0, 0]), ([1, 2, 3], [0, 0, 5]), ([1, 2], [1, -1])],
    ids=["none", "one", "zeros", "rest", "cancel"],
)
def test_ratio_that_cannot_be_has_no_interval(a: list[float], b: list[float]) -> None:
    assert ratio_interval(np.array(a), np.array(b)) is None


def test_ratio_is_clipped_and_a_unit_without_weight_changes_no_value() -> None:
    a, b = np.array([0.0, 1, 1]), np.array([1.0, 1, 1])
    assert ratio_interval(a, b, 0, 1) == (0, 1)
    assert ratio_interval(2 * b, b) == (2, 2)
    found = ratio_interval(np.r_[2 * b, 0], np.r_[b, 0])
    assert found == (2, 2)


def test_jackknife_intervals_cover() -> None:
    def study(g: np.random.Generator) -> tuple[float, float] | None:
        size = g.integers(20, 200, 30).astype(float)
        return ratio_interval(size * (0.3 + 0.1 * g.standard_normal(30)), size)

    assert 0.915 < covers(study, 0.3, 500) < 0.98


# wilson_interval, spread


@given(st.integers(1, 200), st.data())
def test_wilson_equals_its_formula(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    z, p = 1.959963984540054, hits / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    found = wilson_interval(hits, trials)
    assert found == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-12)
    assert found is not None and 0 <= found[0] <= p <= found[1] <= 1
    other = wilson_interval(trials - hits, trials)
    assert other == pytest.approx((1 - found[1], 1 - found[0]), abs=1e-12)


def test_wilson_edges_and_coverage() -> None:
    assert wilson_interval(0, 0) is None
    none, every = wilson_interval(0, 10), wilson_interval(10, 10)
    assert none is not None and none[0] == 0 and 0.2 < none[1] < 0.35
    assert every is not None and every[1] == 1
    assert 0.92 < covers(lambda g: wilson_interval(int(g.binomial(25, 0.2)), 25), 0.2, 400) < 0.99


@given(SEEDS, st.integers(1, 60))
def test_spread_holds_nine_tenths(seed: int, n: int) -> None:
    g = np.random.default_rng(seed)
    x = g.standard_normal(n)
    low, high = spread(x)
    assert (low, high) == spread(g.permutation(x))
    assert min(x) <= low <= high <= max(x)
    assert abs(((x >= low) & (x <= high)).mean() - 0.9) <= max(0.1, 2 / n)


def test_spread_by_hand() -> None:
    assert spread(np.arange(101)) == (5, 95)
    assert spread(np.array([4.0])) == (4, 4)


# the seeds that every interval and draw starts from


@settings(max_examples=30)
@given(st.integers(0, 2**40), st.lists(st.text(max_size=5), max_size=3))
def test_seeds_are_paths(root: int, path: list[str]) -> None:
    seed = seed_of(root, *path)
    assert seed == seed_of(root, *path) and 0 <= seed < 2**63
    assert seed not in (seed_of(root + 1, *path), seed_of(root, *path, "more"))


def test_generators_of_one_path_draw_the_same() -> None:
    assert numpy_rng(1, "a", 2).integers(1 << 40) == numpy_rng(1, "a", "2").integers(1 << 40)
    assert numpy_rng(1, "a").integers(1 << 40) != numpy_rng(1, "b").integers(1 << 40)
    assert torch.equal(torch.randn(3, generator=torch_rng(1, "a")), torch.randn(3, generator=torch_rng(1, "a")))
