"""Which latents to read: orders of latents by how well each separates two classes (Gurnee et al. 2023, arXiv 2305.01610)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Integer

from bench.kernels.logistic import l1_logistic, many_logistic
from bench.kernels.probes import rank_by_difference, standardised

_BINS = 4  # of the non-zero codes; zero is a bin of its own
_POOL = 512  # latents that adaptive thresholding begins with


def mean_difference(f: sp.csr_matrix, y: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """|mean on positives − mean on negatives| of every latent."""
    return np.abs(_mean(f[y]) - _mean(f[~y]))


def f_statistic(f: sp.csr_matrix, y: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """One-way ANOVA F of every latent between the two classes; 0 where a latent is constant, infinite where it separates."""
    between, within = np.zeros(width(f)), np.zeros(width(f))
    mean = _mean(f)
    for rows in (f[y], f[~y]):
        n, own = len(rows.indptr) - 1, _mean(rows)
        between += n * np.square(own - mean)
        within += np.maximum(n * (_mean(rows.multiply(rows).tocsr()) - np.square(own)), 0)
    tiny = 1e-12 * np.maximum(within + between, 1e-300)
    return np.where(between <= tiny, 0.0, between * (len(y) - 2) / np.maximum(within, tiny))


def mutual_information(f: sp.csr_matrix, y: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Mutual information, in nats, of the class with each latent's code in five bins: zero, and quarters of the rest."""
    columns = sp.csc_matrix(f)
    columns.eliminate_zeros()
    m, size = width(f), np.diff(columns.indptr)
    column = np.repeat(np.arange(m), size)
    order = np.lexsort((columns.data, column))
    place = np.arange(len(order)) - np.repeat(columns.indptr[:-1], size)
    tied = np.zeros(len(order), dtype=bool)
    tied[1:] = (np.diff(columns.data[order]) == 0) & (np.diff(column) == 0)
    place = np.maximum.accumulate(np.where(tied, 0, place + columns.indptr[column])) - columns.indptr[column]  # equal codes, one bin
    bins = 1 + _BINS * place // np.repeat(size, size)
    count = np.zeros((m, _BINS + 1, 2))
    np.add.at(count, (column, bins, y[columns.indices[order]].astype(np.int64)), 1)
    count[:, 0] = np.array([(~y).sum(), y.sum()]) - count[:, 1:].sum(1)
    p = count / len(y)
    expected = p.sum(2, keepdims=True) * p.sum(1, keepdims=True)
    return (p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, expected, 1))).sum((1, 2))


def l1_weight(f: sp.csr_matrix, y: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """|weight| of every latent in one L1 logistic regression on all of them."""
    return np.abs(l1_logistic(f, y[:, None], np.ones((len(y), 1), bool))[0])


def adaptive_thresholding(f: sp.csr_matrix, y: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Order in which latents drop out when probes are fitted again and again on the better half of their latents.

    Begins with the 512 latents of the largest mean difference; the rest keep their place behind them.
    """
    first = mean_difference(f, y)
    score = first / max(float(first.max()), 1e-300) - 1  # below every latent that takes part
    left = np.argsort(-first, kind="stable")[:_POOL]
    done = 0
    while len(left) > 1:
        a, _ = standardised(f[:, left].toarray().astype(np.float64), np.zeros((0, len(left))))
        weight = np.abs(many_logistic(a, y[:, None], tolerance=1e-5)[0][0])
        order = np.argsort(weight, kind="stable")
        out = order[: (len(left) + 1) // 2]
        score[left[out]] = done + 1 + np.arange(len(out))
        done += len(out)
        left = left[np.sort(order[len(out) :])]
    score[left] = done + 1
    return score


RANKINGS: dict[str, Callable[[sp.csr_matrix, np.ndarray], np.ndarray]] = {
    "difference": mean_difference,
    "f_statistic": f_statistic,
    "mutual_information": mutual_information,
    "l1": l1_weight,
    "adaptive": adaptive_thresholding,
}


def ranked(name: str, f: sp.csr_matrix, y: Bool[np.ndarray, " n"], most: int) -> Integer[np.ndarray, " k"]:
    """The `most` best latents of training rows, best first; equals by mean difference, then by index.

    Args:
        name: One of `RANKINGS`.
        f: [n, m] training codes.
        y: [n] class.
        most: How many to return.
    """
    first = np.argsort(rank_by_difference(np.stack([_mean(f[~y]), _mean(f[y])])))
    return np.lexsort((first, -RANKINGS[name](f, y)))[:most]


def width(f: sp.csr_matrix) -> int:
    """Number of columns."""
    return int((f.shape or (0, 0))[1])


def _mean(f: sp.csr_matrix) -> np.ndarray:
    return np.asarray(f.astype(np.float64).sum(axis=0)).ravel() / (len(f.indptr) - 1)
