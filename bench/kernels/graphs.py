"""Graphs of similar decoder rows: the closest pairs by one pass over all pairs, covers, components, clustering."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int32, Integer, UInt8
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from bench.kernels.cosine import unit
from bench.kernels.orthogonality import tiles

_NONE = -2.0  # below every cosine
_TIE = 1e-6  # cosines this close are equal: rounding must not choose among duplicates
_FEW = 1 << 20  # pairs that are all gathered, without a guess of what is wanted
_SAMPLE_ROWS = 256
_MARGIN = 1.5
_UNSEEN = 255
_Parts = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Pairs:
    """The closest pairs of rows of a dictionary, in no particular order.

    Args:
        a: [e] one row of each pair.
        b: [e] the other.
        cosine: [e] their cosine.
        m: Number of rows.
        bound: Every pair with a cosine above it is held, and no other.
    """

    a: Int32[np.ndarray, " e"]
    b: Int32[np.ndarray, " e"]
    cosine: Float[np.ndarray, " e"]
    m: int
    bound: float

    def above(self, tau: float) -> sp.csr_matrix | None:
        """[m, m] symmetric graph of the pairs with cosine > τ, or None when not all of them are held."""
        if tau < self.bound:
            return None
        at = self.cosine > tau
        a, b = self.a[at], self.b[at]
        half = sp.csr_matrix((np.ones(len(a), dtype=bool), (a, b)), shape=(self.m, self.m))
        return (half + half.T).tocsr()

    def threshold(self, count: int) -> float | None:
        """Cosine of the `count`-th closest pair, less 1e-6 so that its ties are above; None when not all those are held."""
        if count == 0:
            return 2.0
        found = _largest(self.cosine, count) - _TIE
        return found if found >= self.bound and found > _NONE else None


@dataclass(frozen=True)
class Survey:
    """What one pass over all pairs of rows finds.

    Args:
        nearest: [m] cosine of each row to the most similar other row.
        nearest_inner: [n] the same among the inner rows, in their order.
        pairs: The closest pairs of all rows.
    """

    nearest: Float[np.ndarray, " m"]
    nearest_inner: Float[np.ndarray, " n"]
    pairs: Pairs


def survey(w: Float[Tensor, "m d"], inner: Bool[np.ndarray, " m"], lowest: float, count: int, most: int, block: int = 256) -> Survey:
    """Nearest cosines and closest pairs of rows, each product computed once.

    Args:
        w: [m, d] dictionary, rows of any norm.
        inner: [m] rows that are compared among themselves too.
        lowest: All pairs with a larger cosine are wanted, …
        count: … and this many of the closest, with their ties; …
        most: … but never more than this many pairs: then the least similar are left out and `Pairs.bound` says so.
        block: Rows compared at a time; bounds memory, never changes the value.

    Returns:
        Nearest cosines in [−1, 1] (−1 where there is no other row), and the pairs. No more than 2 · `most` pairs and
        those of one tile, at 12 bytes each, are in memory at a time.
    """
    order = torch.from_numpy(np.argsort(~inner, kind="stable"))  # inner rows first, so that theirs is one corner of the products
    v, n = unit(w[order]), int(inner.sum())
    guess = _guess(v, lowest, count, most)
    found = _pass(v, n, lowest, count, most, block, guess)
    if found.pairs.bound == guess:  # a misleading sample: more was wanted than lies above the guess
        found = _pass(v, n, lowest, count, most, block, _NONE)
    nearest = np.empty_like(found.nearest)
    nearest[order.numpy()] = found.nearest
    name, p = order.numpy().astype(np.int32), found.pairs
    return Survey(nearest, found.nearest_inner, Pairs(name[p.a], name[p.b], p.cosine, p.m, p.bound))


def _guess(v: Tensor, lowest: float, count: int, most: int) -> float:
    """A cosine below those of all wanted pairs, but for bad luck: from the products of every so many rows."""
    pairs = len(v) * (len(v) - 1) / 2
    if pairs <= _FEW:
        return _NONE - _TIE
    sample = (v[:: -(-len(v) // _SAMPLE_ROWS)] @ v.T).cpu().numpy()
    spare = len(sample) + 32  # each sampled row meets itself
    weakest, closest = (_largest(sample.reshape(-1), int(_MARGIN * k / pairs * sample.size) + spare) for k in (most, count))
    return max(weakest, min(closest, lowest)) - _TIE


def _pass(v: Tensor, n: int, lowest: float, count: int, most: int, block: int, bound: float) -> Survey:
    """All pairs once, those up to the given bound left out; the first n rows are the inner ones."""
    best, among = v.new_full((len(v),), -1.0), v.new_full((n,), -1.0)
    parts: _Parts = []
    held = 0
    for i, j, s in tiles(v, block):
        _raise(best, i, j, s)
        if j < n:
            _raise(among, i, j, s[: n - i, : n - j])
        parts.append(_gather(s.cpu().numpy(), i, j, bound))
        held += len(parts[-1][2])
        if held > 2 * most:
            bound, held = _prune(parts, bound, lowest, count, most)
    bound, _ = _prune(parts, bound, lowest, count, most)
    a, b, cosine = (np.concatenate([p[k] for p in parts]) for k in range(3))
    return Survey(best.clamp(max=1).cpu().numpy(), among.clamp(max=1).cpu().numpy(), Pairs(a, b, cosine, len(v), bound))


def _raise(best: Tensor, i: int, j: int, s: Tensor) -> None:
    """Both sides of one tile: its rows against its columns."""
    r, c = s.shape
    torch.maximum(best[i : i + r], s.amax(1), out=best[i : i + r])
    torch.maximum(best[j : j + c], s.amax(0), out=best[j : j + c])


def _gather(s: np.ndarray, i: int, j: int, bound: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a tile above the bound, each once."""
    flat = np.flatnonzero(s > bound)
    r, c = np.divmod(flat, s.shape[1])
    found = s.reshape(-1)[flat]
    a, b = (r + i).astype(np.int32), (c + j).astype(np.int32)
    once = a < b
    return (a, b, found) if once.all() else (a[once], b[once], found[once])


