"""Searches and orders on arrays without gradients; on the CPU they are NumPy's, which are faster than torch's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_RADIX = 2**16  # NumPy sorts 16-bit integers by radix, ten times as fast as torch sorts 64-bit ones


def nonzero(mask: Tensor) -> Tensor:
    """[nnz] places of what is true in a flat mask."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)


def above(values: Tensor, limit: Tensor) -> Tensor:
    """[nnz] flat places of what lies above a limit; shapes are matched as in a comparison."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(values.numpy() > limit.numpy()))
    return torch.nonzero((values > limit).view(-1)).squeeze(1)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of the last dimension, 1 ≤ k ≤ its size."""
    place = values.shape[-1] - k
    if values.device.type == "cpu":
        return torch.from_numpy(np.partition(values.numpy(), place)[..., place, None]).squeeze(-1)
    return values.kthvalue(place + 1).values


def largest(table: Tensor, k: int) -> Tensor:
    """[n, k] largest numbers of each row in any order; rows are filled up with 0."""
    table = torch.nn.functional.pad(table, (0, max(0, k - table.shape[1])))
    if table.device.type == "cpu":
        return torch.from_numpy(np.partition(table.numpy(), table.shape[1] - k, axis=1)[:, table.shape[1] - k :])
    return table.topk(k, dim=1, sorted=False).values


def largest_of_each(values: Tensor, row: Tensor, k: int, n: int) -> Tensor:
    """[nnz] places of the k largest of every row, ascending; among equal ones the first. `row` ascending.

    Each row's values are laid out in a line of a table, so that all k-th largest are found at once.
    """
    size = torch.bincount(row, minlength=n)
    width = int(size.max())
    if width <= k:
        return torch.arange(len(values), device=values.device)
    place = torch.arange(len(row), device=row.device) - (torch.cumsum(size, 0) - size).index_select(0, row)
    table = values.new_full((n * width,), -torch.inf).index_put_((row * width + place,), values).view(n, width)
    smallest = kth_largest(table, k).index_select(0, row)
    keep, equal = values > smallest, nonzero(values == smallest)
    taken = torch.bincount(row[keep], minlength=n)
    count = torch.bincount(row[equal], minlength=n)
    before = torch.arange(len(equal), device=row.device) - (torch.cumsum(count, 0) - count)[row[equal]]
    keep[equal[before < (k - taken)[row[equal]]]] = True
    return nonzero(keep)


def order(keys: Tensor, size: int) -> Tensor:
    """Stable order of integers from 0 to `size` − 1, size ≤ 2³²."""
    if keys.device.type != "cpu":
        return torch.argsort(keys, stable=True)
    digits = keys.numpy()
    found = np.argsort(digits.astype(np.uint16), kind="stable")  # by the lower 16 bits
    if size > _RADIX:
        found = found[np.argsort((digits >> 16)[found].astype(np.uint16), kind="stable")]
    return torch.from_numpy(found)


def split(at: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Row and column of flat places in a table."""
    row = at // width
    return row, at - row * width


def starts(bags: Tensor, n: int) -> Tensor:
    """[n] first entry of each bag; `bags` ascending."""
    sizes = torch.bincount(bags, minlength=n)
    return torch.cumsum(sizes, 0) - sizes
