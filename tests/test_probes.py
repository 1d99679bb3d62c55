"""Linear probes: scikit-learn's coefficients and scores, stationarity by a double loop, a planted latent found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from bench.kernels.probes import nested_logistic, rank_by_difference, scores, standardised

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed: int, n: int, p: int, positives: float = 0.5, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of falling usefulness, some of them all zeros for most rows, and labels with both classes."""
    g = np.random.default_rng(seed)
    y = (g.random(n) < positives).astype(np.int64)
    y[:2] = 0, 1
    x = g.standard_normal((n, p)) + signal * np.outer(y, 1 / np.arange(1, p + 1))
    x[:, ::3] = np.maximum(x[:, ::3], 0)
    return x, y


def reference(x: np.ndarray, y: np.ndarray, c: float) -> tuple[np.ndarray, float]:
    model = LogisticRegression(C=c, tol=1e-12, max_iter=1000, solver="newton-cholesky").fit(x, y)
    return model.coef_[0], float(model.intercept_[0])


def objective(w: np.ndarray, b: float, x: np.ndarray, y: np.ndarray, c: float) -> float:
    """What is minimised, row by row."""
    total = sum(v * v for v in w) / 2
    for row, label in zip(x, y, strict=True):
        margin = sum(a * v for a, v in zip(row, w, strict=True)) + b
        total += c * np.logaddexp(0, -margin if label else margin)
    return float(total)


# rank_by_difference, standardised


def test_ranking_by_hand() -> None:
    assert rank_by_difference(np.array([[0.0, 3, 1, 0], [1, 0, 2, 0]])).tolist() == [1, 0, 2, 3]
    assert rank_by_difference(np.zeros((2, 4))).tolist() == [0, 1, 2, 3]


@given(SEEDS, st.integers(1, 40))
def test_ranking_ignores_which_class_is_positive_and_a_shared_shift(seed: int, m: int) -> None:
    means = np.random.default_rng(seed).integers(0, 5, (2, m)).astype(float)  # ties are frequent
    found = rank_by_difference(means)
    slow = sorted(range(m), key=lambda i: (-abs(means[1, i] - means[0, i]), i))
    assert found.tolist() == slow == rank_by_difference(means[::-1]).tolist() == rank_by_difference(4 * means + 1).tolist()


def test_standardised_by_hand() -> None:
    train, test = standardised(np.array([[1.0, 7.0], [3.0, 7.0]]), np.array([[2.0, 7.0], [5.0, 9.0]]))
    assert train.tolist() == [[-1, 0], [1, 0]]
    assert test.tolist() == [[0, 0], [3, 0]]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3e-5, 1234567.3, 1e12 / 3])
@pytest.mark.parametrize("n", [2, 999, 1500])
def test_constant_columns_become_zero_whatever_their_size(value: float, n: int) -> None:
    train, test = standardised(np.full((n, 3), value), np.array([[value, value + 1, 0.0]]))
    assert not train.any() and not test.any()


@settings(max_examples=40)
@given(SEEDS, st.integers(3, 40), st.integers(1, 6))
def test_standardised_ignores_units_and_uses_the_training_set_only(seed: int, n: int, p: int) -> None:
    g = np.random.default_rng(seed)
    a, b = g.standard_normal((n, p)), g.standard_normal((5, p))
    train, test = standardised(a, b)
    assert train.mean(0) == pytest.approx(np.zeros(p), abs=1e-9)
    assert train.std(0) == pytest.approx(np.ones(p))
    shift, scale = g.uniform(-5, 5, p), g.uniform(0.01, 100, p)
    other_train, other_test = standardised(scale * a + shift, scale * b + shift)
    assert other_train == pytest.approx(train, abs=1e-8) and other_test == pytest.approx(test, abs=1e-6)
    assert standardised(a, b[:2])[1].tolist() == test[:2].tolist()
    assert train @ np.ones(p) == pytest.approx(((a - a.mean(0)) / a.std(0)).sum(1))


# nested_logistic


