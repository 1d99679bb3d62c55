"""Selecting the largest of many numbers, and the threshold that selects equally many on average."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_SPARE = 4  # candidates kept per entry wanted while the threshold is still unknown
_SAMPLE = 61  # every 61st number is looked at for a first guess; prime, so that no column pattern is followed


def largest(pre: Float[Tensor, "b m"], count: int) -> Int64[Tensor, " _"]:
    """Flat indices, ascending, of the `count` largest positive entries of a matrix.

    A threshold guessed from a sample keeps about 1.5 × `count` candidates; the exact choice is made among them,
    so nothing of the matrix's size is ever sorted. Among equal entries the first are taken. Fewer indices come
    back when fewer entries are positive.

    Args:
        pre: [B, m].
        count: How many to select.

    Example:
        >>> largest(torch.tensor([[0.1, 3.0], [2.0, -1.0]]), 2)
        tensor([1, 2])
    """
    flat = pre.reshape(-1)
    sample = flat[::_SAMPLE]
    rank = int(1.5 * count / _SAMPLE) + 32
    guess = float(sample.topk(rank).values[-1]) if rank <= len(sample) else 0.0
    candidates = _above(flat, max(guess, 0.0))
    if len(candidates) < count and guess > 0:
        candidates = _above(flat, 0.0)
    if len(candidates) <= count:
        return candidates
    if count == 0:
        return candidates[:0]
    values = flat[candidates]
    smallest = values.kthvalue(len(values) - count + 1).values
    keep = values > smallest
    equal = torch.nonzero(values == smallest).squeeze(1)
    keep[equal[: count - int(keep.sum())]] = True
    return candidates[keep]


def _above(flat: Tensor, bound: float) -> Tensor:
    if flat.device.type == "cpu":  # NumPy's flatnonzero is twice as fast as torch's nonzero here
        return torch.from_numpy(np.flatnonzero(flat.numpy() > bound))
    return torch.nonzero(flat > bound).squeeze(1)


def calibrated_threshold(blocks: Iterable[Tensor], k: float) -> float:
    """The threshold θ ≥ 0 at which the mean number of entries > θ per row is k (BatchTopK's export).

    Args:
        blocks: Pre-activation matrices [b, m], all rows of the calibration set in turn.
        k: Target mean number of active latents per row.

    Raises:
        ValueError: The rows are ordered so that their first part misleads about the rest.

    Returns:
        The (⌊n·k⌋ + 1)-th largest entry over all blocks, or 0 when fewer are positive; strictly above it lie
        ⌊n·k⌋ entries (fewer when values tie).

    Example:
        >>> calibrated_threshold([torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])], k=1)
        4.0
    """
    kept: list[Tensor] = []
    rows, bound, size = 0, 0.0, 0
    for pre in blocks:
        rows += len(pre)
        flat = pre.reshape(-1)
        kept.append(flat[flat >= bound if bound > 0 else flat > 0].cpu())
        size += len(kept[-1])
        spare = _SPARE * (int(rows * k) + 1)
        if size > 2 * spare:
            kept = [torch.cat(kept).topk(spare, sorted=False).values]
            bound, size = float(kept[0].min()), spare
    values = torch.cat(kept) if kept else torch.zeros(0)
    wanted = int(rows * k) + 1
    if len(values) >= wanted:
        return float(values.topk(wanted).values[-1])
    if bound > 0:
        raise ValueError("later blocks have far fewer large entries than earlier ones: shuffle the calibration set")
    return 0.0
