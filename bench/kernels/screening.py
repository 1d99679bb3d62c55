"""Large entries of a float32 product, found by a product in bfloat16.

Processors with instructions for bfloat16 multiply it twice as fast as float32, or faster. What the rounding can change
is bounded for every entry, so none is missed; the few that are found are worked out in float32 by the caller.

With x̃, w̃ the rounded vectors, |⟨x, w⟩ − ⟨x̃, w̃⟩| ≤ ‖x − x̃‖‖w‖ + ‖x̃‖‖w − w̃‖, and the summation adds (d + 4)·2⁻²²·‖x̃‖‖w‖ at most:
together c(x)·‖w‖ with c(x) = ‖x − x̃‖ + (2⁻⁸ + (d + 4)·2⁻²²)·‖x̃‖. Numbers that must not be rounded are columns of the
product in three parts each, which together are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 512  # looked at together: they stay in the cache
_EXTRA = 4  # columns beside the inputs
_ROUND = 2**-8  # largest relative error of a number rounded to bfloat16
_ADD = 2**-22  # largest relative error of a sum per summand, for units that round twice, and to spare
_UPPER = -(2**16)  # the bits of a float32 number that bfloat16 keeps
_UP = 1 + 2**-6  # makes up for the rounding of the bound on the error itself


@dataclass(frozen=True)
class Screen:
    """Rows to multiply with in bfloat16.

    Args:
        rows: [m, d + 4] bfloat16.
        reach: Largest ‖w‖ where scores are compared with one another; 0 where they are compared with limits.
        bias: Largest |bias|.
    """

    rows: Tensor
    reach: float = 0.0
    bias: float = 0.0

    @staticmethod
    def against(w: Tensor, limit: Tensor) -> Screen:
        """Scores ⟨x̃, w̃⟩ + c(x)·‖w‖ − limit of [m, d] rows and [m] limits: positive where ⟨x, w⟩ can lie above the limit."""
        lowered = limit - limit.abs() * (w.shape[1] + _EXTRA) * _ADD
        return Screen(_extended(w, w.norm(dim=1) * _UP, -lowered))

    @staticmethod
    def scored(w: Tensor, b: Tensor) -> Screen:
        """Scores ⟨x̃, w̃⟩ + b + `lift`, which differ from the true ones by no more than half the lift and their own rounding."""
        reach = float(w.norm(dim=1).max()) * _UP
        return Screen(_extended(w, torch.ones_like(b), b), reach, float(b.abs().max()))

    def columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For [n, d] inputs: [n, d + 4] bfloat16 to multiply the rows with, and [n] lifts (c(x) against limits)."""
        d = x.shape[1]
        columns = x.new_ones(len(x), d + _EXTRA, dtype=torch.bfloat16)
        columns[:, :d] = x
        rounded, adding = columns[:, :d].float(), (d + _EXTRA) * _ADD
        error = ((x - rounded).norm(dim=1) + (_ROUND + adding) * rounded.norm(dim=1)) * _UP
        if self.reach:
            error = 2 * _UP * (error * self.reach + self.bias * adding)
        columns[:, d] = error
        return columns, columns[:, d].float()

    def multiply(self, columns: Tensor, start: int, out: Tensor) -> Tensor:
        """[r, n] scores of the rows from `start` on, written to `out` (bfloat16)."""
        return torch.mm(self.rows[start : start + len(out)], columns.T, out=out)


@dataclass(frozen=True)
class Pairs:
    """Rows that are multiplied with one another in bfloat16.

    |⟨v, u⟩ − ⟨ṽ, ũ⟩| ≤ ‖v − ṽ‖‖u‖ + ‖ṽ‖‖u − ũ‖, and summation and rounding of the result, as above.

    Args:
        rows: [n, d] bfloat16 form of rows of norm ≤ 1.
        error: [n] bounds on the error of a row's products with any other.
    """

    rows: Tensor
    error: Tensor

    @staticmethod
    def of(v: Tensor) -> Pairs:
        """For [n, d] rows of norm ≤ 1."""
        rows, off = v.bfloat16(), v.new_empty(len(v))
        for i in range(0, len(v), _ROWS):
            off[i : i + _ROWS] = (v[i : i + _ROWS] - rows[i : i + _ROWS].float()).norm(dim=1)
        return Pairs(rows, (off + off.max() + v.shape[1] * _ADD) * _UP)

    def needed(self, best: Tensor) -> Tensor:
        """[n] bfloat16 scores below which nothing lies that is truly as large as a row's best score [n]; 0 if that is too small."""
        least = best.float() * (1 - 2 * _ROUND) - 2 * self.error[: len(best)]
        return _down(least.clamp(min=0))


def lowest(best: Tensor, lift: Tensor) -> Tensor:
    """[n] bfloat16 scores below which nothing lies that is truly as large as the given ones, and positive; never negative.

    Args:
        best: [n] bfloat16 scores of `Screen.scored`.
        lift: [n] of `Screen.columns`.
    """
    return _down((torch.maximum(best.float(), lift) * (1 - 2 * _ROUND) - lift / _UP).clamp(min=0))


def _down(values: Tensor) -> Tensor:
    """float32 numbers rounded towards 0 to bfloat16."""
    return (values.view(torch.int32) & _UPPER).view(torch.float32).bfloat16()


def _extended(w: Tensor, first: Tensor, exact: Tensor) -> Tensor:
    """[m, d + 4] rows, one more column, and a column in three parts."""
    d = w.shape[1]
    rows = w.new_empty(len(w), d + _EXTRA, dtype=torch.bfloat16)
    rows[:, :d], rows[:, d] = w, first
    for i in range(1, _EXTRA):
        rows[:, d + i] = exact
        exact = exact - rows[:, d + i]
    return rows
