"""How weights move once their gradients are known: projection, clipping, the optimiser's step, constraints."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from baselines import compiled, fused
from baselines.over import Over
from baselines.parts import Trainer, Usual, Weights
from baselines.shards import Shards


def move(method: Trainer, w: Weights, opt: torch.optim.Optimizer, clip: float, shards: Shards) -> None:
    """Change weights in place, and the optimiser's state. Where there is compiled code for it, in one pass over the weights.

    Args:
        method: Whose projection and constraint hold.
        w: Weights with gradients.
        opt: Optimiser of them.
        clip: Largest gradient norm, of all processes' weights together.
        shards: Processes that share the weights.
    """
    shards.average_(*(t.grad for t in w.named().values() if t.grad is not None))
    adam = _one_pass(opt)
    if adam and _usual_rows(method) and shards.count == 1:
        adam(opt, w.W_dec, clip)
        return
    method.project_grad(w)
    if adam and shards.count == 1:
        adam(opt, None, clip)
    else:
        norm = _norm({name: t.grad for name, t in w.named().items() if t.grad is not None}, shards)
        if norm > clip:  # most steps need no pass over the gradients
            torch.nn.utils.clip_grads_with_norm_(list(w.named().values()), clip, norm)
        adam(opt, None, math.inf) if adam else opt.step()
    method.constrain(w)


def _one_pass(opt: torch.optim.Optimizer) -> Callable[[torch.optim.Optimizer, Tensor | None, float], None] | None:
    """Clipping and Adam in compiled form, where there is one for the device and the optimiser."""
    params = opt.param_groups[0]["params"]
    if not compiled.steps(opt):
        return None
    if fused.takes(*params):
        return fused.adam
    kernel = compiled.kernel(*params)
    return kernel.adam if kernel else None


def _norm(grads: dict[str, Tensor], shards: Shards) -> Tensor:
    """Norm of the gradients of all latents; b_dec, which every process holds, counts once."""
    if shards.count == 1:
        return torch.nn.utils.get_total_norm(list(grads.values()))
    own = sum(float(g.double().square().sum()) for name, g in grads.items() if name != "b_dec")
    shared = float(grads["b_dec"].double().square().sum()) if "b_dec" in grads else 0.0
    return next(iter(grads.values())).new_tensor(math.sqrt(shards.over_latents(own) + shared))


def _usual_rows(method: Trainer) -> bool:
    """Whether projection and constraint of a method are `Usual`'s own, also through wrappers that hand on to their base."""
    kind = type(method)
    if isinstance(method, Over) and (kind.project_grad, kind.constrain) == (Over.project_grad, Over.constrain):
        return _usual_rows(method.base)
    return isinstance(method, Usual) and (kind.project_grad, kind.constrain) == (Usual.project_grad, Usual.constrain)
