"""Two dictionaries row by row: the most similar row of the other, and partners one to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from bench.kernels.cosine import unit

MOST_DENSE = 8192
NEAREST = 32


@dataclass(frozen=True)
class Matched:
    """How well each row of one dictionary is found in another.

    Args:
        best: [n] largest cosine to any row of the other; a row of the other may serve many.
        matched: [n] cosine to the row's partner where no row has two; 0 without a partner.
    """

    best: Float[np.ndarray, " n"]
    matched: Float[np.ndarray, " n"]


def match(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], most_dense: int = MOST_DENSE, nearest: int = NEAREST, block: int = 256
) -> Matched:
    """Rows of `a` matched to rows of `b`, at most one to one, so that the sum of cosines is the largest.

    A row without a partner counts 0, so no pair with a negative cosine is ever made. Up to 8,192 rows the matching is
    exact (Hungarian method on all cosines). Above, a row may be paired with its 32 nearest only: each row is given a
    place of its own to go to at cosine 0, so a full matching of the sparse graph exists, and rows that end there have
    no partner.

    Args:
        a: [n, d] rows, any norm; n ≥ 1.
        b: [m, d] rows, any norm; m ≥ 1.
        most_dense: Largest number of rows, in either, that is matched on all cosines.
        nearest: Candidates per row above that.
        block: Rows compared at a time; bounds memory, never changes the value.

    Example:
        >>> found = match(torch.eye(2), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        >>> found.best.tolist(), found.matched.tolist()
        ([1.0, 0.0], [1.0, 0.0])
    """
    u, v = unit(a.detach()), unit(b.detach())
    best, matched = _dense(u, v, block) if max(len(u), len(v)) <= most_dense else _sparse(u, v, nearest, block)
    return Matched(np.clip(best, -1, 1), np.clip(matched, 0, 1) + 0.0)  # no negative zero


def _dense(a: Tensor, b: Tensor, block: int) -> tuple[np.ndarray, np.ndarray]:
    """On all cosines. SciPy works on one float64 matrix with the smaller side as rows: given that, it makes no copy."""
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    cost = np.empty((len(few), len(many)))
    for i in range(0, len(few), block):
        cost[i : i + block] = -(few[i : i + block] @ many.T).cpu().numpy()
    best = -cost.min(axis=1 if few is a else 0)
    np.minimum(cost, 0, out=cost)
    rows, cols = linear_sum_assignment(cost)
    matched = np.zeros(len(a))
    matched[rows if few is a else cols] = -cost[rows, cols]
    return best, matched


def _sparse(a: Tensor, b: Tensor, nearest: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """On each row's nearest."""
    n, m, k = len(a), len(b), min(nearest, len(b))
    cosine, at = np.empty((n, k), dtype=np.float32), np.empty((n, k), dtype=np.int32)
    room = a.new_empty(min(block, n) * m)
    for i in range(0, n, block):
        part = a[i : i + block]
        s = torch.mm(part, b.T, out=room[: len(part) * m].view(len(part), m))
        values, indices = s.topk(k, dim=1)
        cosine[i : i + block], at[i : i + block] = values.cpu().numpy(), indices.cpu().numpy()
    return cosine[:, 0].astype(np.float64), partners(at, np.maximum(cosine, 0), m)[1]


def partners(at: Integer[np.ndarray, "n k"], cosine: Float[np.ndarray, "n k"], m: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows matched one to one among a few candidates each, so that the sum of cosines is the largest.

    Each row has a place of its own to go to at cosine 0, so a full matching exists. Costs are 2 − cosine, since the
    solver reads a cost of 0 as no edge.

    Args:
        at: [n, k] candidates of each row.
        cosine: [n, k] their cosines, none negative.
        m: Number of rows that are candidates.

    Returns:
        [n] partner of each row, m or more where it has none, and [n] its cosine, 0 where it has none.
    """
    n, k = at.shape
    own = (m + np.arange(n, dtype=at.dtype))[:, None]
    cost = np.concatenate([2 - cosine.astype(np.float64), np.full((n, 1), 2.0)], axis=1)
    graph = sp.csr_matrix((cost.ravel(), np.hstack([at, own]).ravel(), np.arange(0, n * (k + 1) + 1, k + 1)), shape=(n, m + n))
    rows, cols = min_weight_full_bipartite_matching(graph)
    partner, value = np.empty(n, np.int64), np.zeros(n)
    partner[rows], value[rows] = cols, 2 - np.asarray(graph[rows, cols]).ravel()
    return partner, value
