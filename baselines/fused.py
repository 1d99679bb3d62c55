"""The optimiser's step on a GPU in one pass over the weights, compiled by torch: what `kernel.cpp` does on a CPU.

Projection, clipping, Adam and the scaling of rows are one kernel for a parameter, after one that reads the gradients for
their norm; nothing waits for the host. Without Triton the optimiser's own step is taken.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[..., None]


def takes(*tensors: Tensor) -> bool:
    """Whether all tensors are on a GPU for which torch can compile."""
    return all(t.device.type == "cuda" for t in tensors) and importlib.util.find_spec("triton") is not None


def adam(opt: torch.optim.Optimizer, unit: Tensor | None, clip: float) -> None:
    """Clip the gradients and do the optimiser's step, with its own state. Arguments as in `compiled.Kernel.adam`."""
    _adam(_compiled(), opt, unit, clip)


@torch.no_grad()
def _adam(step: Step, opt: torch.optim.Optimizer, unit: Tensor | None, clip: float) -> None:
    group = opt.param_groups[0]
    moving = [p for p in group["params"] if p.grad is not None]
    for p in moving:
        if not opt.state[p]:
            opt.state[p].update(step=p.new_zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    grads, state = [p.grad for p in moving], [opt.state[p] for p in moving]
    moments = ([s[key] for s in state] for key in ("step", "exp_avg", "exp_avg_sq"))
    changing = moving[0].new_tensor([group["lr"], clip])  # as a tensor: a number would be compiled in
    step(moving, grads, *moments, changing, [p is unit for p in moving], *group["betas"], group["eps"])


def _move(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    steps: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    changing: Tensor,
    unit: Sequence[bool],
    b1: float,
    b2: float,
    eps: float,
) -> None:
    """Adam as torch defines it, in place; gradients along rows of unit norm removed first, and those rows scaled after it."""
    lr, clip = changing.unbind()
    across = [g - p * (p * g).sum(1, keepdim=True) if rows else g for p, g, rows in zip(params, grads, unit, strict=True)]
    norm = torch.stack([g.double().square().sum() for g in across]).sum().sqrt()
    scale = (clip / (norm + 1e-6)).clamp(max=1).to(lr.dtype)
    for p, g, t, m, v, rows in zip(params, across, steps, firsts, seconds, unit, strict=True):
        t.add_(1)
        m.lerp_(g * scale, 1 - b1)
        v.mul_(b2).addcmul_(g * scale, g * scale, value=1 - b2)
        moved = p - lr / (1 - b1**t) * m / ((v / (1 - b2**t)).sqrt() + eps)
        p.copy_(moved / moved.norm(dim=1, keepdim=True).clamp(min=1e-8) if rows else moved)


@functools.cache
def _compiled() -> Step:
    return torch.compile(_move, fullgraph=True, dynamic=False)
