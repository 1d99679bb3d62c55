"""Multi-dimensional features: clusters of similar decoder rows, and whether a plane of points is irreducible."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int64, Integer
from scipy.sparse.csgraph import connected_components
from scipy.special import xlogy
from torch import Tensor

from bench.kernels.cosine import unit

_COSINE_BINS = 20_000  # of width 1e-4 on [−1, 1]
_RANK = 1e-10  # a component with a smaller share of the variance is rounding, not a dimension
_AT_ONCE = 1 << 15  # rotated points worked on at a time
_COARSE = 1_000  # points that the search for a strip looks at


def neighbours(
    w: Float[Tensor, "m d"], k: int, block: int = 256
) -> tuple[Float[np.ndarray, "m k"], Int64[np.ndarray, "m k"], Int64[np.ndarray, " _"]]:
    """The k most similar other rows of every row, and a histogram of all pairwise cosines.

    Args:
        w: [m, d] rows, any norm; m > k.
        k: Neighbours per row, at least 1; the row itself is not one of them.
        block: Rows compared at a time; bounds memory, never changes the value.

    Returns:
        ([m, k] cosines, largest first; [m, k] their rows; [20,000] counts of ordered pairs over [−1, 1]).
    """
    v = unit(w)
    m = len(v)
    cosines, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
    counts = np.zeros(_COSINE_BINS)
    room = v.new_empty(min(block, m) * m)
    for i in range(0, m, block):
        part = v[i : i + block]
        s = torch.mm(part, v.T, out=room[: len(part) * m].view(len(part), m)).clamp_(-1, 1)
        s[:, i:].diagonal().fill_(-2.0)  # the row itself: below every cosine and outside the histogram
        counts += torch.histc(s, _COSINE_BINS, -1, 1).cpu().numpy()
        best = s.topk(k, dim=1)
        cosines[i : i + block], rows[i : i + block] = best.values.cpu().numpy(), best.indices.cpu().numpy()
    return cosines, rows, counts.round().astype(np.int64)


def cosine_quantile(counts: Integer[np.ndarray, " bins"], q: float) -> float:
    """Quantile of pairwise cosines from their histogram on [−1, 1]: the upper edge of the bin that holds it."""
    reached = np.searchsorted(np.cumsum(counts), q * counts.sum())
    return float(-1 + 2 * (min(int(reached), len(counts) - 1) + 1) / len(counts))


def linked(cosines: Float[np.ndarray, "m k"], rows: Int64[np.ndarray, "m k"], cutoff: float, mutual: bool) -> list[np.ndarray]:
    """Connected components of the graph that joins rows to their neighbours with cosine > cutoff.

    Args:
        cosines: [m, k] cosines of each row to its neighbours.
        rows: [m, k] the neighbours.
        cutoff: Cosine that an edge must exceed.
        mutual: Join two rows only where each is a neighbour of the other, not where one of them is.

    Returns:
        Row indices of every component of two or more rows, ascending within each.
    """
    m, k = cosines.shape
    kept = np.flatnonzero(cosines.ravel() > cutoff)
    graph = sp.csr_matrix((np.ones(len(kept), dtype=np.int8), (kept // k, rows.ravel()[kept])), shape=(m, m))
    component = connected_components(graph.multiply(graph.T) if mutual else graph, directed=False)[1]
    order = np.argsort(component, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return [p for p in parts if len(p) > 1]


def principal(f: sp.csr_matrix, w: Float[np.ndarray, "k d"], most: int) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, " c"]]:
    """Coordinates of the points f·W on their leading principal components, without forming the points.

    Args:
        f: [n, k] codes of one cluster's latents, n ≥ 1.
        w: [k, d] their decoder rows.
        most: Components at most.

    Returns:
        ([n, c] centred float64 coordinates, [c] share of the variance along each), largest first; c is smaller than
        `most` where the points lie in fewer dimensions. Signs are fixed by a component's largest entry in the
        space of w.
    """
    basis = np.linalg.qr(w.astype(np.float64).T)[0]
    inside = w @ basis
    codes = sp.csr_matrix(f, dtype=np.float64)
    mean = np.asarray(codes.mean(axis=0)).ravel()
    spread = (codes.T @ codes).toarray() / len(f.indptr[1:]) - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(inside.T @ spread @ inside)
    variance = float(values.clip(min=0).sum())
    real = values > _RANK * (variance + float(np.square(mean @ inside).sum()))  # of the points' mean squared norm
    values, vectors = values[real][::-1][:most], vectors[:, real][:, ::-1][:, :most]
    axes = basis @ vectors
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(values))])
    loading = inside @ (vectors * signs)
    return codes @ loading - mean @ loading, values / variance


def mutual_information(x: Integer[np.ndarray, "a n"], y: Integer[np.ndarray, "a n"], bins: int) -> Float[np.ndarray, " a"]:
    """[a] plug-in mutual information in bits of a pairs of binned variables, values in 0 … bins − 1."""
    a, n = x.shape
    cell = (np.arange(a)[:, None] * bins + x) * bins + y
    joint = np.bincount(cell.ravel(), minlength=a * bins * bins).reshape(a, bins, bins)
    plogp = xlogy(np.arange(n + 1), np.arange(n + 1)) / np.log(2)  # of integers, so equal histograms have equal values
    parts = plogp[joint].sum(axis=(1, 2)) - plogp[joint.sum(axis=2)].sum(axis=1) - plogp[joint.sum(axis=1)].sum(axis=1)
    return np.maximum(parts / n + np.log2(n), 0.0)


def separability(
    xy: Float[np.ndarray, "n 2"], rng: np.random.Generator, rotations: int = 100, shuffles: int = 20, bins: int = 10
) -> tuple[float, float]:
    """Separability index of points in a plane: how dependent two coordinates stay whichever axes are chosen.

    S = min over rotations of I(x; y) in bits, from a histogram of bins × bins equal cells between the smallest and the
    largest value of each coordinate (Engels et al. 2024, arXiv 2405.14860, separability index). A histogram of few
    points shows dependence where there is none, so the mean over copies at the same rotation with one column
    shuffled is taken off, and the rest floored at 0. Axes turned by 90° give the same histogram, so rotations
    are spread over [0°, 90°).

    Args:
        xy: [n, 2] points, n ≥ 1.
        rng: Shuffles.
        rotations: Number of rotations.
        shuffles: Number of shuffled copies.
        bins: Cells per axis.

    Returns:
        (corrected, uncorrected) index in bits.
    """
    angles = np.arange(rotations) * (np.pi / 2 / rotations)
    step = max(1, _AT_ONCE // len(xy))
    found = [mutual_information(*_binned(xy, angles[i : i + step], bins), bins) for i in range(0, rotations, step)]
    information = np.concatenate(found)
    best = int(information.argmin())
    x, y = _binned(xy, angles[best : best + 1], bins)
    copies = rng.permuted(np.repeat(y, shuffles, axis=0), axis=1)
    chance = mutual_information(np.repeat(x, shuffles, axis=0), copies, bins).mean()
    return max(0.0, float(information[best] - chance)), float(information[best])


def mixture(xy: Float[np.ndarray, "n 2"], epsilon: float = 0.1, directions: int = 60) -> float:
    """ε-mixture index of points in a plane: the largest share of them that one thin strip can hold.

    M = max over v, c of P(|v·f + c| < ε √E(v·f + c)²) (Engels et al. 2024, arXiv 2405.14860, ε-mixture index). It does
    not change under linear maps, so the points are whitened first. Where u = v·f has mean 0 and variance 1, the
    inequality is |t − τ| < artanh ε with t = arsinh(u / √(1 − ε²)) and τ any number, so the best c of a direction is
    found exactly: the fullest window of width 2 artanh ε over the sorted t. Directions are a grid over 180°, then
    two rounds of finer steps around its three best, both with at most 1,000 evenly spaced points; the three
    directions reached are measured with all points. A search finds a lower bound of the maximum.

    Args:
        xy: [n, 2] points, n ≥ 1.
        epsilon: Half width of the strip in root mean squares, below 1.
        directions: Directions of the grid.

    Returns:
        Share of the points in [0, 1]; 1 where all points lie on a line.
    """
    centred = xy - xy.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred / len(xy))
    if values[0] <= _RANK * values[1]:
        return 1.0
    z = centred @ (axes / np.sqrt(values))
    few, width = z[:: -(-len(z) // _COARSE)], np.pi / directions
    grid = width * np.arange(directions)
    best = grid[np.argsort(-_fullest_strips(few, grid, epsilon), kind="stable")[:3]]
    for step in (width / 4, width / 16):
        tried = best[:, None] + step * np.arange(-3, 4)
        shares = _fullest_strips(few, tried.ravel(), epsilon).reshape(tried.shape)
        best = tried[np.arange(len(best)), shares.argmax(axis=1)]
    return float(_fullest_strips(z, best, epsilon).max())


def _binned(xy: np.ndarray, angles: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of both coordinates after each rotation, two arrays [a, n]."""
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return _cells(c * xy[:, 0] + s * xy[:, 1], bins), _cells(c * xy[:, 1] - s * xy[:, 0], bins)


def _cells(x: np.ndarray, bins: int) -> np.ndarray:
    low = x.min(axis=1, keepdims=True)
    width = x.max(axis=1, keepdims=True) - low
    return np.minimum((x - low) * (bins / np.where(width == 0, 1, width)), bins - 1).astype(np.int64)


def _fullest_strips(z: np.ndarray, angles: np.ndarray, epsilon: float) -> np.ndarray:
    """[a] share of whitened points in the fullest strip across each direction."""
    u = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ z.T
    t = np.sort(np.arcsinh(u / np.sqrt(1 - epsilon * epsilon)), axis=1)
    t += (1 + t.max() - t.min()) * np.arange(len(angles))[:, None]  # rows one after the other: one ascending list
    width = 2 * np.arctanh(epsilon)
    below = np.searchsorted(t.ravel(), t.ravel() - width, side="right").reshape(t.shape)
    return (np.arange(1, t.size + 1).reshape(t.shape) - below).max(axis=1) / len(z)
