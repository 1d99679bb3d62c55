"""Cosines between decoder rows: nearest neighbours, the level of random rows, spectrum. Never m × m in memory."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from bench.kernels.orthogonality import nearest

_SAMPLE_ROWS = 2048


def unit(w: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """Rows scaled to norm 1; zero rows stay zero."""
    n = w.norm(dim=1, keepdim=True)
    return w / torch.where(n == 0, 1.0, n)


def nearest_cosine(w: Float[Tensor, "m d"], block: int = 256) -> Float[Tensor, " m"]:
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


def nearest_in(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], block: int = 256) -> Float[Tensor, " n"]:
    """[rows of a] largest cosine of each row of `a` to any row of `b`."""
    other = unit(b).T
    return torch.cat([(part @ other).max(dim=1).values for part in unit(a).split(block)]).clamp(-1, 1)


def nearest_others(
    w: Float[np.ndarray, "m d"], rows: Integer[np.ndarray, " q"], among: Integer[np.ndarray, " c"], count: int, block: int = 256
) -> tuple[Integer[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """The most similar other rows of some rows.

    Args:
        w: [m, d] rows of unit norm.
        rows: [q] rows asked about.
        among: [c] rows that may be named, a row itself never.
        count: How many; fewer where there are not so many others.
        block: Rows compared at a time; bounds memory, never changes the value.

    Returns:
        [q, k] rows, the most similar first, and their cosines.
    """
    k, absent = max(0, min(count, len(among) - 1)), np.ones(len(w), dtype=bool)
    absent[among] = False
    found, cosines = np.empty((len(rows), k), dtype=np.int64), np.empty((len(rows), k), dtype=np.float32)
    for i in range(0, len(rows), block):
        part = rows[i : i + block]
        s = w[part] @ w.T
        s[:, absent] = -np.inf
        s[np.arange(len(part)), part] = -np.inf
        some = np.sort(np.argpartition(-s, k, axis=1)[:, :k], axis=1)
        order = np.argsort(-np.take_along_axis(s, some, axis=1), axis=1, kind="stable")
        found[i : i + block] = best = np.take_along_axis(some, order, axis=1)
        cosines[i : i + block] = np.take_along_axis(s, best, axis=1)
    return found, cosines


def both_ends(
    w: Float[np.ndarray, "m d"], row: int, among: Integer[np.ndarray, " c"], nearest: int, opposite: int
) -> tuple[Integer[np.ndarray, " k"], Integer[np.ndarray, " l"], Float[np.ndarray, " m"]]:
    """The rows most similar to one row, and those that point away from it most.

    Args:
        w: [m, d] rows of unit norm, or zero.
        row: The row asked about; it is never named.
        among: [c] rows that may be named.
        nearest: How many of the most similar; fewer where there are not so many others.
        opposite: How many of those with a negative cosine.

    Returns:
        [k] the most similar first; [l] those with the most negative cosine first; [m] the cosines of all rows.

    Example:
        >>> w = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
        >>> both_ends(w, 0, np.arange(4), 2, 3)[:2]
        (array([1, 3]), array([2]))
    """
    cosines = np.clip(w @ w[row], -1, 1)
    others = among[among != row]
    order = others[np.argsort(-cosines[others], kind="stable")]
    away = order[::-1][:opposite]
    return order[:nearest], away[cosines[away] < 0], cosines


def random_level(m: int, d: int, seed: int = 0) -> float:
    """Mean nearest cosine of m random directions in d dimensions, estimated from at most 2,048 of them.

    A level to compare with, not a lower bound: a dictionary can be trained below it.
    """
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(seed))
    if m <= _SAMPLE_ROWS:
        return float(nearest_cosine(rows).mean())
    some, rest = unit(rows[:_SAMPLE_ROWS]), unit(rows[_SAMPLE_ROWS:])
    return float(torch.maximum(nearest(some)[0], nearest_in(some, rest)).mean())


def spectrum(w: Float[Tensor, "m d"]) -> dict[str, float]:
    """Effective rank exp(entropy) and participation ratio of the Gram matrix's eigenvalues, through d × d.

    Example:
        >>> spectrum(torch.eye(4))
        {'effective_rank': 4.0, 'participation_ratio': 4.0}
    """
    gram = w.new_zeros((w.shape[1], w.shape[1]), dtype=torch.float64)
    for part in unit(w).split(_SAMPLE_ROWS):  # so that no whole dictionary is held in double precision
        gram += part.double().T @ part.double()
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    p = eigenvalues / eigenvalues.sum()
    entropy = -(p * torch.log(p.clamp(min=1e-300))).sum()
    return {"effective_rank": round(float(entropy.exp()), 9), "participation_ratio": round(float(1 / p.square().sum()), 9)}
