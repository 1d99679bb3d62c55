"""Meta-SAE: a BatchTopK SAE trained on the decoder rows of another SAE (Bussmann et al. 2024; Leask et al. 2025).

Functions only: nothing here is a method that `train` offers. The loss, constraints and step are those of every
trained method; the data are in memory, so no files are kept and nothing is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines import parts
from baselines.batchtopk import BatchTopK
from baselines.parts import State, Weights
from baselines.sparse import SparseBatch, decode
from bench.kernels.topk import largest
from bench.rng import torch_rng

K = 4
ROWS_PER_META_LATENT = 4
BATCH = 1024
LR = 5e-4
CLIP = 1.0
_BLOCK = 1024
_NEVER = 2**62


@dataclass(frozen=True)
class MetaSAE:
    """A meta-SAE as far as it is trained.

    Args:
        method: BatchTopK of width ⌈n/4⌉ and k = 4.
        rows: [n, d] training rows, centred and scaled to total variance 1.
        w: Weights; training changes them in place.
        opt: Adam with its moments.
        state: Steps done and rows since each meta-latent last fired.
        seed: Root of initialisation and data order.
        replacement: Whether rows are drawn with replacement.
    """

    method: BatchTopK
    rows: Tensor
    w: Weights
    opt: torch.optim.Adam
    state: State
    seed: int
    replacement: bool

    @property
    def batch(self) -> int:
        """Rows per step."""
        return min(BATCH, len(self.rows))


@dataclass(frozen=True)
class Explained:
    """How the meta-SAE decomposes the rows.

    Args:
        codes: Exactly 4·n codes over all rows (fewer if fewer pre-activations are positive), rows ascending.
        error: [n] float64 squared error of each row.
        variance: [n] float64 squared distance of each row from the mean.
    """

    codes: SparseBatch
    error: Tensor
    variance: Tensor

    @property
    def score(self) -> float:
        """1 − Σ‖w − ŵ‖² / Σ‖w − mean‖²."""
        return 1 - float(self.error.sum() / self.variance.sum())


def start(rows: Tensor, seed: int, auxiliary: bool = True, replacement: bool = False) -> MetaSAE:
    """A fresh meta-SAE.

    Args:
        rows: [n, d] decoder rows that are not all equal.
        seed: Root of initialisation and data order.
        auxiliary: Train with the loss on dead meta-latents (no firing in 4·n rows, k_aux = d/2, weight 1/32).
        replacement: Draw rows with replacement; else without, an epoch's last incomplete batch left out.
    """
    centred = rows - rows.mean(0)
    x = centred / (centred.square().sum() / len(rows)).sqrt()
    method = BatchTopK(d_sae=math.ceil(len(x) / ROWS_PER_META_LATENT), k=K)
    w = method.init(torch.zeros(x.shape[1]), torch_rng(seed, "init")).map(lambda t: t.to(x.device).requires_grad_(True))
    opt = torch.optim.Adam(list(w.named().values()), lr=LR, fused=True)
    silent = torch.zeros(method.d_sae, dtype=torch.long, device=x.device)
    state = State(0, 0, silent, ROWS_PER_META_LATENT * len(x) if auxiliary else _NEVER)
    return MetaSAE(method, x, w, opt, state, seed, replacement)


def train(meta: MetaSAE, until: int, advance: Callable[[int], None] = lambda _: None) -> MetaSAE:
    """Go on until `until` steps are done, at a constant rate. The same steps in one call or in several.

    Args:
        meta: What to train; its tensors are changed in place.
        until: Steps in all.
        advance: Told of every step.
    """
    state, epoch = meta.state, -1
    order = torch.zeros(0, dtype=torch.long)
    per_epoch = len(meta.rows) // meta.batch
    while state.step < until:
        if state.step // per_epoch != epoch:
            epoch = state.step // per_epoch
            order = _order(meta, epoch, per_epoch)
        at = state.step % per_epoch * meta.batch
        x = meta.rows[order[at : at + meta.batch]]
        rng = torch_rng(meta.seed, "step", state.step)
        state = parts.descend(meta.method, meta.w, meta.opt, x, state, rng, LR, CLIP)[0]
        advance(1)
    return replace(meta, state=state)


@torch.no_grad()
def explain(meta: MetaSAE) -> Explained:
    """Decompose all rows at once: one batch top-k selects 4·n codes. Memory is O(block·n/4 + n·d)."""
    x, w = meta.rows, meta.w
    n, m, count = len(x), meta.method.d_sae, K * len(x)
    places, values = torch.zeros(0, dtype=torch.long, device=x.device), x.new_zeros(0)
    for i in range(0, n, _BLOCK):  # an entry that is not among a block's `count` largest is not among all rows'
        pre = torch.addmm(w.b_enc, x[i : i + _BLOCK] - w.b_dec, w.W_enc.T)
        found = largest(pre, count)
        places, values = torch.cat([places, found + i * m]), torch.cat([values, pre.reshape(-1)[found]])
        best = largest(values[None], count)
        places, values = places[best], values[best]
    codes = SparseBatch(places // m, places % m, values, n)
    xhat = decode(codes, w.W_dec) + w.b_dec
    return Explained(codes, *((x - other).double().square().sum(1) for other in (xhat, x.mean(0))))


def _order(meta: MetaSAE, epoch: int, per_epoch: int) -> Tensor:
    rng = torch_rng(meta.seed, "epoch", epoch)
    if meta.replacement:
        return torch.randint(len(meta.rows), (per_epoch * meta.batch,), generator=rng)
    return torch.randperm(len(meta.rows), generator=rng)
