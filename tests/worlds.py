"""Small worlds that tests share: a tiny language model with text, and planted dictionaries whose truth is known."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch

from baselines.activations import TrainingSet
from bench.context import Context, context_for
from bench.data.text import Corpus
from bench.lm import tiny
from bench.lm.hooks import Hook
from bench.sae.activations import ReLU
from bench.sae.dense import DenseSAE
from bench.store import Store

_WORDS = tuple("the a river stone cat dog runs sleeps under over bright dark old new green house tree and but while slowly".split(" "))  # noqa: SIM905


def documents(n: int = 80, seed: int = 0) -> list[str]:
    """Distinct sentences, 300 characters and more."""
    r = random.Random(seed)
    return [" ".join(r.choice(_WORDS) for _ in range(90)) + f" {seed} {i}." for i in range(n)]


def corpus(n: int = 80) -> Corpus:
    """A corpus of generated documents."""

    def read() -> Iterator[str]:
        yield from documents(n)

    return Corpus(f"generated:{n}", f"generated{n}", read)


def tiny_context(store: Store, seed: int = 0) -> Context:
    """A context on the tiny model at its middle block."""
    return context_for(tiny.load(), Hook(1), corpus(), store, seed)


def dictionary(m: int, d: int, seed: int = 0) -> torch.Tensor:
    """Random unit rows."""
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def sparse_world(n: int, rows: torch.Tensor, per_token: float, seed: int = 0, noise: float = 0.0) -> torch.Tensor:
    """[n, d] sums of a few dictionary rows with uniform weights in [0.5, 1.5]."""
    g = torch.Generator().manual_seed(seed)
    m, d = rows.shape
    active = torch.rand(n, m, generator=g) < per_token / m
    f = active * (0.5 + torch.rand(n, m, generator=g))
    return f @ rows + noise * torch.randn(n, d, generator=g)


def training_set(x: torch.Tensor, seed: int = 0) -> TrainingSet:
    """Activations in two shards, nothing masked."""
    a = x.numpy().astype(np.float16)
    half = len(a) // 2
    return TrainingSet((a[:half], a[half:]), (np.arange(half), np.arange(len(a) - half)), f"planted{len(a)}", 0.0, seed)


def tied_sae(rows: torch.Tensor, bias: float = 0.0) -> DenseSAE:
    """ReLU SAE whose encoder is its decoder's transpose."""
    m, d = rows.shape
    return DenseSAE(rows.T.contiguous(), torch.full((m,), bias), rows.clone(), torch.zeros(d), torch.zeros(d), ReLU())
