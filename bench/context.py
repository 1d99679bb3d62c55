"""What a task is given: the language model's activations, codes, the store, and named randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from bench.data.attributes import Classes, TwoWay, load_classes, load_two_way
from bench.data.attributes import identity as attributes_identity
from bench.data.concepts import Concepts
from bench.data.labelled import Labelled, load_set
from bench.data.labelled import identity as labelled_identity
from bench.data.text import Corpus, Rows, rows_of, tokenised
from bench.judge.questions import Judge
from bench.judge.statistics import OFFLINE
from bench.lm.concepts import Hierarchy, Spelling
from bench.lm.harvest import Harvest, keep_mask, norm_cut
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook, parse_hook
from bench.lm.splice import Splicer
from bench.rng import numpy_rng
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import Store

ACTIVE_FIRINGS = 20  # a latent with fewer firings on the evaluation tokens does not count as alive


@dataclass(frozen=True)
class Tokens:
    """Evaluation text with activations.

    Args:
        rows: Token rows.
        x: [n_tokens, d] activations at the hook, all positions.
        keep: [n_tokens] tokens that count.
    """

    rows: Rows
    x: np.ndarray
    keep: np.ndarray

    @cached_property
    def kept(self) -> np.ndarray:
        """[kept, d] activations of the tokens that count."""
        return self.x[self.keep]

    @cached_property
    def row(self) -> np.ndarray:
        """[kept] row of each token."""
        return np.repeat(np.arange(len(self.rows.lengths)), self.rows.lengths)[self.keep]

    @cached_property
    def document(self) -> np.ndarray:
        """[kept] document of each token, numbered from 0 without gaps."""
        return np.unique(self.rows.token_document[self.keep], return_inverse=True)[1]

    @property
    def dropped(self) -> int:
        """Tokens the mask leaves out."""
        return int((~self.keep).sum())

    def first(self, tokens: int) -> Tokens:
        """The first rows, as many as hold `tokens` tokens together (all where there are fewer)."""
        n = min(int(np.searchsorted(self.rows.offsets, tokens)), len(self.rows.lengths))
        end = int(self.rows.offsets[n])
        return Tokens(self.rows.take(np.arange(n)), self.x[:end], self.keep[:end])


@dataclass(frozen=True)
class Context:
    """Everything a task may ask for.

    Args:
        opener: Opens the language model; called when a task first needs it.
        site: `lm`, `revision`, `lm_dtype`, `hook`: where activations come from.
        corpus: Unlabelled text.
        store: Cache shared by all tasks and SAEs.
        seed: Root of every random draw.
        against: Name and SAE to compare dictionaries with (`--against`).
        labelled: Reads a labelled set by name.
        two_way: Reads a set with two attributes by name.
        classes: Reads a set of several classes by name.
        judge: Explains latents and detects them by their explanations.
    """

    has_lm: ClassVar[bool] = True  # a planted world has none
    opener: Callable[[], LanguageModel]
    site: Mapping[str, str]
    corpus: Corpus
    store: Store
    seed: int = 0
    against: tuple[str, Canonical] | None = None
    labelled: Callable[[str], Labelled] = load_set
    two_way: Callable[[str], TwoWay] = load_two_way
    classes: Callable[[str], Classes] = load_classes
    judge: Judge = OFFLINE

    def sets_identity(self, kind: Literal["labelled", "two_way", "classes"], names: tuple[str, ...]) -> str:
        """Hash of what sets of a kind hold; part of the key of what is measured on them."""
        return (labelled_identity if kind == "labelled" else attributes_identity)(names)

    def rng(self, *path: object) -> np.random.Generator:
        """Generator of one named draw."""
        return numpy_rng(self.seed, *path)

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model, opened on first use."""
        return self.opener()

    @property
    def device(self) -> str:
        """Where activations are computed."""
        return self.lm.device

    @property
    def hook(self) -> Hook:
        """The SAE's hook."""
        return parse_hook(self.site["hook"])

    @cached_property
    def norm_cut(self) -> float:
        """Norm above which a token is left out at this site."""
        return norm_cut(self.lm, self.hook, self.corpus, self.store)

    def evaluation_rows(self, tokens: int) -> Rows:
        """The first `tokens` tokens of the evaluation part, one row of each document."""
        return tokenised(self.lm, self.corpus, "eval", tokens, self.store, rows_per_document=1)

    def text(self, tokens: int) -> Tokens:
        """The first `tokens` tokens of the evaluation part, with activations and mask."""
        rows = self.evaluation_rows(tokens)
        x = Harvest(self.lm, self.hook, self.store).tokens(rows)
        return Tokens(rows, x, keep_mask(rows, x, self.norm_cut))

    def text_cached(self, tokens: int) -> tuple[int, int]:
        """How many tokens `text` would read, and how many of them are stored already."""
        rows = self.evaluation_rows(tokens)
        return len(rows.ids), round(len(rows.ids) * Harvest(self.lm, self.hook, self.store).cached(rows))

    def text_codes(self, sae: Canonical, text: Tokens) -> Codes:
        """Codes of the kept tokens of a text."""
        return self.codes(sae, text.kept, {"rows": text.rows.sha256, "cut": self.norm_cut})

    def codes(self, sae: Canonical, x: np.ndarray, identity: dict[str, object]) -> Codes:
        """Codes of activations, computed once per SAE and kept in the store.

        Args:
            sae: Canonical SAE.
            x: [n, d] activations.
            identity: What the activations are, beyond the site.
        """
        parts = {**self.site, **identity, "sae": sae.sha256}
        return _codes(self.store.get("codes", parts, lambda: sae.encode_sparse(x).arrays()), sae.d_sae)

    def splicer(self, text: Tokens) -> Splicer:
        """Loss measurements on a text."""
        return Splicer(self.lm, self.hook, text.rows, text.x, text.keep, self.store)

    def prompts(self, texts: list[str], context: int = 128) -> Rows:
        """One row per text: its last `context` tokens."""
        pieces = [self.lm.tail_row(t, context) for t in texts]
        return rows_of(pieces, list(range(len(texts))), self.lm.special_ids)

    def last_kept(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Activation at each row's last token that counts.

        Returns:
            ([n_rows, d] activations, [n_rows] whether the row has such a token; its activation is 0 otherwise).
        """
        wanted, some = last_ordinary(rows)
        x = Harvest(self.lm, self.hook, self.store).last(rows, wanted)
        some &= np.linalg.norm(x, axis=1) <= self.norm_cut
        return np.where(some[:, None], x, 0), some

    def pooled(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Mean activation of each row's tokens that count; kept in the store.

        Returns:
            ([n_rows, d] float32 means, [n_rows] whether the row has such a token; its mean is 0 otherwise).
        """
        parts = {**self.site, "rows": rows.sha256, "cut": self.norm_cut}
        found = self.store.get("pooled", parts, lambda: self._pool(rows))
        return np.asarray(found["x"]), np.asarray(found["some"])

    def _pool(self, rows: Rows) -> dict[str, np.ndarray]:
        out, some = np.zeros((len(rows.lengths), self.lm.d_model), np.float32), np.zeros(len(rows.lengths), bool)
        for members, tokens in self._shards(rows):
            size = np.bincount(tokens.row, minlength=len(members))
            sums = np.zeros((len(members), out.shape[1]))
            np.add.at(sums, tokens.row, tokens.kept)
            out[members], some[members] = sums / np.maximum(size, 1)[:, None], size > 0
        return {"x": out, "some": some}

    def pooled_codes(self, sae: Canonical, rows: Rows) -> Codes:
        """Codes of rows: the mean of the codes of each row's tokens that count, zeros counted; kept in the store."""

        def compute() -> dict[str, np.ndarray]:
            parts, order = [], []
            for members, tokens in self._shards(rows):
                parts.append(sae.encode_sparse(tokens.kept).pooled(tokens.row, len(members)))
                order.append(members)
            return Codes.concat(parts).take(np.argsort(np.concatenate(order))).arrays()

        parts = {**self.site, "pooled": rows.sha256, "cut": self.norm_cut, "sae": sae.sha256}
        return _codes(self.store.get("codes", parts, compute), sae.d_sae)

    def concepts(self, request: Spelling | Hierarchy) -> Concepts:
        """Words or sentences with one activation each, and the concepts that hold for them."""
        return request.read(self.lm, self.hook, self.store, self.norm_cut, self.seed)

    def concepts_planned(self, request: Spelling | Hierarchy) -> tuple[int, int]:
        """Tokens that `concepts` runs through the language model, and how many of them are done already."""
        prompts = request.prompts(self.lm, self.seed)
        return prompts.tokens_run, prompts.tokens_run * prompts.cached(self.lm, self.hook, self.store)

    def _shards(self, rows: Rows) -> Iterator[tuple[np.ndarray, Tokens]]:
        """Yield (row indices, their tokens), a bounded number of tokens at a time."""
        for members, x in Harvest(self.lm, self.hook, self.store).shards(rows):
            part = rows.take(members)
            yield members, Tokens(part, x, keep_mask(part, x, self.norm_cut))


def _codes(found: Mapping[str, np.ndarray], d_sae: int) -> Codes:
    frame = np.asarray(found["frame"]) if "frame" in found else None
    return Codes(np.asarray(found["indptr"]), np.asarray(found["indices"]), np.asarray(found["values"]), d_sae, frame)


def last_ordinary(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """[n_rows] flat index of each row's last token that is not special, and whether it has one (else its first token)."""
    starts = rows.offsets[:-1]
    ordinary = np.where(rows.special, -1, np.arange(len(rows.ids)))
    wanted = np.maximum.reduceat(ordinary, starts) if len(starts) else np.zeros(0, np.int64)
    return np.where(wanted >= starts, wanted, starts), wanted >= starts


def context_for(lm: LanguageModel, hook: Hook, corpus: Corpus, store: Store, seed: int = 0) -> Context:
    """A context on a language model that is already open."""
    return Context(lambda: lm, site_facts(lm.name, lm.revision, lm.dtype, hook), corpus, store, seed)


def site_facts(lm: str, revision: str, dtype: str, hook: Hook) -> dict[str, str]:
    """A site as plain data; part of every record's key."""
    return {"lm": lm, "revision": revision, "lm_dtype": dtype, "hook": str(hook)}
