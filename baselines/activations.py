"""Training activations: shards on disk, the token mask, moments, and a data order that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bench.data.text import Corpus, Rows, tokenised
from bench.lm.harvest import Harvest, keep_mask, norm_cut
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.rng import numpy_rng
from bench.store import Store, digest
from bench.worlds.planted import World

CALIBRATION = 65_536
_PLANTED_SHARD = 32_768


@runtime_checkable
class Source(Protocol):
    """Where training batches come from: `TrainingSet`, or `baselines.stream.Stream`; both say what each of these is.

    Results depend on data and seed alone, never on what was asked for before.
    """

    @property
    def n(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def dropped(self) -> float: ...
    @property
    def moments(self) -> tuple[Tensor, float]: ...
    def batch(self, step: int, size: int) -> Tensor: ...
    def calibration(self) -> Tensor: ...


@dataclass(frozen=True)
class TrainingSet:
    """Kept tokens of harvested shards, addressed as one sequence.

    Args:
        shards: Memory-mapped [n_i, d] float16 arrays.
        kept: Per shard, the kept positions.
        sha256: Identity of the activations and the mask.
        dropped: Share of tokens the mask leaves out.
        seed: Root of the data order.
    """

    shards: tuple[np.ndarray, ...]
    kept: tuple[np.ndarray, ...]
    sha256: str
    dropped: float
    seed: int

    @property
    def n(self) -> int:
        """Number of kept tokens."""
        return int(self._edges[-1])

    @property
    def d(self) -> int:
        """Width of an activation."""
        return self.shards[0].shape[1]

    @cached_property
    def _edges(self) -> np.ndarray:
        return np.cumsum([0, *(len(k) for k in self.kept)])

    @property
    def moments(self) -> tuple[Tensor, float]:
        """Mean [d] of all kept tokens, and their total variance E‖x − μ‖²."""
        return self._moments

    @cached_property
    def _moments(self) -> tuple[Tensor, float]:
        mean, variance = moments_of(shard[kept] for shard, kept in zip(self.shards, self.kept, strict=True))
        return torch.from_numpy(mean), variance

    def batch(self, step: int, size: int) -> Tensor:
        """[size, d] float32 tokens of one step; every epoch is a fresh permutation, and no step depends on another."""
        per_epoch = self.n // size
        epoch, at = divmod(step, per_epoch)
        return self.gather(self._order(epoch)[at * size : (at + 1) * size])

    def calibration(self) -> Tensor:
        """[≤ 65,536, d] fixed training tokens, shuffled."""
        picked = numpy_rng(self.seed, "calibration").permutation(self.n)[:CALIBRATION]
        return self.gather(picked)

    def gather(self, tokens: np.ndarray) -> Tensor:
        """[len(tokens), d] float32 rows by their place among the kept tokens."""
        out = np.empty((len(tokens), self.d), dtype=np.float32)
        shard = np.searchsorted(self._edges, tokens, side="right") - 1
        for i in np.unique(shard):
            mine = np.flatnonzero(shard == i)
            at = self.kept[i][tokens[mine] - self._edges[i]]
            order = np.argsort(at)
            out[mine[order]] = self.shards[i][at[order]]
        return torch.from_numpy(out)

    def _order(self, epoch: int) -> np.ndarray:
        cache: dict[int, np.ndarray] = self.__dict__.setdefault("_orders", {})
        if epoch not in cache:
            cache.clear()
            cache[epoch] = numpy_rng(self.seed, "order", epoch).permutation(self.n)
        return cache[epoch]


def moments_of(pieces: Iterable[np.ndarray]) -> tuple[np.ndarray, float]:
    """Mean [d] (float32) and total variance E‖x − μ‖² of [n_i, d] arrays; sums in float64."""
    total, square, n = np.zeros(1), 0.0, 0
    for piece in pieces:
        x = piece.astype(np.float64)
        total = total + x.sum(0)
        square += float((x * x).sum())
        n += len(x)
    mean = total / max(1, n)
    return mean.astype(np.float32), square / max(1, n) - float(mean @ mean)


def harvested(lm: LanguageModel, hook: Hook, corpus: Corpus, tokens: int, store: Store, seed: int) -> TrainingSet:
    """Harvest (or find in the store) the first `tokens` tokens of a corpus' training part."""
    rows = tokenised(lm, corpus, "train", tokens, store)
    cut = norm_cut(lm, hook, corpus, store)
    shards, kept = [], []
    for members, x in Harvest(lm, hook, store, "float16").shards(rows):
        special = rows.special[rows.positions(members)]
        mask = keep_mask(Rows(rows.ids, rows.offsets, rows.document, special), np.asarray(x), cut)
        shards.append(x)
        kept.append(np.flatnonzero(mask))
    n = sum(len(k) for k in kept)
    identity = digest([lm.name, lm.revision, str(hook), rows.sha256, cut])
    return TrainingSet(tuple(shards), tuple(kept), identity, 1 - n / len(rows.ids), seed)


def planted(world: World, tokens: int, store: Store, seed: int) -> TrainingSet:
    """Draw (or find in the store) tokens of a planted world; none is masked.

    The draws depend on the world alone: two runs see the same tokens, in the order of their own seed.
    """
    shards: list[np.ndarray] = []
    for i in range(0, tokens, _PLANTED_SHARD):
        n = min(_PLANTED_SHARD, tokens - i)
        parts = {"world": world.spec.sha256, "training": i // _PLANTED_SHARD, "tokens": n, "dtype": "float16"}
        rng = numpy_rng(world.spec.seed, "training", i // _PLANTED_SHARD)
        shards.append(store.get("planted", parts, lambda n=n, rng=rng: {"x": world.sample(n, rng)[0].astype(np.float16)})["x"])
    kept = tuple(np.arange(len(x)) for x in shards)
    return TrainingSet(tuple(shards), kept, digest(["planted", world.spec.sha256, tokens]), 0.0, seed)
