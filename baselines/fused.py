"""The optimiser's step on a GPU in one pass over the weights, compiled by torch: what `kernel.cpp` does on a CPU.

Projection, clipping, Adam and the scaling of rows are one kernel for a parameter, after one that reads the gradients for
their norm; nothing waits for the host. Without Triton the optimiser's own step is taken.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import no_type_check

import torch
from torch import Tensor


def takes(*tensors: Tensor) -> bool:
    """Whether all tensors are on a GPU for which torch can compile."""
    return all(t.device.type == "cuda" for t in tensors) and importlib.util.find_spec("triton") is not None


def adam(opt: torch.optim.Optimizer, unit: Tensor | None, clip: float) -> None:
    """Clip the gradients and do the optimiser's step, with its own state. Arguments as in `compiled.Kernel.adam`."""
    _adam(*_compiled(), opt, unit, clip)


@torch.no_grad()
def _adam(
    look: Callable[..., tuple[Tensor, Tensor]], move: Callable[..., None], opt: torch.optim.Optimizer, unit: Tensor | None, clip: float
) -> None:
    group = opt.param_groups[0]
    moving = [p for p in group["params"] if p.grad is not None]
    along, squares = zip(*(look(p, p.grad, p is unit) for p in moving), strict=True)
    norm = torch.stack(squares).sum().sqrt()
    scale, lr = (
        (clip / (norm + 1e-6)).clamp(max=1),
        norm.new_tensor(group["lr"], dtype=torch.float32),
    )  # as a tensor: a number would be compiled in
    for p, a in zip(moving, along, strict=True):
        state = opt.state[p]
        if not state:
            state.update(step=p.new_zeros((), dtype=torch.float32), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        move(p, p.grad, state["exp_avg"], state["exp_avg_sq"], a, p is unit, state["step"], scale, lr, *group["betas"], group["eps"])


@no_type_check  # a checker's code in it could not be compiled; the same holds of the next
def _look(p: Tensor, g: Tensor, unit: bool) -> tuple[Tensor, Tensor]:
    """The gradient's component along rows of unit norm [m, 1], or 0; and the squared norm of what is left."""
    along = (p * g).sum(1, keepdim=True) if unit else g.new_zeros(())
    return along, (g - p * along).square().sum()


@no_type_check
def _move(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    a: Tensor,
    unit: bool,
    step: Tensor,
    scale: Tensor,
    lr: Tensor,
    b1: float,
    b2: float,
    eps: float,
) -> None:
    """Adam as torch defines it, in place; rows of unit norm are scaled after it."""
    g = (g - p * a) * scale
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    moved = p - lr / (1 - b1**step) * m / ((v / (1 - b2**step)).sqrt() + eps)
    p.copy_(moved / moved.norm(dim=1, keepdim=True).clamp(min=1e-8) if unit else moved)


@functools.cache
def _compiled() -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., None]]:
    return torch.compile(_look, fullgraph=True, dynamic=True), torch.compile(_move, fullgraph=True, dynamic=True)
