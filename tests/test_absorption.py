"""Absorption: hand values, a double loop, a planted world with a known rate, and what may not change the score."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.absorption import Measured, absorbed, concept_probes, f1, main_latents, measure, pooled
from bench.kernels.folds import group_folds, three_parts
from bench.kernels.hierarchy import hierarchy_cosines
from bench.kernels.logistic import class_weights, l1_logistic, many_logistic

CHILDREN, PER_CHILD, D = 48, 10, 224  # many children, so that none is worth a main latent of its own


def one(codes: list[float], p: float, cosine: list[float], main: list[bool]) -> tuple[float, bool]:
    found = absorbed(
        sp.csr_matrix(np.array([codes])), np.array([p]), np.zeros(1, np.int64), np.array(cosine)[:, None], np.array(main)[:, None]
    )
    return float(found.fraction[0]), bool(found.full[0])


@pytest.mark.parametrize(
    ("codes", "p", "cosine", "main", "fraction", "full"),
    [
        ([0, 2], 2.0, [1.0, 0.9], [True, False], 1.0, True),  # the main latent is silent, another carries 1.8 of 2
        ([0.5, 2], 2.0, [1.0, 0.75], [True, False], 0.75, False),  # 0.5 and 1.5: three quarters absorbed
        ([0.5, 8], 2.0, [1.0, 0.75], [True, False], 0.75, False),  # absorbers count at most for what is missing
        ([2.5, 2], 2.0, [1.0, 0.9], [True, False], 0.0, False),  # the main latent carries it all
        ([0.5, 1], 2.0, [1.0, 0.75], [True, False], 0.0, False),  # 0.75 of 2 is less than 40 %
        ([0, 2], 2.0, [1.0, 0.09], [True, False], 0.0, False),  # below cosine 0.1 nobody absorbs
        ([0, 40], 2.0, [1.0, 0.03], [True, False], 0.0, True),  # but the full score asks for 0.025 only
        ([0, 2], 0.0, [1.0, 0.9], [True, False], 0.0, False),  # no projection
        ([-1, 2], 2.0, [1.0, 0.9], [True, False], 1.0, False),  # a negative main code is not silent
        ([0, 0], 2.0, [1.0, 0.9], [True, False], 0.0, False),  # nothing fires
    ],
)
def test_hand_values(codes: list[float], p: float, cosine: list[float], main: list[bool], fraction: float, full: bool) -> None:
    assert one(codes, p, cosine, main) == (pytest.approx(fraction), full)


def slow(f: np.ndarray, p: np.ndarray, concept: np.ndarray, cosine: np.ndarray, main: np.ndarray) -> tuple[list[float], list[bool]]:
    """The definition, item by item."""
    fractions, fulls = [], []
    for row, size, c in zip(f, p, concept, strict=True):
        part = row * cosine[:, c]
        s = main[:, c]
        carried = part[s].sum()
        others = sorted((v for v, cos, m in zip(part, cosine[:, c], s, strict=True) if not m and cos >= 0.1 and v > 0), reverse=True)[:3]
        taken = sum(others)
        if size <= 0 or carried >= size or taken / size < 0.4:
            fractions.append(0.0)
        elif carried <= 0:
            fractions.append(1.0)
        else:
            a = min(taken, size - carried)
            fractions.append(a / (a + carried))
        active = np.flatnonzero(row)
        best = active[np.argmax(part[active])] if len(active) else None
        silent = not (np.abs(row[s]) >= 1e-8).any()
        fulls.append(bool(best is not None and silent and size > 0 and cosine[best, c] >= 0.025 and part[best] >= 0.4 * size))
    return fractions, fulls


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_equals_the_double_loop(seed: int) -> None:
    r = np.random.default_rng(seed)
    n, m, c = 20, 15, 3
    f = np.where(r.random((n, m)) < 0.3, r.normal(1, 1, (n, m)), 0)
    p, concept = r.normal(1, 1, n), r.integers(0, c, n)
    cosine, main = r.uniform(-0.3, 1, (m, c)), r.random((m, c)) < 0.15
    found = absorbed(sp.csr_matrix(f), p, concept, cosine, main)
    fraction, full = slow(f, p, concept, cosine, main)
    assert np.allclose(found.fraction, fraction) and found.full.tolist() == full


def world(rate: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, sp.csr_matrix, np.ndarray]:
    """Four parents with children each; in a share `rate` of the children the child's latent swallows the parent's."""
    r = np.random.default_rng(seed)
    parents, n_children = 4, 4 * CHILDREN
    basis = np.linalg.qr(r.standard_normal((D, D)))[0]
    parent, child = basis[:parents], basis[parents : parents + n_children]
    of = np.arange(n_children) % parents
    item = np.repeat(np.arange(n_children), PER_CHILD)
    a, b = 1 + r.random(len(item)), 1 + r.random(len(item))
    x = a[:, None] * parent[of[item]] + b[:, None] * child[item] + 0.02 * r.standard_normal((len(item), D))
    swallowed = np.zeros(n_children, bool)
    for p in range(parents):
        mine = r.permutation(np.flatnonzero(of == p))
        swallowed[mine[: round(rate * len(mine))]] = True
    rows = np.concatenate([parent, child])
    both = parent[of] + child
    rows[parents:][swallowed] = both[swallowed] / np.sqrt(2)
    codes = np.zeros((len(item), len(rows)))
    gone = swallowed[item]
    codes[np.arange(len(item)), of[item]] = np.where(gone, 0, a)
    codes[np.arange(len(item)), parents + item] = np.where(gone, (a + b) / np.sqrt(2), b)
    return x.astype(np.float32), of[item][:, None] == np.arange(parents), item, sp.csr_matrix(codes.astype(np.float32)), rows


def score(rate: float, seed: int = 0, scale: float = 1.0) -> Measured:
    x, y, item, f, rows = world(rate, seed)
    part = np.array([0, 0, 0, 1, 2])[(np.arange(len(item)) + item) % 5].astype(np.int8)
    known, x = np.ones_like(y), x * np.float32(scale)
    return measure(x, y, known, part, concept_probes(x, y, known, part), f * np.float32(scale), rows)


def test_planted_rates_come_back() -> None:
    measured = [float(score(r).absorbed.fraction.mean()) for r in (0.0, 0.25, 0.5, 0.75)]
    assert measured == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=0.06)
    assert float(score(0.5).absorbed.full.mean()) == pytest.approx(0.5, abs=0.06)


def test_the_scale_of_activations_does_not_matter() -> None:
    one, two = score(0.5), score(0.5, scale=37.0)
    assert np.allclose(one.absorbed.fraction, two.absorbed.fraction, atol=1e-3) and np.array_equal(one.split, two.split)


def test_folds_are_pooled_without_losing_items() -> None:
    a, b = score(0.0), score(0.5)
    both = pooled([a, b])
    assert len(both.item) == len(a.item) + len(b.item) and np.allclose(both.k1_f1, (a.k1_f1 + b.k1_f1) / 2)


def test_main_latents_are_those_of_the_concepts() -> None:
    _, y, item, f, _ = world(0.0)
    part = np.array([0, 0, 0, 1, 2])[np.arange(len(item)) % 5].astype(np.int8)
    found = main_latents(f, y, np.ones_like(y), part)
    assert np.array_equal(np.nonzero(found.main.T)[1], np.arange(4)) and np.allclose(found.f1[:, 0], 1)


def test_items_that_are_not_known_do_not_count() -> None:
    r = np.random.default_rng(0)
    x = r.standard_normal((400, 8)).astype(np.float32)
    y = x[:, :2] > 0
    known = np.ones_like(y)
    known[:100, 0] = False
    part = three_parts(y[:, 0].astype(int), r)
    flipped = y.copy()
    flipped[:100, 0] = ~flipped[:100, 0]
    one, two = (concept_probes(x, labels, known, part) for labels in (y, flipped))
    assert np.allclose(one[0], two[0], atol=1e-6) and np.allclose(one[2], two[2])
    f = sp.csr_matrix(np.maximum(x, 0))
    assert np.array_equal(main_latents(f, y, known, part).main, main_latents(f, flipped, known, part).main)


def test_f1_by_hand() -> None:
    y, said = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], bool), np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    assert f1(y, said, np.ones_like(y)).tolist() == [0.5, 0.0]


# logistic regressions


def test_many_regressions_equal_scikit_learn_one_by_one() -> None:
    from sklearn.linear_model import LogisticRegression

    r = np.random.default_rng(1)
    x = r.standard_normal((300, 6))
    y = x @ r.standard_normal((6, 5)) + r.standard_normal((300, 5)) > np.linspace(-1, 1, 5)
    known = np.ones_like(y)
    w, b = many_logistic(x, y, 0.7, class_weights(y, known), tolerance=1e-9)
    for c in range(5):
        reference = LogisticRegression(C=0.7, class_weight="balanced", tol=1e-10, max_iter=10_000).fit(x, y[:, c])
        assert np.allclose(w[c], reference.coef_[0], atol=2e-5) and b[c] == pytest.approx(reference.intercept_[0], abs=2e-5)


def test_l1_finds_the_few_latents_that_matter() -> None:
    r = np.random.default_rng(2)
    f = sp.csr_matrix(np.where(r.random((600, 50)) < 0.2, r.random((600, 50)) + 0.5, 0))
    y = np.stack([f[:, 3].toarray()[:, 0] > 0, f[:, 7].toarray()[:, 0] > 0], 1)
    w = l1_logistic(f, y, np.ones_like(y), 1e-2)
    assert w.argmax(1).tolist() == [3, 7] and (w != 0).sum() < 20


# splits and geometry


def test_groups_stay_together_and_labels_are_spread() -> None:
    r = np.random.default_rng(0)
    group = np.repeat(np.arange(64), 3)
    labels = (np.arange(64)[:, None] % 4 == np.arange(4))[group]
    fold = group_folds(group, labels, 8, r)
    assert all(len(set(fold[group == g])) == 1 for g in range(64))
    for c in range(4):
        assert np.bincount(fold[labels[:, c]], minlength=8).tolist() == [6] * 8


def test_three_parts_keep_shares_within_classes() -> None:
    labels = np.repeat([0, 1], [100, 50])
    part = three_parts(labels, np.random.default_rng(0))
    assert np.bincount(part[labels == 0]).tolist() == [60, 20, 20] and np.bincount(part[labels == 1]).tolist() == [30, 10, 10]


def test_orthogonal_children_have_cosine_zero_and_strangers_do_not() -> None:
    r = np.random.default_rng(0)
    basis = np.linalg.qr(r.standard_normal((128, 128)))[0]
    member = np.arange(60)[:, None] % 5 == np.arange(5)
    means = basis[:5][member.argmax(1)] + basis[5:65]
    own, other = hierarchy_cosines(means, member, ~member, r)
    assert np.abs(own).max() < 0.1 and other.max() < -0.5
    inside = means - 0.5 * basis[:5][member.argmax(1)] * (np.arange(60) % 2)[:, None]  # half the children lean away from the parent
    assert hierarchy_cosines(inside, member, ~member, r)[0].mean() < own.mean() + 0.05
