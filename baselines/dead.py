"""The auxiliary loss that brings dead latents back to life."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.parts import State, Weights
from baselines.shards import Shards

AUX_WEIGHT = 1 / 32


def dead_latent_loss(w: Weights, x: Tensor, xhat: Tensor, state: State, k_aux: int) -> Tensor:
    """How much of the residual the dead latents leave unexplained (auxiliary loss, Gao et al. 2024).

    Σ‖e − ê‖² / Σ‖e − mean e‖² with e the detached residual and ê the k_aux largest relu pre-activations of dead
    latents times their decoder rows, no bias; 0 when no latent is dead.
    """
    dead, shards = state.dead.to(x.device), state.shards
    count = int(shards.over_latents(len(dead)))
    if count == 0:
        return x.new_zeros(())
    e = (x - xhat).detach()
    spread = shards.averaged((e - shards.averaged(e.mean(0))).square().sum())
    k = k_aux if count > k_aux else 0
    return _DeadLatentLoss.apply(w.W_enc, w.b_enc, w.W_dec, shards.common(w.b_dec), x, e, dead, k, 1 / spread, shards)


class _DeadLatentLoss(torch.autograd.Function):
    """The loss with its analytic gradient: five products with the dead latents' rows, where autograd makes six."""

    @staticmethod
    def forward(
        ctx: Any,
        w_enc: Tensor,
        b_enc: Tensor,
        w_dec: Tensor,
        b_dec: Tensor,
        x: Tensor,
        e: Tensor,
        dead: Tensor,
        k: int,
        scale: Tensor,
        shards: Shards,
    ) -> Tensor:
        rows_enc, rows_dec, centred = w_enc[dead], w_dec[dead], x - b_dec
        codes = torch.addmm(b_enc[dead], centred, rows_enc.T).relu_()
        if k:
            top = codes.topk(min(k, len(dead)), dim=1, sorted=False)
            values = torch.nn.functional.pad(top.values, (0, k - top.values.shape[1]))
            kept = (values * shards.largest_of_each(values))[:, : top.values.shape[1]]
            codes = torch.zeros_like(codes).scatter_(1, top.indices, kept)
        part = torch.addmm(e, codes, rows_dec, beta=-1 if shards.rank == 0 else 0)
        left = shards.summed(part)  # ê − e
        ctx.save_for_backward(rows_enc, rows_dec, centred, codes, left, scale, dead)
        ctx.latents = len(w_enc)
        return left.square().sum() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_enc, rows_dec, centred, codes, left, scale, dead = ctx.saved_tensors
        g = left * (2 * scale * grads[0])
        g_codes = (g @ rows_dec.T).mul_(codes > 0)
        g_bias = g_codes.sum(0)

        def spread_out(t: Tensor) -> Tensor:
            """[m, …] the dead latents' gradients in their places."""
            return t.new_zeros(ctx.latents, *t.shape[1:]).index_copy_(0, dead, t)

        rest = (None, None, None, None, None, None)
        return spread_out(g_codes.T @ centred), spread_out(g_bias), spread_out(codes.T @ g), -(g_bias @ rows_enc), *rest
