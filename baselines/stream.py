"""Training straight from the language model: activations are harvested as they are needed, and nothing of them is kept on disk.

The text is cut into blocks of rows, in the order of the documents' hashes. A block is harvested, masked, shuffled and
handed out whole before the next one is read, so it is the shuffle buffer: the order depends on the seed and the data
alone. In memory are one block and the first 65,536 kept tokens, from which mean and variance for the input scaling and
the calibration of thresholds come; both are float16. With a buffer below that the first tokens are harvested twice.

On disk stay the token ids (5 bytes a token), the moments, and one number per block: how many of its tokens the mask
keeps. With these an interrupted run harvests again only the block it stopped in, and at the end the first 65,536 tokens.
A second pass over the text harvests it again. On a CPU what is harvested again is the same bit for bit; on a GPU batches
follow the free memory, and activations may differ in their last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np
import torch
from torch import Tensor

from baselines.activations import CALIBRATION, moments_of
from bench.data.text import Corpus, Rows, tokenised
from bench.errors import UsageError, VerificationError
from bench.lm.harvest import Harvest, keep_mask, norm_cut
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.rng import numpy_rng
from bench.store import Arrays, Store, digest

BUFFER = 131_072


@dataclass(frozen=True)
class Stream:
    """Kept tokens of a text, harvested block by block; a `Source`.

    Args:
        lm: Language model.
        hook: Place to read.
        rows: Tokens of the text.
        cut: Norm above which a token is left out.
        store: Keeps the few numbers that are kept.
        buffer: Tokens of a block, masked ones included.
        seed: Root of the data order.
    """

    lm: LanguageModel
    hook: Hook
    rows: Rows
    cut: float
    store: Store
    buffer: int
    seed: int
    _held: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _counts: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def n(self) -> int:
        """Tokens that the mask may keep: all but the special and first ones."""
        return int((~self.rows.special).sum())

    @property
    def sha256(self) -> str:
        """Identity of the activations, the mask and the blocks."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return digest(["stream", self.lm.name, self.lm.revision, str(self.hook), self.rows.sha256, self.cut, self.buffer])

    @property
    def dropped(self) -> float:
        """Share of tokens the mask leaves out: in the blocks read so far; before that the special ones."""
        if not self._counts:
            return float(self.rows.special.mean())
        tokens = sum(int(self.rows.lengths[self.blocks[b]].sum()) for b in self._counts)
        return 1 - sum(self._counts.values()) / tokens

    @cached_property
    def blocks(self) -> list[np.ndarray]:
        """Rows of each block: neighbours, `buffer` tokens and at most a row more."""
        edges = self.rows.offsets[:-1] // self.buffer
        return [np.flatnonzero(edges == e) for e in np.unique(edges)]

    @property
    def moments(self) -> tuple[Tensor, float]:
        """Mean [d] and total variance of the first 65,536 kept tokens."""

        def compute() -> Arrays:
            mean, variance = moments_of([self._first])
            return {"mean": mean, "variance": np.array(variance)}

        found = self._kept("moments", 0, compute)
        return torch.from_numpy(np.array(found["mean"])), float(found["variance"])

    def batch(self, step: int, size: int) -> Tensor:
        """[size, d] float32 tokens of one step; every pass over the text shuffles every block anew.

        Raises:
            VerificationError: A block that is harvested again has another number of kept tokens.
        """
        out = np.empty((size, self.lm.d_model), dtype=np.float32)
        filled, skip = 0, step * size
        for turn in count():
            turns, block = divmod(turn, len(self.blocks))
            n = self._count(block)
            if skip >= n:
                skip -= n
                continue
            x = self._block(block)
            if len(x) != n:
                raise VerificationError(f"block {block} of the text is not what it was", "start again with another --out")
            order = numpy_rng(self.seed, "order", turns, block).permutation(n)[skip : skip + size - filled]
            out[filled : filled + len(order)] = x[order]
            filled, skip = filled + len(order), 0
            if filled == size:
                break
        return torch.from_numpy(out)

    def calibration(self) -> Tensor:
        """[≤ 65,536, d] the first kept tokens."""
        return torch.from_numpy(self._first.astype(np.float32))

    @cached_property
    def _first(self) -> np.ndarray:
        pieces: list[np.ndarray] = []
        for block in range(len(self.blocks)):
            pieces.append(self._block(block))
            if sum(map(len, pieces)) >= CALIBRATION:
                break
        return np.concatenate(pieces)[:CALIBRATION]

    def _count(self, block: int) -> int:
        """Tokens of a block that the mask keeps."""
        if block not in self._counts:
            self._counts[block] = int(self._kept("kept", block, lambda: {"n": np.array(len(self._block(block)))})["n"])
        return self._counts[block]

    def _block(self, block: int) -> np.ndarray:
        """[kept, d] float16 tokens of a block in the text's order; the last one is held."""
        if block not in self._held:
            self._held.clear()
            rows = self.rows.take(self.blocks[block])
            x = Harvest(self.lm, self.hook, _Nowhere(self.store.root), "float16").tokens(rows)
            self._held[block] = x[keep_mask(rows, x, self.cut)]
        return self._held[block]

    def _kept(self, what: str, block: int, compute: Callable[[], Arrays]) -> Arrays:
        return self.store.get("stream", {"stream": self.sha256, "what": what, "block": block}, compute)


class _Nowhere(Store):
    """A store that keeps nothing."""

    def get(self, kind: str, parts: Mapping[str, object], compute: Callable[[], Arrays]) -> Arrays:
        return compute()


def streamed(lm: LanguageModel, hook: Hook, corpus: Corpus, tokens: int, store: Store, seed: int, buffer: int = BUFFER) -> Stream:
    """Stream the first `tokens` tokens of a corpus' training part; the mask is that of every other use of the site.

    Raises:
        UsageError: The text has no token that may train.
    """
    rows = tokenised(lm, corpus, "train", tokens, store)
    stream = Stream(lm, hook, rows, norm_cut(lm, hook, corpus, store), store, buffer, seed)
    if not stream.n:
        raise UsageError(f"{corpus.name} has no token to train on", "give longer documents")
    return stream
