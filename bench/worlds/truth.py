"""What the truth of a planted world says of an SAE: which latent stands for which feature, and what is wrong with it."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_matrix, csr_matrix

from bench.kernels.matching import MOST_DENSE, NEAREST, partners
from bench.sae.codes import Codes

RECOVERED = 0.9  # cosine above which a row counts as a feature's
CARRIED = 0.3  # cosine from which a row carries a second feature
_SUM = 0.8  # cosine below which a row is no sum of two features either
_CANDIDATES = 8  # nearest features among which the best sum is looked for
_BLOCK = 1024


def matched(dictionary: np.ndarray, rows: np.ndarray, most_dense: int = MOST_DENSE) -> tuple[np.ndarray, np.ndarray]:
    """Features and rows paired one to one so that the sum of absolute cosines is the largest.

    Absolute, as in the mean correlation coefficient of Song et al. 2025 (arXiv 2505.20254); `bench.kernels.matching`
    is for signed cosines. Above `most_dense` rows a feature may be paired with its 32 nearest rows only.

    Args:
        dictionary: [f, d] unit directions.
        rows: [m, d] unit rows, m ≥ 1.
        most_dense: Largest number of features or rows that is matched on all cosines.

    Returns:
        [f] row of each feature (−1: none is left) and [f] their absolute cosine (0 where there is none).
    """
    at, value = np.full(len(dictionary), -1), np.zeros(len(dictionary))
    if max(len(dictionary), len(rows)) <= most_dense:
        cosine = np.abs(dictionary @ rows.T)
        feature, row = linear_sum_assignment(cosine, maximize=True)
        at[feature], value[feature] = row, cosine[feature, row]
        return at, np.minimum(value, 1.0)
    f, k = len(dictionary), min(NEAREST, len(rows))
    near, cosine = np.empty((f, k), np.int64), np.empty((f, k))
    for i in range(0, f, _BLOCK):
        part = np.abs(dictionary[i : i + _BLOCK] @ rows.T)
        near[i : i + _BLOCK] = np.argpartition(-part, k - 1, axis=1)[:, :k]
        cosine[i : i + _BLOCK] = np.take_along_axis(part, near[i : i + _BLOCK], 1)
    row, value = partners(near, cosine, len(rows))
    return np.where(row < len(rows), row, -1), np.minimum(value, 1.0)


def firing_counts(truth: Codes, codes: Codes, features: np.ndarray, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens on which pairs fire.

    Args:
        truth: True codes of n tokens.
        codes: The SAE's codes of the same tokens.
        features: [k] features.
        latents: [k] the latent paired with each.

    Returns:
        [k] tokens on which both fire, the feature fires, the latent fires.
    """
    a, b = fires(truth)[:, features], fires(codes)[:, latents]
    both = np.asarray(a.multiply(b).sum(0)).ravel()
    return both, np.diff(a.indptr), np.diff(b.indptr)


def firing_f1(truth: Codes, codes: Codes, features: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """[k] F1 of each latent's firing as a detector of its feature; 0 where neither fires."""
    both, feature, latent = firing_counts(truth, codes, features, latents)
    return 2 * both / np.maximum(feature + latent, 1)


def absorbed_share(
    truth: Codes, codes: Codes, rows: np.ndarray, dictionary: np.ndarray, edges: np.ndarray, latent_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each parent the child's latent has absorbed.

    A firing of the child (so of the parent) is absorbed when the parent's latent is silent, the child's latent is
    active, and the child's row carries the parent (cosine ≥ 0.3).

    Args:
        truth: True codes of n tokens.
        codes: The SAE's codes of the same tokens.
        rows: [m, d] unit decoder rows.
        dictionary: [f, d] true directions.
        edges: [e, 2] parent and child.
        latent_of: [f] latent that stands for each feature.

    Returns:
        [e] absorbed share of the child's firings (0 where it never fires) and [e] the child's firings.
    """
    parent, child = edges.T
    own, other = latent_of[child], latent_of[parent]
    carries = np.einsum("ij,ij->i", rows[own], dictionary[parent]) >= CARRIED
    present, active = fires(truth)[:, child], fires(codes)
    taken = present.multiply(active[:, own])
    silent = np.asarray((taken - taken.multiply(active[:, other])).sum(0)).ravel()
    firings = np.diff(present.indptr)
    return carries * silent / np.maximum(firings, 1), firings


def composed(rows: np.ndarray, dictionary: np.ndarray) -> np.ndarray:
    """[m] whether each unit row is closer to the sum of two true features than to any one of them (cosine ≥ 0.8).

    Args:
        rows: [m, d] unit decoder rows.
        dictionary: [f, d] true directions, f ≥ 2.
    """
    near = min(_CANDIDATES, len(dictionary))
    first, second = np.triu_indices(near, 1)
    out = np.zeros(len(rows), bool)
    for i in range(0, len(rows), _BLOCK):
        cosine = rows[i : i + _BLOCK] @ dictionary.T
        top = np.argpartition(-cosine, near - 1, axis=1)[:, :near]
        value = np.take_along_axis(cosine, top, 1)
        w = dictionary[top]
        gram = np.einsum("bid,bjd->bij", w, w)[:, first, second]
        pair = (value[:, first] + value[:, second]) / np.sqrt(np.maximum(2 + 2 * gram, 1e-9))
        best = pair.max(1)
        out[i : i + _BLOCK] = (best >= _SUM) & (best > value.max(1) + 1e-6)
    return out


def recovered(rows: np.ndarray, dictionary: np.ndarray) -> np.ndarray:
    """[f] whether each feature is the nearest one of some row, at a cosine above 0.9: what the SAE tells apart."""
    out = np.zeros(len(dictionary), bool)
    for i in range(0, len(rows), _BLOCK):
        cosine = rows[i : i + _BLOCK] @ dictionary.T
        out[cosine.argmax(1)[cosine.max(1) > RECOVERED]] = True
    return out


def fires(codes: Codes) -> csc_matrix:
    """[n, width] 1 where a code is active; columns are cheap."""
    return csc_matrix(csr_matrix((np.ones(len(codes.values), np.int32), codes.indices, codes.indptr), shape=(codes.n, codes.d_sae)))
