"""OrtSAE's penalty on decoder rows, with its analytic gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bench.kernels import arrays, products
from bench.kernels.screening import Pairs

_DELTA = 1e-8
_NONE = -2.0  # below every cosine
_BLOCK = 256
_SEGMENT = 64


def chunks_of(m: int, chunk_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A fresh random partition of m rows into ⌈m / chunk_size⌉ chunks whose sizes differ by at most one."""
    return torch.tensor_split(torch.randperm(m, generator=generator), -(-m // chunk_size))


def orthogonality(
    w: Float[Tensor, "m d"], chunks: tuple[Int64[Tensor, " _"], ...], block: int = _BLOCK
) -> tuple[Float[Tensor, ""], Float[Tensor, "m d"]]:
    """Mean over chunks of the mean squared largest cosine to another row of the chunk, and its gradient.

    L = (1/K) Σ_k (1/|C_k|) Σ_{i ∈ C_k} max(0, max_{j ∈ C_k, j ≠ i} cos(w_i, w_j))²   (arXiv 2509.22033, Eq. 3–5).
    The gradient of a maximum touches one pair per row, so it costs nothing beside the cosines; each block of the
    symmetric cosine matrix is computed once.

    Args:
        w: [m, d] rows, any norm.
        chunks: Index tensors that partition the rows.
        block: Rows compared at a time; bounds memory, never changes the value.

    Returns:
        The scalar value and its gradient [m, d].
    """
    gradient = torch.empty_like(w)
    total = w.new_zeros(())
    for chunk in chunks:
        c = chunk.to(w.device)
        v = w.index_select(0, c)
        norms = v.norm(dim=1, keepdim=True).clamp_(min=_DELTA)
        best, at = nearest(v.div_(norms), block)
        best = best.clamp_(min=0).unsqueeze(1)
        total = total + best.square().mean() / len(chunks)
        g = torch.zeros_like(v)
        for i in range(0, len(c), _BLOCK):  # a few rows at a time, which stay in the cache
            here, b, u, other = at[i : i + _BLOCK], best[i : i + _BLOCK], v[i : i + _BLOCK], v[at[i : i + _BLOCK]]
            weight = 2 * b / (len(c) * len(chunks))
            g[i : i + _BLOCK] += weight * (other - b * u)
            g.index_add_(0, here, weight * (u - b * other))
        gradient.index_copy_(0, c, g.div_(norms))
    return total, gradient


def nearest(v: Float[Tensor, "n d"], block: int = _BLOCK) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """For each unit row the largest inner product with another row, and which row that is.

    Maxima are taken over segments of 64 rows first, which costs next to nothing beside the products; the row is then
    looked up in its winning segment. Where products in bfloat16 are faster, they find the segments that can win, and
    these are worked out in full precision. On other devices than the CPU a maximum with its index is as cheap, and many small
    products are not: there segments are single rows, and tiles have 16 times the rows.

    Args:
        v: [n, d] unit rows, n ≥ 1. With n = 1 there is no other row: the value is −1, the index 0.
        block: Rows compared at a time; bounds memory, never changes the value.

    Returns:
        ([n], [n] int64); among equal maxima any of the rows.
    """
    if v.device.type == "cpu" and products.ways(v, v).bfloat16 and (found := _screened(v, block)) is not None:
        return found
    n = len(v)
    width, block = (math.gcd(block, _SEGMENT), block) if v.device.type == "cpu" else (1, 16 * block)
    padded = torch.nn.functional.pad(v, (0, 0, 0, -n % width))
    best = v.new_full((len(padded),), _NONE)
    segment = torch.zeros(len(padded), dtype=torch.long, device=v.device)
    for i, j, s in tiles(padded, block):
        s[n - i :], s[:, n - j :] = _NONE, _NONE  # padding is nobody's neighbour
        r, c = s.shape
        _improve(best[i : i + r], segment[i : i + r], s.view(r, c // width, width).amax(2).max(1), j // width)
        _improve(best[j : j + c], segment[j : j + c], s.view(r // width, width, c).amax(1).max(0), i // width)
    if width == 1:
        return best[:n].clamp(min=-1), segment[:n]
    rows = torch.arange(n)
    return best[:n].clamp(min=-1), _within(padded, rows, segment[:n], n, width)[1]


def _screened(v: Tensor, block: int) -> tuple[Tensor, Tensor] | None:
    """As `nearest`, by screening; None where some row's largest product is too small for it."""
    n = len(v)
    pairs = Pairs.of(torch.nn.functional.pad(v, (0, 0, 0, -n % _SEGMENT)))
    peaks = torch.empty(len(pairs.rows), len(pairs.rows) // _SEGMENT, dtype=torch.int16)  # bits of the largest score of a segment
    for i, j, s in tiles(pairs.rows, 2 * block):
        s[n - i :], s[:, n - j :] = _NONE, _NONE
        (r, c), bits = s.shape, s.view(torch.int16)  # positive numbers are compared as the integers that their bits spell
        peaks[i : i + r, j // _SEGMENT : (j + c) // _SEGMENT] = bits.view(r, -1, _SEGMENT).amax(2)
        peaks[j : j + c, i // _SEGMENT : (i + r) // _SEGMENT] = bits.view(-1, _SEGMENT, c).amax(1).T
    needed = pairs.needed(peaks[:n].amax(1).view(torch.bfloat16))
    if not bool((needed > 0).all()):
        return None
    row, segment = arrays.split(arrays.above(peaks[:n], needed.view(torch.int16)[:, None] - 1), peaks.shape[1])
    value, at = _within(v, row, segment, n, _SEGMENT)
    best = v.new_full((n,), _NONE).scatter_reduce_(0, row, value, "amax")
    won = arrays.nonzero(value == best.index_select(0, row))
    return best.clamp(min=-1), at.new_empty(n).index_copy_(0, row.index_select(0, won), at.index_select(0, won))


def tiles(v: Float[Tensor, "n d"], block: int = _BLOCK) -> Iterator[tuple[int, int, Float[Tensor, "r c"]]]:
    """Products of all pairs of rows, tile by tile: those on and right of the diagonal, since the matrix is symmetric.

    Tiles of 256 × 2,048 stay in the cache until their maxima are taken.

    Args:
        v: [n, d] rows.
        block: Rows of a tile; it has at most eight times as many columns.

    Yields:
        (i, j, products of rows i, i + 1, … with rows j, j + 1, …), −2 where a row meets itself. A tile with j = i
        holds pairs in both orders. The memory is used again for the next tile.
    """
    v = v.detach()
    n, wide = len(v), 8 * block
    room = v.new_empty(min(block, n) * min(wide, n))
    for i in range(0, n, block):
        for j in range(i, n, wide):
            a, b = v[i : i + block], v[j : j + wide]
            s = products.product(a, b, room[: len(a) * len(b)].view(len(a), len(b)))
            if i == j:
                s.diagonal().fill_(_NONE)
            yield i, j, s


def _improve(best: Tensor, at: Tensor, found: torch.return_types.max, offset: int) -> None:
    torch.where(found.values > best, found.indices + offset, at, out=at)
    torch.maximum(best, found.values, out=best)


def _within(v: Tensor, row: Tensor, segment: Tensor, n: int, width: int) -> tuple[Tensor, Tensor]:
    """For each pair of a row and a segment the largest product in it, the row itself and padding left out, and where."""
    order = arrays.order(segment, -(-n // width))
    rows, value, at = row.index_select(0, order), v.new_empty(len(row)), torch.empty_like(row)
    start = 0
    for k, count in enumerate(torch.bincount(segment).tolist()):
        some, here = rows[start : start + count], order[start : start + count]
        start += count
        if count:
            members = v[k * width : min((k + 1) * width, n)]
            s = v.index_select(0, some) @ members.T
            own = arrays.nonzero((some >= k * width) & (some < k * width + len(members)))
            s[own, some[own] - k * width] = _NONE
            largest = s.max(1)
            value.index_copy_(0, here, largest.values)
            at.index_copy_(0, here, largest.indices + k * width)
    return value, at
