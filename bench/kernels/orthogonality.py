"""OrtSAE's penalty on decoder rows, with its analytic gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

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
    norms = w.norm(dim=1, keepdim=True).clamp(min=_DELTA)
    unit = w / norms
    gradient = torch.zeros_like(w)
    total = w.new_zeros(())
    for c in chunks:
        v = unit[c]
        best, at = nearest(v, block)
        best = best.clamp(min=0)
        total = total + best.square().mean() / len(chunks)
        weight = (2 * best / (len(c) * len(chunks))).unsqueeze(1)
        g = weight * (v[at] - best.unsqueeze(1) * v)
        g.index_add_(0, at, weight * (v - best.unsqueeze(1) * v[at]))
        gradient[c] = g / norms[c]
    return total, gradient


def nearest(v: Float[Tensor, "n d"], block: int = _BLOCK) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """For each unit row the largest inner product with another row, and which row that is.

    Maxima are taken over segments of 64 rows first, which costs next to nothing beside the products; the row is then
    looked up in its winning segment. On other devices than the CPU a maximum with its index is as cheap, and many small
    products are not: there segments are single rows, and tiles have 16 times the rows.

    Args:
        v: [n, d] unit rows, n ≥ 1. With n = 1 there is no other row: the value is −1, the index 0.
        block: Rows compared at a time; bounds memory, never changes the value.

    Returns:
        ([n], [n] int64); among equal maxima any of the rows.
    """
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
    return best[:n].clamp(min=-1), segment[:n] if width == 1 else _within(padded, segment, n, width)


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
            s = torch.mm(a, b.T, out=room[: len(a) * len(b)].view(len(a), len(b)))
            if i == j:
                s.diagonal().fill_(_NONE)
            yield i, j, s


def _improve(best: Tensor, at: Tensor, found: torch.return_types.max, offset: int) -> None:
    torch.where(found.values > best, found.indices + offset, at, out=at)
    torch.maximum(best, found.values, out=best)


def _within(v: Tensor, segment: Tensor, n: int, width: int) -> Tensor:
    """[n] the row of the given segment with the largest product with each row, itself and padding left out."""
    order = torch.argsort(segment[:n])
    at = torch.zeros(n, dtype=torch.long, device=v.device)
    start = 0
    for k, count in enumerate(torch.bincount(segment[:n]).tolist()):
        rows, members = order[start : start + count], torch.arange(k * width, (k + 1) * width, device=v.device)
        start += count
        if count:
            s = v[rows] @ v[members].T
            s.masked_fill_((rows.unsqueeze(1) == members) | (members >= n), _NONE)
            at[rows] = members[s.argmax(1)]
    return at
