"""Activations at one hook for rows of tokens: length-bucketed, early exit, resumable by shards.

Rows are sorted by length and cut into shards of about 32,768 tokens; each shard is one store entry, so an
interrupted harvest goes on where it stopped. Numbers do not depend on the sharding or the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from bench import progress
from bench.data.text import Corpus, Rows, tokenised
from bench.errors import ResourceError
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.store import Store

SHARD_TOKENS = 32_768
NORM_FACTOR = 5.0
CALIBRATION_TOKENS = 8_192


@dataclass(frozen=True)
class Harvest:
    """What to read where.

    Args:
        lm: Language model.
        hook: Place to read.
        store: Where activations are kept.
        dtype: `float32`, or `float16` for training sets.
    """

    lm: LanguageModel
    hook: Hook
    store: Store
    dtype: str = "float32"

    def tokens(self, rows: Rows) -> np.ndarray:
        """[n_tokens, d] activations of all rows, in row order."""
        out = np.empty((len(rows.ids), self.lm.d_model), dtype=self.dtype)
        for members, x in self.shards(rows):
            out[rows.positions(members)] = x
        return out

    def last(self, rows: Rows, wanted: np.ndarray) -> np.ndarray:
        """[n_rows, d] activations at one position per row.

        Args:
            rows: Token rows.
            wanted: [n_rows] index into the flat tokens.
        """
        out = np.empty((len(wanted), self.lm.d_model), dtype=self.dtype)
        for members, x in self._stored(rows, wanted):
            out[members] = x
        return out

    def shards(self, rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (row indices, [n, d] activations of their tokens in that order)."""
        return self._stored(rows, None)

    def cached(self, rows: Rows, wanted: np.ndarray | None = None) -> float:
        """Share of the shards already in the store."""
        have = [self.store.has("activations", self._parts(rows, m, wanted)) for m in _shards(rows)]
        return float(np.mean(have)) if have else 1.0

    def _parts(self, rows: Rows, members: np.ndarray, wanted: np.ndarray | None) -> dict[str, object]:
        part = _take(rows, members)
        picked = None if wanted is None else wanted[members] - rows.offsets[members]
        return {
            "lm": self.lm.name,
            "revision": self.lm.revision,
            "lm_dtype": self.lm.dtype,
            "hook": str(self.hook),
            "rows": part.sha256,
            "picked": None if picked is None else [int(p) for p in picked],
            "dtype": self.dtype,
        }

    def _stored(self, rows: Rows, wanted: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        shards = _shards(rows)
        label = f"activations of {self.lm.name.partition(':')[2]} at {self.hook}"
        with progress.track(label, len(rows.ids), "tokens") as advance:
            for members in shards:
                parts = self._parts(rows, members, wanted)
                x = self.store.get("activations", parts, lambda m=members: {"x": self._run(rows, m, wanted)})["x"]
                yield members, x
                advance(int(rows.lengths[members].sum()))

    def _run(self, rows: Rows, members: np.ndarray, wanted: np.ndarray | None) -> np.ndarray:
        """Activations of some rows, in their order; a batch is halved when memory runs out."""
        budget = first_batch(self.lm)
        pieces: list[np.ndarray] = []
        i = 0
        while i < len(members):  # rows are sorted from long to short, so the first of a batch is its longest
            batch = members[i : i + max(1, budget // int(rows.lengths[members[i]]))]
            halving(batch, lambda part: pieces.append(self._batch(rows, part, wanted)))
            i += len(batch)
        return np.concatenate(pieces).astype(self.dtype)

    def _batch(self, rows: Rows, batch: np.ndarray, wanted: np.ndarray | None) -> np.ndarray:
        ids, real = padded(rows, batch)
        x = self.lm.read(ids, [self.hook])[self.hook].float().cpu()
        if wanted is None:
            return x[real].numpy()
        at = torch.from_numpy(wanted[batch] - rows.offsets[batch])
        return x[torch.arange(len(batch)), at].numpy()


def first_batch(lm: LanguageModel) -> int:
    """Tokens per batch to begin with; `halving` corrects it where it is too many.

    On a GPU a quarter of the free memory, at 64 numbers of the model's width per token; on a CPU 2,048, beyond
    which nothing is gained.
    """
    if not lm.device.startswith("cuda"):
        return 2_048
    free = torch.cuda.mem_get_info(lm.device)[0]
    return max(2_048, min(262_144, free // (4 * 64 * 4 * lm.d_model)))


def halving(batch: np.ndarray, work: Callable[[np.ndarray], None]) -> None:
    """Do the work on a batch of rows, or on its halves in turn when memory does not suffice.

    Raises:
        ResourceError: Even one row does not fit.
    """
    try:
        work(batch)
        return
    except Exception as e:
        if not out_of_memory(e):
            raise
        if len(batch) == 1:
            raise ResourceError("one row of text does not fit in memory", "use a smaller model or another --device") from e
    progress.note("out of memory, halving the batch", rows=len(batch))
    for half in np.array_split(batch, 2):
        halving(half, work)


def out_of_memory(e: Exception) -> bool:
    """Whether an exception says that memory ran out; torch has no type of its own for it on a CPU."""
    return isinstance(e, MemoryError | torch.cuda.OutOfMemoryError) or (type(e) is RuntimeError and "DefaultCPUAllocator" in str(e))


def padded(rows: Rows, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [len(batch), longest] padded on the right with 0, and the mask of real tokens."""
    lengths = rows.lengths[batch]
    ids = np.zeros((len(batch), int(lengths.max())), dtype=np.int64)
    for r, i in enumerate(batch):
        ids[r, : lengths[r]] = rows.ids[rows.offsets[i] : rows.offsets[i + 1]]
    return torch.from_numpy(ids), torch.from_numpy(np.arange(ids.shape[1])[None] < lengths[:, None])


def norm_cut(lm: LanguageModel, hook: Hook, corpus: Corpus, store: Store) -> float:
    """Norm above which a token is left out: 5 × the median over 8,192 unmasked training tokens."""
    rows = tokenised(lm, corpus, "train", CALIBRATION_TOKENS, store)
    x = Harvest(lm, hook, store).tokens(rows)
    return float(NORM_FACTOR * np.median(np.linalg.norm(x[~rows.special], axis=1)))


def keep_mask(rows: Rows, x: np.ndarray, cut: float) -> np.ndarray:
    """[n_tokens] tokens that count: not special, not first in their row, norm within the cut."""
    return ~rows.special & (np.linalg.norm(x.astype(np.float32), axis=1) <= cut)


def _shards(rows: Rows) -> list[np.ndarray]:
    """Row indices sorted from long to short (ties by index), cut at about `SHARD_TOKENS` tokens."""
    order = np.argsort(-rows.lengths, kind="stable")
    edges = np.cumsum(rows.lengths[order]) // SHARD_TOKENS
    return [order[edges == e] for e in np.unique(edges)]


def _take(rows: Rows, members: np.ndarray) -> Rows:
    part = rows.take(members)
    return replace(part, document=np.zeros(len(members), dtype=np.int32))  # which document a row is from cannot move its activations