def test_logistic_by_hand() -> None:
    w, b = nested_logistic(np.array([[-1.0], [1.0]]), np.array([0, 1]), (1,))
    assert w[0, 0] == pytest.approx(brentq(lambda v: v - 2 / (1 + math.exp(v)), 0, 5, xtol=1e-14))
    assert b[0] == pytest.approx(0, abs=1e-9)


def test_without_features_that_help_the_intercept_is_the_log_odds() -> None:
    w, b = nested_logistic(np.zeros((10, 2)), np.r_[np.ones(3), np.zeros(7)], (1, 2))
    assert not w.any()
    assert b == pytest.approx([math.log(3 / 7)] * 2)


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(
    ("n", "p", "positives", "signal"),
    [(40, 1, 0.5, 1), (60, 5, 0.5, 1), (300, 20, 0.5, 0), (1000, 100, 0.5, 1), (30, 60, 0.5, 1), (400, 8, 0.03, 1), (200, 6, 0.5, 30)],
    ids=["one", "small", "noise", "large", "wide", "imbalanced", "separable"],
)
def test_logistic_equals_scikit_learn(n: int, p: int, positives: float, signal: float, c: float) -> None:
    x, y = problem(n, n, p, positives, signal)
    sizes = tuple(sorted({1, max(1, p // 2), p}))
    w, b = nested_logistic(x, y, sizes, c)
    for i, k in enumerate(sizes):
        coefficients, intercept = reference(x[:, :k], y, c)
        assert w[i, :k] == pytest.approx(coefficients, abs=1e-5)
        assert b[i] == pytest.approx(intercept, abs=1e-5)
        assert x @ w[i] + b[i] == pytest.approx(x[:, :k] @ coefficients + intercept, abs=1e-4)
        assert not w[i, k:].any()


def test_constant_and_repeated_columns() -> None:
    x, y = problem(1, 150, 4)
    wide = np.c_[x, np.zeros(150), x[:, 0], np.zeros(150)]
    w, b = nested_logistic(wide, y, (4, 5, 6, 7))
    assert w[1] == pytest.approx(w[0], abs=1e-7) and b[1] == pytest.approx(b[0], abs=1e-7)
    assert w[3] == pytest.approx(w[2], abs=1e-7)
    assert w[2, 0] == pytest.approx(w[2, 5], abs=1e-7)
    assert not w[:, 4].any() and not w[:, 6].any()
    coefficients, intercept = reference(wide[:, :6], y, 1.0)
    assert w[2, :6] == pytest.approx(coefficients, abs=1e-5) and b[2] == pytest.approx(intercept, abs=1e-5)


@settings(max_examples=15)
@given(SEEDS, st.integers(4, 25), st.integers(1, 4), st.sampled_from([0.1, 1.0, 10.0]))
def test_no_step_away_lowers_the_objective(seed: int, n: int, p: int, c: float) -> None:
    x, y = problem(seed, n, p)
    w, b = nested_logistic(x, y, (p,), c)
    least = objective(w[0], b[0], x, y, c)
    for j in range(p + 1):
        for step in (-1e-3, 1e-3):
            moved = w[0].copy()
            if j < p:
                moved[j] += step
            assert objective(moved, b[0] + (step if j == p else 0), x, y, c) > least


@settings(max_examples=25)
@given(SEEDS, st.integers(6, 80), st.integers(1, 6), st.data())
def test_logistic_invariances(seed: int, n: int, p: int, data: st.DataObject) -> None:
    x, y = problem(seed, n, p)
    sizes = tuple(data.draw(st.lists(st.integers(1, p), min_size=1, max_size=4)))  # any order, repeats too
    w, b = nested_logistic(x, y, sizes)
    order = np.random.default_rng(seed).permutation(n)
    close = {"rel": 1e-6, "abs": 1e-6}
    for other_w, other_b in (
        nested_logistic(x[order], y[order], sizes),
        nested_logistic(np.r_[x, x], np.r_[y, y], sizes, 0.5),
        nested_logistic(x, y.astype(bool), sizes),
        tuple(-v for v in nested_logistic(x, 1 - y, sizes)),
    ):
        assert other_w == pytest.approx(w, **close) and other_b == pytest.approx(b, **close)
    for i, k in enumerate(sizes):
        alone_w, alone_b = nested_logistic(x[:, :k], y, (k,))
        assert alone_w[0] == pytest.approx(w[i, :k], **close) and alone_b[0] == pytest.approx(b[i], **close)
    shifted_w, shifted_b = nested_logistic(x + 3, y, sizes)
    assert shifted_w == pytest.approx(w, abs=1e-5) and shifted_b == pytest.approx(b - 3 * w.sum(1), abs=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e6])
def test_badly_scaled_features(scale: float) -> None:
    x, y = problem(3, 120, 3)
    w, b = nested_logistic(x * scale, y, (3,))
    coefficients, intercept = reference(x, y, scale**2)  # the same problem, well scaled
    assert scale * w[0] == pytest.approx(coefficients, abs=1e-4) and b[0] == pytest.approx(intercept, abs=1e-4)


# scores


def test_scores_by_hand() -> None:
    assert scores(np.array([0, 0, 1, 1]), np.array([-1.0, 1.0, 2.0, 3.0])) == {"accuracy": 0.75, "f1": 0.8, "auc": 1.0}
    assert scores(np.array([0, 1]), np.array([0.0, 0.0])) == {"accuracy": 0.5, "f1": 0, "auc": 0.5}
    assert scores(np.array([0, 1, 1]), np.array([3.0, -2.0, 5.0])) == {"accuracy": 1 / 3, "f1": 0.5, "auc": 0.5}


@given(SEEDS, st.integers(2, 60), st.sampled_from([1, 3, 1000]), st.floats(-2, 2))
def test_scores_equal_scikit_learn_and_a_double_loop(seed: int, n: int, levels: int, shift: float) -> None:
    g = np.random.default_rng(seed)
    y = g.integers(0, 2, n)
    y[:2] = 0, 1
    margin = g.integers(-levels, levels + 1, n) / levels + round(shift)
    found = scores(y, margin)
    said = (margin > 0).astype(int)
    pairs = [(a > b) + 0.5 * (a == b) for a in margin[y == 1] for b in margin[y == 0]]
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs))
    assert found["auc"] == pytest.approx(roc_auc_score(y, margin))
    assert found["accuracy"] == pytest.approx(accuracy_score(y, said))
    assert found["f1"] == pytest.approx(f1_score(y, said))


@given(SEEDS, st.integers(2, 60))
def test_scores_ignore_order_and_stretching(seed: int, n: int) -> None:
    g = np.random.default_rng(seed)
    y, margin, order = g.integers(0, 2, n), g.standard_normal(n), g.permutation(n)
    y[:2] = 0, 1
    found = scores(y, margin)
    assert scores(y[order], margin[order]) == pytest.approx(found)
    assert scores(y, np.sinh(3 * margin)) == pytest.approx(found)
    turned = scores(1 - y, -margin)
    assert turned["auc"] == pytest.approx(found["auc"]) and turned["accuracy"] == pytest.approx(found["accuracy"])


# what it is for


def test_a_planted_latent_is_ranked_first_and_read_alone() -> None:
    g = np.random.default_rng(0)
    y = np.repeat([0, 1], 200)
    f = np.maximum(g.standard_normal((400, 50)), 0)
    f[:, 17] = np.where(y == 1, 2 + f[:, 17], 0)
    order = rank_by_difference(np.stack([f[y == c].mean(0) for c in (0, 1)]))
    assert order[0] == 17
    train, test = standardised(f[::2][:, order], f[1::2][:, order])
    w, b = nested_logistic(train, y[::2], (1, 50))
    assert scores(y[1::2], test @ w[0] + b[0]) == {"accuracy": 1, "f1": 1, "auc": 1}


def test_labels_without_a_cause_are_not_predicted() -> None:
    g = np.random.default_rng(1)
    f, y = g.standard_normal((2000, 10)), np.arange(2000) % 2
    w, b = nested_logistic(f[:1000], y[:1000], (1, 10))
    for i in range(2):
        assert scores(y[1000:], f[1000:] @ w[i] + b[i])["auc"] == pytest.approx(0.5, abs=0.06)
