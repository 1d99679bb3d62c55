"""Errors of reconstructing from the first latents alone, for several prefixes at once, with their analytic gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines import ops
from baselines.shards import Shards
from baselines.sparse import ByLatent, SparseBatch, dots, gradient_of_rows
from bench.kernels import arrays

_ROWS = 64  # tokens whose prefixes are summed up at a time: they stay in the cache


def nested_error(codes: SparseBatch, w_dec: Tensor, target: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Squared error summed over dimensions, mean over tokens and over prefixes of the latents.

    Every code is decoded once, into the part of its token that lies between two prefixes. Prefixes are running sums of
    these parts, and the gradient of a part is the running sum, from the other end, of the errors.

    Args:
        codes: Of n tokens.
        w_dec: [m, d].
        target: [n, d] what the prefixes reconstruct, without the decoder's bias.
        sizes: Of the prefixes, ascending, the last m.

    Returns:
        The error, and [n, d] the reconstruction from all latents, which has no gradient.
    """
    first = codes.shards.rows(sizes[-1]).start
    part = torch.bucketize(codes.cols + first, torch.tensor(sizes, device=codes.cols.device), right=True)
    by_latent = codes.by_latent or ByLatent(codes.cols, len(w_dec))
    return _Nested.apply(codes.values, w_dec, target, part * codes.n + codes.rows, len(sizes), by_latent, codes.shards)


class _Nested(torch.autograd.Function):
    """Bags lie prefix by prefix, so that the rows which belong to some latents lie together."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, w: Tensor, target: Tensor, bags: Tensor, prefixes: int, by_latent: ByLatent, shards: Shards
    ) -> tuple[Tensor, Tensor]:
        n, d = target.shape
        order = arrays.order(bags, n * prefixes)
        bag, col, value = (t.index_select(0, order) for t in (bags, by_latent.cols, values))
        sums = shards.summed(ops.sums_of_rows(bag, col, value, w, n * prefixes))
        parts, total, left = sums.view(prefixes, n, d), target.new_zeros(()), torch.empty_like(target)
        for i in range(0, n, _ROWS):
            total += _errors_in_place(parts[:, i : i + _ROWS], target[i : i + _ROWS], left[i : i + _ROWS])
        ctx.save_for_backward(values, w, bags, sums)
        ctx.n, ctx.scale, ctx.by_latent = n, 1 / (n * prefixes), by_latent
        xhat = left.add_(target)
        ctx.mark_non_differentiable(xhat)
        return total * ctx.scale, xhat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, w, bags, g = ctx.saved_tensors
        by_latent, scale = ctx.by_latent, 2 * ctx.scale * grads[0]
        g_values = dots(bags, by_latent, g, w) * scale if ctx.needs_input_grad[0] else None
        g_w = gradient_of_rows(bags, by_latent, values * scale, g) if ctx.needs_input_grad[1] else None
        g_target = -scale * g[: ctx.n] if ctx.needs_input_grad[2] else None
        return g_values, g_w, g_target, None, None, None, None


def _errors_in_place(parts: Tensor, target: Tensor, left: Tensor) -> Tensor:
    """Sum of squared errors of all prefixes.

    Args:
        parts: [p, r, d] what each prefix adds; becomes the sums over later prefixes of reconstruction − target.
        target: [r, d].
        left: [r, d] takes the last prefix's reconstruction − target.
    """
    total = target.new_zeros(())
    parts[0] -= target
    for p in range(len(parts)):
        if p:
            parts[p] += parts[p - 1]
        total += parts[p].square().sum()
    left.copy_(parts[-1])
    for p in range(len(parts) - 1, 0, -1):
        parts[p - 1] += parts[p]
    return total
