"""Many logistic regressions on the same rows: L2 by one joint L-BFGS, L1 by coordinate descent.

In the L2 case one product with the shared rows serves all problems, so twenty-six letters cost little more than one.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit

_STEPS = 2_000
_INTERCEPT_SCALE = 10  # liblinear penalises the intercept of a constant feature of this size


def class_weights(y: Bool[np.ndarray, "n c"], known: Bool[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Weights that give positives and negatives of each problem the same total (scikit-learn's `balanced`).

    Args:
        y: [n, c] labels.
        known: [n, c] which rows count for which problem; the others weigh 0.
    """
    n, positives = known.sum(0), (y & known).sum(0)
    return known * np.where(y, n / (2 * np.maximum(positives, 1)), n / (2 * np.maximum(n - positives, 1)))


def many_logistic(
    x: Float[np.ndarray, "n p"],
    y: Bool[np.ndarray, "n c"],
    c: float = 1.0,
    weight: Float[np.ndarray, "n c"] | None = None,
    start: Float[np.ndarray, "c q"] | None = None,
    tolerance: float = 1e-7,
) -> tuple[Float[np.ndarray, "c p"], Float[np.ndarray, " c"]]:
    """L2 logistic regressions of every column of `y` on the rows of `x`, in float64.

    Each minimises ½‖w‖² + c · Σ weight · log(1 + exp(−s (x·w + b))) with s = ±1 and b unpenalised: scikit-learn's
    objective. The problems are independent; their sum is minimised in one go.

    Args:
        x: [n, p] features.
        y: [n, c] labels; both values present in every column.
        c: Inverse strength of the penalty.
        weight: [n, c] weights of the rows, 1 if not given (`class_weights` balances the classes).
        start: [c, p + 1] weights and intercepts to begin with.
        tolerance: Largest gradient entry at the end, relative to c · n.

    Returns:
        Weights [c, p] and intercepts [c].
    """
    a = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    p, mass = x.shape[1], c * (np.ones(y.shape) if weight is None else weight)
    first = np.zeros((y.shape[1], p + 1)) if start is None else start
    options = {"maxiter": _STEPS, "gtol": tolerance * max(1.0, float(mass.sum(0).max())), "ftol": 0, "maxcor": 20}
    found = minimize(_objective, first.ravel(), (a, y, mass), jac=True, method="L-BFGS-B", options=options)
    w = found.x.reshape(y.shape[1], p + 1)
    return w[:, :p], w[:, p]


def _objective(flat: np.ndarray, a: np.ndarray, y: np.ndarray, mass: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of all problems' losses and its gradient; the last column of `a` is the intercept's."""
    w = flat.reshape(y.shape[1], a.shape[1])
    kept = w.copy()
    kept[:, -1] = 0.0
    margin = a @ w.T
    loss = (mass * (np.logaddexp(0, margin) - y * margin)).sum() + 0.5 * (kept * kept).sum()
    return float(loss), ((mass * (expit(margin) - y)).T @ a + kept).ravel()


def l1_logistic(
    x: sp.csr_matrix, y: Bool[np.ndarray, "n c"], known: Bool[np.ndarray, "n c"], strength: float = 1e-3
) -> Float[np.ndarray, "c m"]:
    """Class-balanced L1 logistic regressions of every column of `y` on sparse rows (liblinear's coordinate descent).

    Each minimises mean(weight · log(1 + exp(−s (x·w + b)))) + strength · Σ|w|; the intercept is hardly penalised.
    Codes are divided by the root mean square of the active ones, all by one number: columns keep their relation, and
    the scale of activations does not matter.

    Args:
        x: [n, m] codes.
        y: [n, c] labels; a column with one value among its known rows gets weights 0.
        known: [n, c] which rows count for which column.
        strength: Penalty of a unit of weight.

    Returns:
        [c, m] weights on the scaled codes, mostly zero.
    """
    from sklearn.linear_model import LogisticRegression

    size = float(np.sqrt(np.mean(np.square(x.data, dtype=np.float64)))) if x.nnz else 1.0
    a, weights = sp.csr_matrix(x.astype(np.float64) / max(size, 1e-300)), []
    for column, rows in zip(y.T, known.T, strict=True):
        model = LogisticRegression(
            solver="liblinear",
            l1_ratio=1.0,
            C=1 / (strength * max(int(rows.sum()), 1)),
            class_weight="balanced",
            tol=1e-3,
            max_iter=500,
            intercept_scaling=_INTERCEPT_SCALE,
            random_state=0,
        )
        both = len(np.unique(column[rows])) == 2  # where one class is missing nothing predicts it
        weights.append(model.fit(a if rows.all() else a[rows], column[rows]).coef_ if both else np.zeros((1, a.get_shape()[1])))
    return np.concatenate(weights)
