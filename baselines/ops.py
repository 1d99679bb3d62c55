"""The operations that a training step consists of, on arrays without gradients.

One dense product per step, the encoder's; everything else touches active codes only. Where many codes are active a
dense product is the cheaper way, and the same functions take it: results agree to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

DENSE_ABOVE = 0.02  # share of active codes from which a dense product beats the gathering of rows
_BLOCK = 512  # tokens whose pre-activations are held at a time: they stay in the cache
_RADIX = 2**16  # NumPy sorts 16-bit integers by radix, ten times as fast as torch sorts 64-bit ones


def encode_above(x: Tensor, w: Tensor, b: Tensor, bound: float | Tensor) -> tuple[Tensor, Tensor]:
    """Entries of x Wᵀ + b that lie above a bound; the whole matrix is never held.

    Args:
        x: [n, d] centred inputs.
        w: [m, d] encoder rows.
        b: [m].
        bound: One number, or [m] one per latent.

    Returns:
        Flat indices (token · m + latent), ascending, and the values there.
    """
    flat, values = [], []
    room = x.new_empty(min(_BLOCK, len(x)), len(w))
    for i in range(0, len(x), _BLOCK):
        part = x[i : i + _BLOCK]
        pre = torch.addmm(b, part, w.T, out=room[: len(part)])
        at = _nonzero((pre > bound).reshape(-1))
        flat.append(at + i * len(w))
        values.append(pre.reshape(-1)[at])
    return torch.cat(flat), torch.cat(values)


def sums_of_rows(bags: Tensor, indices: Tensor, weights: Tensor, table: Tensor, n: int) -> Tensor:
    """[n, d] out[b] = Σ over the entries of bag b of weight · table[index].

    Args:
        bags: [nnz] ascending.
        indices: [nnz] rows of the table.
        weights: [nnz].
        table: [t, d].
        n: Number of bags.
    """
    if dense_is_cheaper(len(bags), n, len(table)):
        return scattered(bags, indices, weights, n, len(table)) @ table
    return embedding_bag(indices, table.detach(), _starts(bags, n), mode="sum", per_sample_weights=weights)


def dots_of_rows(rows: Tensor, cols: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """[nnz] ⟨g[row], w[col]⟩ of every entry, without copies of the rows; `rows` ascending."""
    if dense_is_cheaper(len(rows), len(g), len(w)):
        return (g @ w.T)[rows, cols]
    # 0 stands for bags that are summed
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(g, w, cols, _starts(rows, len(g)), rows, 0)


def by_latent(cols: Tensor, m: int) -> Tensor:
    """Order of the entries by latent, then by token."""
    if cols.device.type == "cpu" and m <= _RADIX:
        return torch.from_numpy(np.argsort(cols.numpy().astype(np.uint16), kind="stable"))
    return torch.argsort(cols, stable=True)


def dense_is_cheaper(nnz: int, n: int, m: int) -> bool:
    """Whether so many codes are active that dense products are the faster way."""
    return nnz > DENSE_ABOVE * n * m


def scattered(rows: Tensor, cols: Tensor, values: Tensor, n: int, m: int) -> Tensor:
    """[n, m] dense codes."""
    return values.new_zeros(n, m).index_put_((rows, cols), values)


def _nonzero(mask: Tensor) -> Tensor:
    if mask.device.type == "cpu":  # NumPy's flatnonzero is twice as fast as torch's nonzero here
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)


def _starts(bags: Tensor, n: int) -> Tensor:
    """[n] first entry of each bag; `bags` ascending."""
    sizes = torch.bincount(bags, minlength=n)
    return torch.cumsum(sizes, 0) - sizes
