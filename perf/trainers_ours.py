"""Our training steps, as perf/trainers.py times them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from trainers_peers import Size, Step

from baselines import compiled
from baselines.batchtopk import BatchTopK
from baselines.c2r import C2R
from baselines.frozen_decoder import FrozenDecoder
from baselines.frozen_encoder import FrozenEncoder
from baselines.gated import Gated
from baselines.jumprelu import JumpReLU
from baselines.matryoshka import Matryoshka
from baselines.mp import MP
from baselines.ortsae import OrtSAE
from baselines.parts import State, Trainer, Weights, descend
from baselines.relu import ReLU
from baselines.soft_frozen_decoder import SoftFrozenDecoder
from baselines.topk import TopK
from bench.rng import torch_rng

SWITCH = "ORTSAE_KERNEL"
RATE = 2e-4


@dataclass
class Training:
    """One method in training on N(0, 1) activations.

    Args:
        method: Which.
        size: Shapes.
        kernel: `on` to use the compiled kernel where there is one, `off` not to.
        bias: Of the encoder at the start.
        dtype: Of weights and activations.
    """

    method: Trainer
    size: Size
    kernel: str = "off"
    bias: float = 0.0
    dtype: torch.dtype = torch.float32
    w: Weights = field(init=False)

    def __post_init__(self) -> None:
        self.x = self.size.batches()
        self.w = self.method.init(torch.zeros(self.size.d), torch_rng(0, "init")).map(lambda t: t.to(self.dtype))
        self.w.b_enc.fill_(self.bias)
        for t in self.w.named().values():
            t.requires_grad_(True)
        self.opt = torch.optim.Adam(list(self.w.named().values()), fused=True)
        self.state = State(0, 100_000, torch.zeros(self.size.m, dtype=torch.long), 10**9)

    def __call__(self) -> float:
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = self.kernel
        try:
            rng = torch_rng(0, "step", self.state.step)
            x = next(self.x).to(self.dtype)
            self.state, terms, _ = descend(self.method, self.w, self.opt, x, self.state, rng, RATE, 1.0)
        finally:
            if before is None:
                del os.environ[SWITCH]
            else:
                os.environ[SWITCH] = before
        return float(torch.stack(list(terms.values())).detach().sum())


def methods(s: Size) -> dict[str, tuple[Trainer, float]]:
    """Our methods, and the encoder's bias to start with: that of L0 = k where it says so."""
    base = BatchTopK(d_sae=s.m, k=s.k)
    bias = -statistics.NormalDist().inv_cdf(1 - s.k / s.m)  # pre-activations are N(0, 1) at the start
    found: dict[str, tuple[Trainer, float]] = {
        "batchtopk": (base, 0.0),
        "topk": (TopK(d_sae=s.m, k=s.k), 0.0),
        "matryoshka": (Matryoshka(d_sae=s.m, k=s.k), 0.0),
    }
    for chunk in (8192, 2048):
        found[f"ortsae, chunk {chunk:,}"] = (OrtSAE(base=base, chunk_size=chunk), 0.0)
    found["c2r, chunk 8,192"] = (C2R(base=base), 0.0)
    for name, method in {"relu": ReLU, "jumprelu": JumpReLU, "gated": Gated}.items():
        found[f"{name} at L0 = k"] = (method(d_sae=s.m, k=s.k), bias)
    found["relu at the start"] = (ReLU(d_sae=s.m, k=s.k), 0.0)
    found["matryoshka, random prefixes"] = (Matryoshka(d_sae=s.m, k=s.k, prefixes="random"), 0.0)
    found["ortsae over matryoshka"] = (OrtSAE(base=Matryoshka(d_sae=s.m, k=s.k)), 0.0)
    for control in (FrozenDecoder, SoftFrozenDecoder, FrozenEncoder):
        found[control.name] = (control(base=base), 0.0)
    found["mp"] = (MP(d_sae=s.m, k=s.k), 0.0)
    return found


def ours(s: Size) -> dict[str, tuple[Callable[[], Step], int]]:
    """Makers of our steps, and how many steps make a round."""
    found: dict[str, tuple[Callable[[], Step], int]] = {}
    for kernel, label in (("off", "ours"), ("on", "ours, compiled")) if built() else (("off", "ours"),):
        for name, (method, bias) in methods(s).items():
            found[f"{label}: {name}"] = (lambda m=method, k=kernel, b=bias: Training(m, s, k, b), getattr(method, "every", 1))
    return found


def built() -> bool:
    """Whether the compiled kernel is there."""
    return compiled.kernel() is not None
