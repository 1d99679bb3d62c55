"""Matching two dictionaries one to one: against all assignments, dense against sparse, copies, random rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.cosine import nearest_in
from bench.kernels.matching import Matched, match

SEEDS = st.integers(0, 2**32 - 1)


def rows(seed: int, m: int, d: int) -> Tensor:
    """Random rows with norms between 0.1 and 10."""
    g = np.random.default_rng(seed)
    return torch.from_numpy(g.standard_normal((m, d)) * 10 ** g.uniform(-1, 1, (m, 1))).float()


def sparse(a: Tensor, b: Tensor, nearest: int = 32, block: int = 256) -> Matched:
    return match(a, b, most_dense=0, nearest=nearest, block=block)


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(float(p) * float(q) for p, q in zip(a, b, strict=True))
    size = math.sqrt(sum(float(p) ** 2 for p in a) * sum(float(q) ** 2 for q in b))
    return dot / size if size else 0.0


def best_total(c: list[list[float]], nearest: int) -> float:
    """Largest sum over all one-to-one pairings of each row with one of its nearest, or with nobody."""
    n, m = len(c), len(c[0])
    near = [sorted(range(m), key=lambda j: -r[j])[:nearest] for r in c]
    places = list(range(m)) + [-1] * n
    options = set(itertools.permutations(places, n))
    allowed = (o for o in options if all(j == -1 or j in near[i] for i, j in enumerate(o)))
    return max(sum(c[i][j] for i, j in enumerate(o) if j >= 0) for o in allowed)


def test_matching_by_hand() -> None:
    # both rows are nearest to the first of the other; only one may have it
    a, b = torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.tensor([[5.0, 0.0], [0.0, 0.2]])
    for found in (match(a, b), sparse(a, b)):
        assert found.best == pytest.approx([1, 0.8]) and found.matched == pytest.approx([1, 0.6])
    for found in (match(a, b[:1]), sparse(a, b[:1]), sparse(a, b, nearest=1)):
        assert found.best == pytest.approx([1, 0.8]) and found.matched == pytest.approx([1, 0])
    for found in (match(a[:1], -b), sparse(a[:1], -b)):
        assert found.best == pytest.approx([0]) and found.matched == pytest.approx([0])
    for found in (match(a[:1], -b[:1]), sparse(a[:1], -b[:1])):
        assert found.best == pytest.approx([-1]) and found.matched == pytest.approx([0])


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_the_sum_is_that_of_the_best_of_all_pairings(seed: int, n: int, m: int, nearest: int, block: int) -> None:
    a, b = rows(seed, n, 3), rows(seed + 1, m, 3)
    c = [[cosine(p, q) for q in b] for p in a]
    for found, total in ((match(a, b, block=block), best_total(c, m)), (sparse(a, b, nearest, block), best_total(c, nearest))):
        assert found.matched.sum() == pytest.approx(total, abs=1e-5)
        assert found.best == pytest.approx([max(r) for r in c], abs=1e-6)
        assert all(v == 0 or min(abs(v - x) for x in r) < 1e-6 for v, r in zip(found.matched.tolist(), c, strict=True))


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 60), st.integers(1, 60), st.integers(1, 50))
def test_sparse_equals_dense_where_every_row_is_a_candidate(seed: int, n: int, m: int, block: int) -> None:
    a, b = rows(seed, n, 5), rows(seed + 1, m, 5)
    one, two = match(a, b, block=block), sparse(a, b, nearest=m)
    assert two.matched.sum() == pytest.approx(one.matched.sum(), abs=1e-4)
    assert two.best == pytest.approx(one.best, abs=1e-6) and one.best == pytest.approx(nearest_in(a, b).numpy(), abs=1e-6)
    assert (one.matched <= one.best.clip(0) + 1e-6).all() and (two.matched <= two.best.clip(0) + 1e-6).all()


def test_32_candidates_lose_next_to_nothing() -> None:
    a, b = rows(1, 700, 24), rows(2, 700, 24)
    b[:200] = a[:200] + 0.3 * a[:200].norm(dim=1, keepdim=True) * rows(3, 200, 24).sign() / math.sqrt(24)
    one, two = match(a, b), sparse(a, b)
    assert two.matched.mean() <= one.matched.mean() + 1e-6
    assert two.matched.mean() == pytest.approx(one.matched.mean(), abs=2e-3)


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 50), st.booleans())
def test_a_permuted_and_rescaled_copy_is_matched_fully(seed: int, m: int, dense: bool) -> None:
    g, w = np.random.default_rng(seed), rows(seed, m, 12)
    copy = (w * torch.from_numpy(g.uniform(0.1, 10, (m, 1))).float())[g.permutation(m)]
    found = match(w, copy) if dense else sparse(w, copy)
    assert found.matched == pytest.approx(np.ones(m), abs=1e-5) and found.best == pytest.approx(np.ones(m), abs=1e-5)


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 30), st.integers(1, 30), st.booleans())
def test_matching_ignores_order_and_scale(seed: int, n: int, m: int, dense: bool) -> None:
    g, a, b = np.random.default_rng(seed), rows(seed, n, 6), rows(seed + 1, m, 6)
    p, q = g.permutation(n), g.permutation(m)
    moved = (a * torch.from_numpy(g.uniform(0.1, 10, (n, 1))).float())[p], (b * torch.from_numpy(g.uniform(0.1, 10, (m, 1))).float())[q]
    most = 8192 if dense else 0
    one, two = match(a, b, most), match(*moved, most)
    assert two.best == pytest.approx(one.best[p], abs=1e-5)
    assert two.matched.mean() == pytest.approx(one.matched.mean(), abs=1e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_copies_of_one_row_cannot_share_a_partner(dense: bool) -> None:
    b = torch.eye(20)
    for copies in (1, 2, 5, 10):
        a = torch.eye(20)
        a[:copies] = a[0].clone()  # so rows 1 … copies − 1 of the other are nobody's
        found = match(a, b, 8192 if dense else 0, nearest=3)
        assert found.best.mean() == pytest.approx(1) and found.matched.mean() == pytest.approx((21 - copies) / 20)


@pytest.mark.parametrize("dense", [True, False])
def test_random_rows_are_matched_near_their_random_level(dense: bool) -> None:
    a, b = rows(5, 600, 64), rows(6, 600, 64)
    found, level = match(a, b, 8192 if dense else 0), float(nearest_in(rows(7, 600, 64), b).mean())
    assert found.best.mean() == pytest.approx(level, abs=0.01)
    assert level - 0.06 < found.matched.mean() < found.best.mean()


def test_rows_on_both_sides_of_the_dense_limit() -> None:
    a, b = rows(8, 40, 8), rows(9, 50, 8)
    assert match(a, b, 50).matched.sum() >= match(a, b, 49, nearest=1).matched.sum()
    assert (match(a, b, 49, nearest=1).matched == 0).any() and (match(a, b, 50, nearest=1).matched > 0).all()
