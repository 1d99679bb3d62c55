"""Cosines between decoder rows: nearest neighbours, pairs above a threshold, covers, spectrum. Never m × m in memory."""

from __future__ import annotations

import heapq

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Integer
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from bench.kernels.orthogonality import nearest

_SAMPLE_ROWS = 2048


def unit(w: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """Rows scaled to norm 1; zero rows stay zero."""
    n = w.norm(dim=1, keepdim=True)
    return w / torch.where(n == 0, 1.0, n)


def nearest_cosine(w: Float[Tensor, "m d"], block: int = 1024) -> Float[Tensor, " m"]:
    """Cosine similarity of each row to the most similar *other* row.

    Args:
        w: [m, d] dictionary, one direction per row; rows need not be unit norm; m ≥ 2.
        block: Rows compared at a time; bounds memory, never changes the value.

    Returns:
        [m] maximum over j ≠ i of cos(w_i, w_j), in [−1, 1].

    Example:
        >>> nearest_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        tensor([0.7071, 0.7071, 0.7071])
    """
    return nearest(unit(w), block)[0].clamp(-1, 1)


def nearest_in(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], block: int = 1024) -> Float[Tensor, " n"]:
    """[rows of a] largest cosine of each row of `a` to any row of `b`."""
    other = unit(b).T
    return torch.cat([(part @ other).max(dim=1).values for part in unit(a).split(block)]).clamp(-1, 1)


def random_level(m: int, d: int, seed: int = 0) -> float:
    """Mean nearest cosine of m random directions in d dimensions, estimated from at most 2,048 of them.

    A level to compare with, not a lower bound: a dictionary can be trained below it.
    """
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(seed))
    if m <= _SAMPLE_ROWS:
        return float(nearest_cosine(rows).mean())
    some, rest = unit(rows[:_SAMPLE_ROWS]), unit(rows[_SAMPLE_ROWS:])
    return float(torch.maximum(nearest(some)[0], nearest_in(some, rest)).mean())


def pairs_above(w: Float[Tensor, "m d"], tau: float, most: int, block: int = 1024) -> sp.csr_matrix | None:
    """Symmetric graph of the pairs of rows with cosine > τ ≥ 0, or None when there are more than `most` pairs."""
    v = unit(w)
    rows, cols, found = [], [], 0
    for i in range(0, len(v), block):
        s = (v[i : i + block] @ v[i:].T).triu(diagonal=1).cpu().numpy()
        r, c = np.nonzero(s > tau)
        found += len(r)
        if found > most:
            return None
        rows.append(r + i)
        cols.append(c + i)
    r, c = np.concatenate(rows), np.concatenate(cols)
    half = sp.csr_matrix((np.ones(len(r), dtype=bool), (r, c)), shape=(len(v), len(v)))
    return (half + half.T).tocsr()


def greedy_cover(graph: sp.csr_matrix, priority: Integer[np.ndarray, " m"]) -> int:
    """Number of latents needed so that every latent is one of them or adjacent to one, chosen greedily.

    Repeatedly takes the latent that covers most uncovered ones, itself included.

    Args:
        graph: [m, m] symmetric adjacency.
        priority: [m] distinct ranks; among equals the smaller rank is taken.
    """
    m = len(priority)
    uncovered = np.ones(m, dtype=bool)
    gain = np.diff(graph.indptr) + 1
    heap = [(-int(gain[i]), int(priority[i]), i) for i in range(m)]
    heapq.heapify(heap)
    chosen = 0
    while uncovered.any():
        old, rank, i = heapq.heappop(heap)
        near = graph.indices[graph.indptr[i] : graph.indptr[i + 1]]
        now = int(uncovered[near].sum()) + int(uncovered[i])
        if now == 0:
            continue
        if now < -old:  # gains only shrink, so a stale entry is an upper bound: put it back with its true gain
            heapq.heappush(heap, (-now, rank, i))
            continue
        chosen += 1
        uncovered[near] = False
        uncovered[i] = False
    return chosen


def components(graph: sp.csr_matrix) -> int:
    """Number of connected components."""
    return int(connected_components(graph, directed=False)[0])


def spectrum(w: Float[Tensor, "m d"]) -> dict[str, float]:
    """Effective rank exp(entropy) and participation ratio of the Gram matrix's eigenvalues, through d × d.

    Example:
        >>> spectrum(torch.eye(4))
        {'effective_rank': 4.0, 'participation_ratio': 4.0}
    """
    v = unit(w).double()
    eigenvalues = torch.linalg.eigvalsh(v.T @ v).clamp(min=0)
    p = eigenvalues / eigenvalues.sum()
    entropy = -(p * torch.log(p.clamp(min=1e-300))).sum()
    return {"effective_rank": round(float(entropy.exp()), 9), "participation_ratio": round(float(1 / p.square().sum()), 9)}