def _prune(parts: _Parts, bound: float, lowest: float, count: int, most: int) -> tuple[float, int]:
    """Throw out, in place, the pairs that cannot be wanted; the new bound and the number of pairs left."""
    cosines = np.concatenate([p[2] for p in parts])
    over = _largest(cosines, most + 1)
    bound = max(bound, over, min(_largest(cosines, count) - _TIE if count else 2.0, lowest))
    for k, (a, b, cosine) in enumerate(parts):
        at = cosine > bound
        parts[k] = (a[at], b[at], cosine[at])
    return bound, sum(len(p[2]) for p in parts)


def _largest(x: np.ndarray, k: int) -> float:
    """The k-th largest, or −2 when there are fewer."""
    return float(np.partition(x, len(x) - k)[len(x) - k]) if k <= len(x) else _NONE


def greedy_cover(graph: sp.csr_matrix, priority: Integer[np.ndarray, " m"]) -> int:
    """Number of latents needed so that every latent is one of them or adjacent to one, chosen greedily.

    Repeatedly takes the latent that covers most uncovered ones, itself included.

    Args:
        graph: [m, m] symmetric adjacency.
        priority: [m] distinct ranks; among equals the smaller rank is taken.
    """
    gain = np.diff(graph.indptr) + 1
    uncovered = gain > 1
    chosen = int((~uncovered).sum())  # a latent without neighbours covers itself and nobody else does
    heap = [(-int(gain[i]), int(priority[i]), int(i)) for i in np.flatnonzero(uncovered)]
    heapq.heapify(heap)
    left = len(heap)
    while left:
        old, rank, i = heapq.heappop(heap)
        near = graph.indices[graph.indptr[i] : graph.indptr[i + 1]]
        now = int(np.count_nonzero(uncovered[near])) + int(uncovered[i])
        if now == 0:
            continue
        if now < -old:  # gains only shrink, so a stale entry is an upper bound: put it back with its true gain
            heapq.heappush(heap, (-now, rank, i))
            continue
        chosen += 1
        left -= now
        uncovered[near] = False
        uncovered[i] = False
    return chosen


