"""OrtSAE's penalty on decoder rows, with its analytic gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_DELTA = 1e-8


def chunks_of(m: int, chunk_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A fresh random partition of m rows into ⌈m / chunk_size⌉ chunks whose sizes differ by at most one."""
    return torch.tensor_split(torch.randperm(m, generator=generator), -(-m // chunk_size))


def orthogonality(
    w: Float[Tensor, "m d"], chunks: tuple[Int64[Tensor, " _"], ...], block: int = 1024
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


def nearest(v: Float[Tensor, "n d"], block: int = 1024) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """For each unit row the largest inner product with another row, and which row that is.

    Args:
        v: [n, d] unit rows, n ≥ 1. With n = 1 there is no other row: the value is −1, the index 0.
        block: Rows compared at a time.

    Returns:
        ([n], [n] int64).
    """
    n = len(v)
    best, at = v.new_full((n,), -1.0), torch.zeros(n, dtype=torch.long, device=v.device)
    for i in range(0, n, block):
        s = v[i : i + block] @ v[i:].T  # the upper triangle of blocks; its transpose serves the rows below
        b = len(s)
        s[torch.arange(b), torch.arange(b)] = -1.0
        _improve(best[i : i + b], at[i : i + b], s.max(dim=1), i)
        if i + b < n:
            _improve(best[i + b :], at[i + b :], s[:, b:].max(dim=0), i)
    return best, at


def _improve(best: Tensor, at: Tensor, found: torch.return_types.max, offset: int) -> None:
    better = found.values > best
    best[better] = found.values[better]
    at[better] = found.indices[better] + offset
