"""Linear probes: which latents to read, L2 logistic regression for many probes at once, and how well they do."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from jaxtyping import Float, Integer
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

_STEPS = 100
_TOLERANCE = 1e-11
_SERVES = 0.1  # a curvature is kept while each step with it leaves at most this share of the gradient


def rank_by_difference(means: Float[np.ndarray, "2 m"]) -> Integer[np.ndarray, " m"]:
    """Latents from most to least separating: by |mean on positives − mean on negatives|, ties by index.

    Args:
        means: [2, m] mean code of the negatives and of the positives.
    """
    return np.argsort(-np.abs(means[1] - means[0]), kind="stable")


def standardised(
    train: Float[np.ndarray, "n p"], test: Float[np.ndarray, "q p"]
) -> tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "q p"]]:
    """Both sets with the training set's mean removed and its standard deviation set to 1; constant columns become 0."""
    mean, deviation = train.mean(0), train.std(0)
    safe = np.where(deviation > 1e-12 * np.maximum(1, np.abs(mean)), deviation, np.inf)  # the mean of equal numbers is rounded
    return (train - mean) / safe, (test - mean) / safe


def nested_logistic(
    x: np.ndarray, y: np.ndarray, sizes: tuple[int, ...], c: float = 1.0, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """L2 logistic regressions on the first k columns, for every k at once, by Newton's method in float64.

    Minimises ½‖w‖² + c · Σ log(1 + exp(−s_i (x_i·w + b))) with s = ±1 and b unpenalised: scikit-learn's objective.

    Args:
        x: [n, p] features, best first.
        y: [n] labels 0 or 1, both present.
        sizes: Numbers of leading columns, each ≤ p.
        c: Inverse strength of the penalty.
        weight: [n] weights of the rows, 1 if not given.

    Returns:
        Weights [len(sizes), p] (zero beyond k) and intercepts [len(sizes)].
    """
    n, p = x.shape
    mass = np.full(n, c) if weight is None else c * weight
    design = np.concatenate([np.ones((n, 1)), x], axis=1)
    w = np.zeros((len(sizes), p + 1))
    start = np.append(np.log(mass[y == 1].sum() / mass[y == 0].sum()), np.zeros(p))
    for i, k in enumerate(sizes):  # one at a time: the small ones then cost next to nothing, and each starts from the one before
        start[: k + 1] = w[i, : k + 1] = _newton(np.ascontiguousarray(design[:, : k + 1]), y, mass, start[: k + 1])
    return w[:, 1:], w[:, 0]


def _newton(design: np.ndarray, y: np.ndarray, mass: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[k + 1] the minimum, intercept first, by Newton steps from w, halved until the objective falls enough (Armijo).

    The curvature costs k times as much as the gradient: it is worked out anew only where the last one served badly.
    """
    penalty = np.append(0.0, np.ones(design.shape[1] - 1))
    ridge, enough = np.diag(penalty + 1e-8), _TOLERANCE * max(1.0, float(mass.sum()))
    margin, curvature, before = design @ w, None, 0.0
    prob, value = _objective(margin, y, mass, w)
    for _ in range(_STEPS):
        gradient = (mass * (prob - y)) @ design + penalty * w
        largest = float(np.abs(gradient).max())
        if largest < enough:
            break
        if curvature is None or largest > _SERVES * before:
            curvature = _curvature(design, np.sqrt(mass * prob * (1 - prob)), ridge)
        before, step = largest, cho_solve(curvature, gradient, check_finite=False)
        along, slope, size = design @ step, float(gradient @ step), 1.0
        while True:
            prob, now = _objective(margin - size * along, y, mass, w - size * step)
            if size <= 2.0**-30 or now <= value - 1e-4 * size * slope + 1e-12 * abs(value):
                break
            size /= 2
        margin, w, value = margin - size * along, w - size * step, now
    return w


def _curvature(design: np.ndarray, root: np.ndarray, ridge: np.ndarray) -> tuple[np.ndarray, bool]:
    """Cholesky factor of the Hessian designᵀ diag(root²) design + ridge, in float32 where that will do: it only points the way."""
    for dtype in (np.float32, np.float64):
        half = np.multiply(design, root[:, None], dtype=dtype, casting="same_kind")  # its product with itself takes half the work
        with suppress(np.linalg.LinAlgError):
            return cho_factor(half.T @ half + ridge.astype(dtype), overwrite_a=True, check_finite=False)
    raise np.linalg.LinAlgError("the Hessian of a logistic regression is not positive definite")


def _objective(margin: np.ndarray, y: np.ndarray, mass: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, float]:
    """[n] probabilities of class 1, and ½‖w without intercept‖² + Σ mass · (log(1 + exp(margin)) − y · margin)."""
    prob = expit(margin)
    loss = np.maximum(margin, 0) - np.log(np.maximum(prob, 1 - prob)) - y * margin
    return prob, 0.5 * float(w[1:] @ w[1:]) + float(mass @ loss)


def scores(y: Integer[np.ndarray, " n"], margin: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracy, F1 of the positive class and AUC of a decision value.

    Args:
        y: [n] labels 0 or 1, both present.
        margin: [n] decision values; > 0 predicts 1. Ties count half in the AUC.

    Example:
        >>> scores(np.array([0, 0, 1, 1]), np.array([-1.0, 1.0, 2.0, 3.0]))
        {'accuracy': 0.75, 'f1': 0.8, 'auc': 1.0}
    """
    said = margin > 0
    hits = float((said & (y == 1)).sum())
    positives = float((y == 1).sum())
    return {
        "accuracy": float((said == (y == 1)).mean()),
        "f1": 2 * hits / (float(said.sum()) + positives),
        "auc": auc(y, margin),
    }


def auc(y: Integer[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    """Share of pairs of a positive and a negative in which the positive has the larger score; ties count half.

    Example:
        >>> auc(np.array([0, 1, 1]), np.array([0.2, 0.2, 0.9]))
        0.75
    """
    below, above = np.sort(score[y == 0]), score[y == 1]
    won = sum(np.searchsorted(below, above, side).sum() for side in ("left", "right")) / 2
    return float(won) / (len(below) * len(above))