def components(graph: sp.csr_matrix) -> int:
    """Number of connected components."""
    return int(connected_components(graph, directed=False)[0])


@dataclass(frozen=True)
class Clustering:
    """Clustering of the graph of the closest pairs.

    Args:
        edges: Pairs in the graph, ties with the last one included.
        triangles: Latents that are pairwise adjacent, three at a time.
        triples: Paths of two edges: Σ_i deg_i (deg_i − 1) / 2.
    """

    edges: int
    triangles: int
    triples: int

    @property
    def coefficient(self) -> float | None:
        """C = 3 · triangles / triples; None when no two edges meet."""
        return 3 * self.triangles / self.triples if self.triples else None


def clustering(pairs: Pairs, counts: Sequence[int]) -> list[Clustering]:
    """Clustering of the graphs of the `counts` closest pairs, all counted in one go.

    Every edge has a level: the first graph that holds it. A triangle enters with its last edge.

    Args:
        pairs: Closest pairs.
        counts: Numbers of edges, ascending, at most 254 of them.

    Returns:
        One for each count, as long as all its pairs are held: the list may be shorter than `counts`.
    """
    thresholds = [t for c in counts if (t := pairs.threshold(c)) is not None]
    level = np.zeros(len(pairs.cosine), dtype=np.uint8)
    for t in thresholds:
        level += pairs.cosine <= t
    kept = level < len(thresholds)
    a, b, level = pairs.a[kept], pairs.b[kept], level[kept]
    triangles = np.cumsum(_triangles(a, b, level, pairs.m, len(thresholds))).tolist()
    out: list[Clustering] = []
    for k, closed in enumerate(triangles):
        at = level <= k
        degree = _degrees(a[at], b[at], pairs.m)
        out.append(Clustering(int(at.sum()), closed, int((degree * (degree - 1) // 2).sum())))
    return out


def _degrees(a: np.ndarray, b: np.ndarray, m: int) -> np.ndarray:
    return np.bincount(a, minlength=m) + np.bincount(b, minlength=m)


def _triangles(
    a: Int32[np.ndarray, " e"], b: Int32[np.ndarray, " e"], level: UInt8[np.ndarray, " e"], m: int, levels: int
) -> Integer[np.ndarray, " levels"]:
    """[levels] triangles by the largest level of their three edges.

    Edges point from the latent of smaller degree to that of larger (ties by number), so every triangle is found once,
    at its first latent, and no latent has more than √(2e) edges to follow.
    """
    rank = np.empty(m, dtype=np.int32)
    rank[np.argsort(_degrees(a, b, m), kind="stable")] = np.arange(m, dtype=np.int32)
    a, b = rank[a], rank[b]
    up = sp.csr_matrix((level, (np.minimum(a, b), np.maximum(a, b))), shape=(m, m))
    mark = np.full(m, _UNSEEN, dtype=np.uint8)
    found = np.zeros(levels, dtype=np.int64)
    for v in np.flatnonzero(np.diff(up.indptr) > 1):
        at = slice(up.indptr[v], up.indptr[v + 1])
        near, own = up.indices[at], up.data[at]
        mark[near] = own
        steps = up[near]
        closing = mark.take(steps.indices)
        hit = np.flatnonzero(closing != _UNSEEN)
        first = own[np.searchsorted(steps.indptr, hit, side="right") - 1]
        found += np.bincount(np.maximum(np.maximum(first, steps.data[hit]), closing[hit]), minlength=levels)
        mark[near] = _UNSEEN
    return found
