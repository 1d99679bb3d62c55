"""The highest rate at which one core does float32 multiply-adds."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

_LANES, _SUMS, _LOOPS = 16, 12, 4_000_000
_SOURCE = f"""
typedef float Vec __attribute__((vector_size({4 * _LANES})));
float loop(long n, float x) {{
    Vec a[{_SUMS}], b = x - (Vec){{}};
    for (int i = 0; i < {_SUMS}; i++) a[i] = b + (float)i;
    for (long j = 0; j < n; j++)
#pragma GCC unroll {_SUMS}
        for (int i = 0; i < {_SUMS}; i++) a[i] = a[i] * b + b;
    float sum = 0;
    for (int i = 0; i < {_SUMS}; i++) for (int l = 0; l < {_LANES}; l++) sum += a[i][l];
    return sum;
}}
"""


def best_rate() -> float:
    """FLOP/s: of a loop of multiply-adds in registers where there is a C compiler, and of products that fit the cache."""
    rates = {"loop of multiply-adds": _loop_rate(), "NumPy product": _product_rate(_by_numpy), "torch product": _product_rate(_by_torch)}
    print("float32: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items() if rate))
    return max(rates.values())


def _loop_rate() -> float:
    with tempfile.TemporaryDirectory() as work:
        source, library = Path(work) / "loop.c", Path(work) / "loop.so"
        source.write_text(_SOURCE)
        command = ["cc", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return 0.0
        loop = ctypes.CDLL(str(library)).loop
        loop.argtypes, loop.restype = [ctypes.c_long, ctypes.c_float], ctypes.c_float
        return 2 * _LANES * _SUMS * _LOOPS / _least(lambda: loop(_LOOPS, 0.5))


def _product_rate(product: Callable[[torch.Tensor, torch.Tensor], object]) -> float:
    found = 0.0
    for m, n, d in ((384, 384, 384), (1024, 256, 576), (4096, 512, 576)):
        a, b = torch.full((m, d), 0.5), torch.full((n, d), 0.5)
        found = max(found, 2 * m * n * d / _least(lambda a=a, b=b: product(a, b)))
    return found


def _by_numpy(a: torch.Tensor, b: torch.Tensor) -> object:
    return np.matmul(a.numpy(), b.numpy().T)


def _by_torch(a: torch.Tensor, b: torch.Tensor) -> object:
    return a @ b.T


def _least(call: Callable[[], object]) -> float:
    spent = []
    for _ in range(8):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return min(spent)
