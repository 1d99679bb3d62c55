"""How weights move once their gradients are known: projection, clipping, the optimiser's step, constraints."""

from __future__ import annotations

import torch

from baselines import compiled
from baselines.over import Over
from baselines.parts import Trainer, Usual, Weights


def move(method: Trainer, w: Weights, opt: torch.optim.Optimizer, clip: float) -> None:
    """Change weights in place, and the optimiser's state. Where the kernel can do it all, in one pass over the weights.

    Args:
        method: Whose projection and constraint hold.
        w: Weights with gradients.
        opt: Optimiser of them.
        clip: Largest gradient norm.
    """
    kernel = compiled.kernel(*opt.param_groups[0]["params"]) if compiled.steps(opt) else None
    if kernel is not None and _usual_rows(method):
        kernel.adam(opt, w.W_dec, clip)
        return
    method.project_grad(w)
    if kernel is not None:
        kernel.adam(opt, None, clip)
    else:
        grads = [t.grad for t in w.named().values() if t.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if norm > clip:  # most steps need no pass over the gradients
            torch.nn.utils.clip_grads_with_norm_(list(w.named().values()), clip, norm)
        opt.step()
    method.constrain(w)


def _usual_rows(method: Trainer) -> bool:
    """Whether projection and constraint of a method are `Usual`'s own, also through wrappers that hand on to their base."""
    kind = type(method)
    if isinstance(method, Over) and (kind.project_grad, kind.constrain) == (Over.project_grad, Over.constrain):
        return _usual_rows(method.base)
    return isinstance(method, Usual) and (kind.project_grad, kind.constrain) == (Usual.project_grad, Usual.constrain)
