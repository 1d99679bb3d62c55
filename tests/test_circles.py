"""Multi-dimensional features: clusters, planes, separability and mixture against hand values and slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.circles import cosine_quantile, linked, mixture, mutual_information, neighbours, principal, separability

SEEDS = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def circle(n: int, points: int | None = None, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """Points on the unit circle: anywhere, or at a few places."""
    r = rng(seed)
    angle = r.uniform(0, 2 * np.pi, n) if points is None else 2 * np.pi * r.integers(0, points, n) / points + 0.3
    return np.stack([np.cos(angle), np.sin(angle)], 1) + noise * r.standard_normal((n, 2))


def one_at_a_time(n: int, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """Two features on the axes that never occur together."""
    r = rng(seed)
    first = r.random(n) < share
    return np.stack([first, ~first], 1) * r.uniform(0.5, 1.5, (n, 1))


def turned(xy: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]])


def score(xy: np.ndarray) -> float:
    return (1 - mixture(xy)) * separability(xy, rng())[0]


# clusters


def test_neighbours_and_quantile_equal_a_double_loop() -> None:
    w = torch.from_numpy(rng(1).standard_normal((70, 9)) * 10 ** rng(2).uniform(-1, 1, (70, 1))).float()
    cosines, rows, counts = neighbours(w, 3)
    v = w.double().numpy()
    pairs = []
    for i in range(70):
        row = [(float(v[i] @ v[j]) / math.sqrt(float(v[i] @ v[i]) * float(v[j] @ v[j])), j) for j in range(70) if j != i]
        pairs += [c for c, _ in row]
        best = sorted(row, reverse=True)[:3]
        assert rows[i].tolist() == [j for _, j in best]
        assert cosines[i] == pytest.approx([c for c, _ in best], abs=1e-6)
    assert counts.sum() == 70 * 69
    for q in (0.05, 0.5, 0.9, 0.99, 0.999):
        assert cosine_quantile(counts, q) == pytest.approx(np.quantile(pairs, q, method="inverted_cdf"), abs=1.1e-4)


def test_neighbours_do_not_depend_on_the_block() -> None:
    w = torch.from_numpy(rng(3).standard_normal((50, 8))).float()
    one, other = neighbours(w, 2), neighbours(w, 2, block=7)
    assert one[0] == pytest.approx(other[0], abs=1e-6) and (one[1] == other[1]).all() and np.abs(one[2] - other[2]).sum() <= 4


def test_duplicates_lie_inside_the_histogram() -> None:
    w = torch.tensor([[3.0, 4.0], [0.3, 0.4], [-30.0, -40.0]])
    cosines, _, counts = neighbours(w, 1)
    assert cosines[:2, 0].tolist() == [1.0, 1.0] and counts[[0, -1]].tolist() == [4, 2]
    assert cosine_quantile(counts, 0.5) == pytest.approx(-1, abs=1.1e-4) and cosine_quantile(counts, 0.99) == 1.0


def test_links_by_hand() -> None:
    rows = np.array([[1], [2], [1], [0], [5], [4]])  # 0 → 1 ⇄ 2, 3 → 0, 4 ⇄ 5
    cosines = np.array([[0.9], [0.9], [0.9], [0.7], [0.8], [0.8]])
    as_lists = lambda cutoff, mutual: [c.tolist() for c in linked(cosines, rows, cutoff, mutual)]  # noqa: E731
    assert as_lists(0.5, False) == [[0, 1, 2, 3], [4, 5]]
    assert as_lists(0.5, True) == [[1, 2], [4, 5]]
    assert as_lists(0.75, False) == [[0, 1, 2], [4, 5]]
    assert as_lists(0.9, True) == []


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.booleans())
def test_links_equal_a_slow_search_and_follow_a_permutation(seed: int, mutual: bool) -> None:
    r = rng(seed)
    w = torch.from_numpy(r.standard_normal((40, 4))).float()
    cosines, rows, _ = neighbours(w, 2)
    cutoff = float(np.median(cosines))
    near = [{int(j) for j, c in zip(rows[i], cosines[i], strict=True) if c > cutoff} for i in range(40)]
    joined = lambda i, j: (j in near[i] and i in near[j]) if mutual else (j in near[i] or i in near[j])  # noqa: E731
    expected, seen = set(), set()
    for i in range(40):
        group, todo = {i}, [i]
        while todo:
            at = todo.pop()
            new = {j for j in range(40) if joined(at, j)} - group
            group |= new
            todo += new
        if i not in seen and len(group) > 1:
            expected.add(frozenset(group))
        seen |= group
    assert {frozenset(c.tolist()) for c in linked(cosines, rows, cutoff, mutual)} == expected
    order = r.permutation(40)
    again = neighbours(w[torch.from_numpy(order)], 2)
    assert {frozenset(order[c].tolist()) for c in linked(again[0], again[1], cutoff, mutual)} == expected


# planes


def test_principal_components_equal_those_of_the_points() -> None:
    r = rng(5)
    w, f = r.standard_normal((9, 20)).astype(np.float32), r.random((60, 9)) * (r.random((60, 9)) < 0.5)
    points, share = principal(sp.csr_matrix(f), w, 5)
    x = f @ w.astype(np.float64)
    u, s, vt = np.linalg.svd(x - x.mean(0), full_matrices=False)
    signs = np.sign(vt[np.arange(5), np.abs(vt[:5]).argmax(1)])
    assert points == pytest.approx((u * s)[:, :5] * signs, abs=1e-8)
    assert share == pytest.approx(s[:5] ** 2 / (s**2).sum(), abs=1e-9)


def test_points_in_fewer_dimensions_have_fewer_components() -> None:
    r = rng(6)
    w = r.standard_normal((3, 8)).astype(np.float32)
    f = r.uniform(0.5, 1.5, (50, 3)) * (r.random((50, 3)) < 0.5)
    same = np.stack([w[0], w[0], w[0]])
    assert principal(sp.csr_matrix(f[:, :2]), w[:2], 5)[0].shape == (50, 2)
    assert principal(sp.csr_matrix(f), same, 5)[0].shape == (50, 1)
    assert principal(sp.csr_matrix(np.ones((50, 3))), w, 5)[0].shape == (50, 0)
    assert principal(sp.csr_matrix(f), w.repeat(3, axis=0)[:3], 5)[1] == pytest.approx([1.0])


# separability


def test_information_by_hand() -> None:
    same, ten = np.repeat(np.arange(4), 5)[None], np.arange(100)[None]
    assert mutual_information(same, same, 10) == pytest.approx([2.0])
    assert mutual_information(ten // 10, ten % 10, 10) == pytest.approx([0.0])
    assert mutual_information(np.zeros((1, 7), int), np.arange(7)[None], 10) == pytest.approx([0.0])
    x, y = np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]])
    expected = 0.5 * math.log2(0.5 / 0.375) + 0.25 * math.log2(0.25 / 0.375) + 0.25 * math.log2(0.25 / 0.125)
    assert mutual_information(x, y, 2) == pytest.approx([expected])


def slow_information(x: np.ndarray, y: np.ndarray) -> float:
    h = np.histogram2d(x, y, bins=10)[0] / len(x)
    total = 0.0
    for i in range(10):
        for j in range(10):
            if h[i, j] > 0:
                total += h[i, j] * math.log2(h[i, j] / (h[i].sum() * h[:, j].sum()))
    return total


@pytest.mark.parametrize("xy", [circle(300), one_at_a_time(200), rng(1).standard_normal((150, 2)) * [3, 1]], ids=["circle", "two", "gauss"])
def test_uncorrected_separability_equals_a_double_loop(xy: np.ndarray) -> None:
    slow = min(slow_information(*turned(xy, a).T) for a in np.arange(100) * np.pi / 200)
    corrected, raw = separability(xy, rng(), shuffles=5)
    assert raw == pytest.approx(slow, abs=2e-3) and 0 <= corrected <= raw


def test_memory_bound_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = separability(circle(400), rng())
    monkeypatch.setattr("bench.kernels.circles._AT_ONCE", 1_000)
    assert separability(circle(400), rng()) == whole


def test_independent_gaussians_are_separable_once_corrected() -> None:
    for n, low, high in ((100, 0.3, 0.5), (2_000, 0.01, 0.03)):
        found = [separability(rng(s).standard_normal((n, 2)), rng(s)) for s in range(20)]
        assert low < np.mean([raw for _, raw in found]) < high  # a histogram of 100 points shows dependence that is not there
        assert np.mean([s for s, _ in found]) < 0.01


def test_a_circle_is_not_separable() -> None:
    assert separability(circle(2_000), rng())[0] > 1.0
    assert separability(circle(2_000, 7), rng())[0] > 1.4


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0, 2 * math.pi))
def test_separability_hardly_changes_when_the_plane_is_turned(seed: int, angle: float) -> None:
    for xy in (circle(600, 7, seed=seed), one_at_a_time(600, seed=seed)):
        one, other = separability(xy, rng())[0], separability(turned(xy, angle), rng())[0]
        assert other == pytest.approx(one, abs=0.1)


# mixture


def test_mixture_by_hand() -> None:
    line = np.stack([np.arange(50.0), 3 - 2 * np.arange(50.0)], 1)
    assert mixture(line) == 1.0 and mixture(np.ones((4, 2))) == 1.0
    corners = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]] * 25)
    assert mixture(corners) == 0.5  # a side of the square
    seven = circle(7_000, 7, noise=0)
    counts = np.unique(seven.round(6), axis=0, return_counts=True)[1]
    assert mixture(seven) == pytest.approx(np.sort(counts)[-2:].sum() / 7_000, abs=0.02)  # two points of seven
    for share in (0.5, 0.7, 0.9):
        assert mixture(one_at_a_time(2_000, share)) == pytest.approx(share, abs=0.05)


def slow_mixture(xy: np.ndarray, epsilon: float = 0.1) -> float:
    """Largest share over 120 directions and 250 offsets each, one by one."""
    best = 0.0
    for angle in np.arange(120) * np.pi / 120:
        v = (xy - xy.mean(0)) @ np.array([math.cos(angle), math.sin(angle)])
        for c in np.linspace(-v.max(), -v.min(), 250):
            inside = np.abs(v + c) < epsilon * math.sqrt(float(np.mean((v + c) ** 2)))
            best = max(best, float(inside.mean()))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_mixture_equals_a_search_by_hand(seed: int) -> None:
    r = rng(seed)
    for xy in (circle(100, seed=seed), one_at_a_time(100, 0.6, seed), r.standard_normal((100, 2)) * [2, 1]):
        slow = slow_mixture(xy)
        assert slow - 0.02 <= mixture(xy) <= slow + 0.04  # both are lower bounds; the offsets here are a grid


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0, 2 * math.pi), st.floats(0.1, 10))
def test_mixture_hardly_changes_under_linear_maps(seed: int, angle: float, stretch: float) -> None:
    for xy in (circle(500, 12, seed=seed), one_at_a_time(500, 0.6, seed)):
        assert mixture(turned(turned(xy, 1.0) * [1, stretch], angle) + 5) == pytest.approx(mixture(xy), abs=0.04)


# what they are for


def test_circles_score_above_mixtures_and_independent_coordinates() -> None:
    circles = [score(circle(1_000, k)) for k in (None, 7, 12)]
    assert min(circles) > 0.8
    assert score(one_at_a_time(1_000)) < 0.55 and score(rng().standard_normal((1_000, 2))) < 0.02
    assert score(rng().standard_normal((1_000, 2)) * [4, 1]) < 0.02 and score(rng().random((1_000, 2))) < 0.02
