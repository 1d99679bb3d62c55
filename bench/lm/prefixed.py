"""Activations of single tokens after a few fixed prefixes: each prefix runs once, then only the tokens do."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from bench import progress
from bench.data.text import Rows, rows_of
from bench.lm.harvest import Harvest, halving, out_of_memory
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.store import Store, array_sha256

_BATCH = 64  # keys and values of a prefix are copied once per token of a batch
_AGREES = 1e-3  # relative difference between cached and whole prompts that rounding explains


@dataclass(frozen=True)
class Prefixed:
    """Prompts that are one of a few prefixes followed by one token.

    Args:
        prefixes: Token ids of each prefix.
        which: [n] prefix of each prompt.
        token: [n] its last token.
    """

    prefixes: tuple[tuple[int, ...], ...]
    which: np.ndarray
    token: np.ndarray

    @property
    def tokens_run(self) -> int:
        """Tokens that go through the model."""
        return sum(len(p) for p in self.prefixes) + len(self.token)

    def cached(self, lm: LanguageModel, hook: Hook, store: Store) -> bool:
        """Whether the activations are in the store."""
        return store.has("prefixed", self.parts(lm, hook))

    def rows(self, special_ids: set[int]) -> Rows:
        """The prompts written out."""
        pieces = [[*self.prefixes[p], int(t)] for p, t in zip(self.which, self.token, strict=True)]
        return rows_of(pieces, list(range(len(pieces))), special_ids)

    def parts(self, lm: LanguageModel, hook: Hook) -> dict[str, object]:
        """What the activations depend on; their key in the store."""
        flat = np.concatenate([np.zeros(0, np.int64), *(np.array(p, np.int64) for p in self.prefixes)])
        sha = array_sha256(flat, np.array([len(p) for p in self.prefixes]), self.which, self.token)
        return {"lm": lm.name, "revision": lm.revision, "lm_dtype": lm.dtype, "hook": str(hook), "prompts": sha}

    def activations(self, lm: LanguageModel, hook: Hook, store: Store) -> np.ndarray:
        """[n, d] float32 activations at the last token of each prompt; kept in the store."""
        if not len(self.token):
            return np.zeros((0, lm.d_model), np.float32)
        return store.get("prefixed", self.parts(lm, hook), lambda: {"x": self._run(lm, hook, store)})["x"]

    def _run(self, lm: LanguageModel, hook: Hook, store: Store) -> np.ndarray:
        alone = 2 * len(self.prefixes) > len(self.token)  # prefixes that serve one prompt each are not worth keeping
        if alone or not self._reusable(lm, hook):
            rows = self.rows(lm.special_ids)
            return Harvest(lm, hook, store).last(rows, rows.offsets[1:] - 1)
        out = np.empty((len(self.token), lm.d_model), np.float32)
        with progress.track(f"words after prefixes at {hook}", len(self.token), "words") as advance:
            for p, prefix in enumerate(self.prefixes):
                past = _past(lm, hook, prefix)
                mine = np.flatnonzero(self.which == p)
                for batch in np.array_split(mine, -(-len(mine) // _BATCH)) if len(mine) else []:

                    def work(part: np.ndarray, past: object = past) -> None:
                        out[part] = _after(lm, hook, past, self.token[part])

                    halving(batch, work)
                    advance(len(batch))
        return out

    def _reusable(self, lm: LanguageModel, hook: Hook) -> bool:
        """Whether the first prompt gives the same activation with and without a cache, on this architecture."""
        prefix, token = self.prefixes[int(self.which[0])], self.token[:1]
        whole = lm.read(torch.tensor([[*prefix, int(token[0])]]), [hook])[hook][0, -1].float().cpu().numpy()
        try:
            quick = _after(lm, hook, _past(lm, hook, prefix), token)[0]
        except Exception as e:  # whatever a model without such a cache raises
            if out_of_memory(e):
                raise
            return False
        return bool(np.linalg.norm(quick - whole) <= _AGREES * np.linalg.norm(whole))


NOTHING = Prefixed((), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _past(lm: LanguageModel, hook: Hook, prefix: tuple[int, ...]) -> object:
    from transformers import DynamicCache

    past = DynamicCache(config=lm.model.config.get_text_config())
    lm.read(torch.tensor([list(prefix)]), [hook], past)
    return past


def _after(lm: LanguageModel, hook: Hook, past: object, tokens: np.ndarray) -> np.ndarray:
    """[n, d] activations of single tokens, each right after the prefix."""
    own = copy.deepcopy(past)
    own.batch_repeat_interleave(len(tokens))  # pyright: ignore[reportAttributeAccessIssue]
    ids = torch.from_numpy(tokens.astype(np.int64))[:, None]
    return lm.read(ids, [hook], own)[hook][:, -1].float().cpu().numpy()
