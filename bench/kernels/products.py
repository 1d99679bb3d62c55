"""Which way of multiplying large float32 matrices is used on this machine: decided by the processor, the same in every process.

Timing the ways at start-up decides otherwise on a busy machine, and with the way the last digits of a result change
(docs/decisions/0011-products.md).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

_SMALL = 2**27  # below so many multiplications the ways hardly differ


@dataclass(frozen=True)
class Ways:
    """What is faster than torch's product.

    Args:
        numpy: NumPy's BLAS, on the same memory.
        bfloat16: A product in bfloat16, by so much that screening with it pays.
    """

    numpy: bool = False
    bfloat16: bool = False


def ways(a: Tensor, b: Tensor) -> Ways:
    """For the product of [m, d] rows with [n, d] rows."""
    if a.dtype != torch.float32 or a.numel() * len(b) < _SMALL:
        return Ways()
    if a.device.type != "cpu":
        return Ways(bfloat16=a.device.type == "cuda")
    return _machine()


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """[m, n] inner products of the rows of a [m, d] with those of b [n, d], written to `out`."""
    if not ways(a, b).numpy:
        return torch.mm(a, b.T, out=out)
    with _controller().limit(limits=torch.get_num_threads(), user_api="blas"):
        np.matmul(a.detach().numpy(), b.detach().numpy().T, out=out.numpy())
    return out


@functools.cache
def _machine() -> Ways:
    """MKL, which torch multiplies with on x86, keeps its fastest code from AMD's processors; NumPy brings OpenBLAS."""
    has = getattr(torch.cpu, "get_capabilities", dict)()  # newer releases of torch tell
    foreign = torch.backends.mkl.is_available() and str(has.get("cpu_name", "")).startswith("AMD")
    return Ways(foreign, bool(has.get("avx512_bf16") or has.get("amx_bf16")))


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
