"""How well somebody tells where a latent is active, and how far two of them agree."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from bench.kernels.probes import auc


def verdicts(active: Bool[np.ndarray, " n"], said: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracy, balanced accuracy and AUC of the answers about one latent.

    Args:
        active: [n] truth; both values present.
        said: [n] answers.
        score: [n] how sure: larger is surer that it is active. Ties count half in the AUC.

    Example:
        >>> verdicts(np.array([True, False, False]), np.array([True, True, False]), np.array([0.9, 0.6, 0.1]))
        {'accuracy': 0.6666666666666666, 'balanced_accuracy': 0.75, 'auc': 1.0}
    """
    right = said == active
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float((right[active].mean() + right[~active].mean()) / 2),
        "auc": auc(active.astype(np.int64), score),
    }


def cohens_kappa(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " n"]) -> float | None:
    """Agreement of two judges beyond chance (Cohen 1960): 1 is full, 0 what their shares of yes alone would give.

    Returns:
        κ, or None where both always say the same one thing, or there is nothing to compare.

    Example:
        >>> cohens_kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
        0.5
    """
    if not len(a):
        return None
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return None if chance == 1 else float(((a == b).mean() - chance) / (1 - chance))
