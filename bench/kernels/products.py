"""Which way of multiplying large float32 matrices is the fastest on this machine, found by timing each once per process.

GPUs have units for bfloat16 and are not timed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

_ROWS, _COLUMNS, _DEPTH = 1024, 128, 512  # of the products that are timed: short, so that some are not interrupted
_REPEAT = 10
_NUMPY = 1.05  # times as fast as torch NumPy must be, and
_SCREENING = 1.3  # times as fast as both a product in bfloat16 must be, before they are used
_SMALL = 2**27  # below so many multiplications the ways hardly differ, and nothing is timed


@dataclass(frozen=True)
class Ways:
    """What was found.

    Args:
        numpy: NumPy's BLAS, on the same memory, is faster than torch's.
        bfloat16: bfloat16 products are so much faster than any other that screening with them pays.
    """

    numpy: bool = False
    bfloat16: bool = False


def ways(a: Tensor, b: Tensor) -> Ways:
    """For the product of [m, d] rows with [n, d] rows."""
    if a.dtype != torch.float32 or a.numel() * len(b) < _SMALL:
        return Ways()
    if a.device.type != "cpu":
        return Ways(bfloat16=a.device.type == "cuda")
    return _timed(torch.get_num_threads())


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """[m, n] inner products of the rows of a [m, d] with those of b [n, d], written to `out`."""
    if not ways(a, b).numpy:
        return torch.mm(a, b.T, out=out)
    with _controller().limit(limits=torch.get_num_threads(), user_api="blas"):
        np.matmul(a.detach().numpy(), b.detach().numpy().T, out=out.numpy())
    return out


@functools.cache
def _timed(threads: int) -> Ways:
    """With so many threads; some 50 ms."""
    a, b = torch.full((_ROWS, _DEPTH), 0.5), torch.full((_COLUMNS, _DEPTH), 0.5)
    out, a16, b16 = torch.empty(_ROWS, _COLUMNS), a.bfloat16(), b.bfloat16()
    with _controller().limit(limits=threads, user_api="blas"):
        by_numpy = _seconds(lambda: np.matmul(a.numpy(), b.numpy().T, out=out.numpy()))
    by_torch = _seconds(lambda: torch.mm(a, b.T, out=out))
    by_bfloat16 = _seconds(lambda: a16 @ b16.T)
    return Ways(by_numpy * _NUMPY < by_torch, by_bfloat16 * _SCREENING < min(by_numpy, by_torch))


def _seconds(call: Callable[[], object]) -> float:
    """Least wall seconds of some calls."""
    spent: list[float] = []
    for _ in range(_REPEAT):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
