"""Words and sentences run through the language model, with the concepts that hold for them.

First letters: Chanin et al. 2024 (arXiv 2409.14507), on whole-word tokens, ten examples before the question.
Parents and children: nouns of WordNet at the end of a sentence's beginning.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from bench.data import hierarchy, spelling
from bench.data.concepts import Concepts
from bench.kernels.folds import three_parts
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.lm.prefixed import NOTHING, Prefixed
from bench.rng import numpy_rng
from bench.store import Store, digest

_EXAMPLES = 10


@dataclass(frozen=True)
class Spelling:
    """Which letter a word begins with.

    Args:
        words: Most words per letter; 0 takes all.
        fewest: Letters with fewer words are left out.
        prefixes: Fixed prompts, each with ten examples from the training words; 0 draws ten examples anew for every
            word, from the words of its own part (the published protocol), and runs every prompt whole.
    """

    words: int = 0
    fewest: int = 250
    prefixes: int = 20

    @property
    def sha256(self) -> str:
        """Identity of the words and the protocol."""
        return digest([spelling.words_sha256(), self.words, self.fewest, self.prefixes])

    def prompts(self, lm: LanguageModel, seed: int) -> Prefixed:
        """What goes through the language model."""
        return self._prompts(lm, self._chosen(lm, seed), seed)

    def read(self, lm: LanguageModel, hook: Hook, store: Store, cut: float, seed: int) -> Concepts:
        """One activation per word, read at the word itself."""
        chosen = self._chosen(lm, seed)
        prompts = self._prompts(lm, chosen, seed)
        names = tuple(sorted({w[0] for w in chosen.words}))
        labels = np.array([w[0] for w in chosen.words], "U1")[:, None] == np.array(names, "U1")
        counts = {**chosen.counts, "letters": len(names)}
        x = prompts.activations(lm, hook, store)
        found = Concepts(x, labels, names, np.arange(len(x)), prompts.parts(lm, hook), counts, np.ones_like(labels), chosen.part)
        return _within(found, cut)

    def _chosen(self, lm: LanguageModel, seed: int) -> _Words:
        """Words of one token each, letters with too few left out, at most `words` per letter; and their part."""
        found = spelling.single_tokens(spelling.words(), lm.tokenizer)
        listed = np.array(sorted(found))
        order = listed[numpy_rng(seed, "spelling", "order").permutation(len(listed))]
        size = Counter(w[0] for w in order)
        taken: Counter[str] = Counter()
        words: list[str] = []
        for w in order.tolist():
            if size[w[0]] >= self.fewest and (not self.words or taken[w[0]] < self.words):
                taken[w[0]] += 1
                words.append(w)
        part = three_parts(np.array([ord(w[0]) for w in words]), numpy_rng(seed, "spelling", "split"))
        rare = sum(n < self.fewest for n in size.values())
        counts = {"words_of_one_token": len(listed), "words": len(words), "letters_with_too_few_words": rare}
        return _Words(tuple(words), np.array([found[w] for w in words]), part, counts)

    def _prompts(self, lm: LanguageModel, chosen: _Words, seed: int) -> Prefixed:
        if not chosen.words:
            return NOTHING
        rng = numpy_rng(seed, "spelling", "examples", self.prefixes)
        words, train = np.array(chosen.words), np.flatnonzero(chosen.part == 0)
        if not self.prefixes:
            shown = np.stack([_others(rng, np.flatnonzero(chosen.part == p), i) for i, p in enumerate(chosen.part)])
            texts = [_prompt(words[s]) for s in shown]
            return Prefixed(_token_ids(lm, texts), np.arange(len(words)), chosen.token)
        shown = np.stack([rng.choice(train, _EXAMPLES, replace=False) for _ in range(self.prefixes)])
        holds = [set(row.tolist()) for row in shown]
        which = np.array([_first_without(i, _place(w, self.prefixes), holds) for i, w in enumerate(chosen.words)])
        return Prefixed(_token_ids(lm, [_prompt(words[s]) for s in shown]), which, chosen.token)


@dataclass(frozen=True)
class _Words:
    words: tuple[str, ...]
    token: np.ndarray
    part: np.ndarray
    counts: dict[str, int]


@dataclass(frozen=True)
class Hierarchy:
    """Nouns of WordNet at the end of a sentence's beginning; the concepts are their parents.

    Args:
        sentences: Beginnings that each child is read after.
        fewest: Parents with fewer one-token children are left out.
        parents: Most parents, those with most children; 0 takes all.
    """

    sentences: int = 8
    fewest: int = 16
    parents: int = 0

    @property
    def sha256(self) -> str:
        """Identity of the nouns and the sentences."""
        return digest([hierarchy.hierarchy_sha256(), list(hierarchy.BEGINNINGS), self.sentences, self.fewest, self.parents])

    def prompts(self, lm: LanguageModel, seed: int) -> Prefixed:
        """What goes through the language model."""
        return self._prompts(lm)[0]

    def read(self, lm: LanguageModel, hook: Hook, store: Store, cut: float, seed: int) -> Concepts:
        """One activation per child and sentence, read at the child."""
        prompts, child, children, parents = self._prompts(lm)
        shape = (len(children), len(parents))
        member = np.array([c in p.children for c in children for p in parents], bool).reshape(shape)
        also = np.array([c in p.also for c in children for p in parents], bool).reshape(shape)
        counts = {"parents": len(parents), "children": len(children), "parents_left_out": len(hierarchy.parents()) - len(parents)}
        x = prompts.activations(lm, hook, store)
        names = tuple(p.name for p in parents)
        return _within(Concepts(x, member[child], names, child, prompts.parts(lm, hook), counts, ~also[child]), cut)

    def _prompts(self, lm: LanguageModel) -> tuple[Prefixed, np.ndarray, list[str], list[hierarchy.Parent]]:
        every = {c for p in hierarchy.parents() for c in p.children}
        token = spelling.single_tokens(tuple(sorted(every)), lm.tokenizer)
        size = {p: sum(c in token for c in p.children) for p in hierarchy.parents()}
        largest = sorted((p for p in size if size[p] >= self.fewest), key=lambda p: -size[p])[: self.parents or None]
        parents = [p for p in hierarchy.parents() if p in largest]
        children = sorted({c for p in parents for c in p.children if c in token})
        child = np.repeat(np.arange(len(children)), self.sentences)
        if not children:
            return NOTHING, child, children, parents
        turn = np.tile(np.arange(self.sentences), len(children))
        base = np.array([_place(c, len(hierarchy.BEGINNINGS)) for c in children])
        which = (base[child] + turn) % len(hierarchy.BEGINNINGS)
        ids = np.array([token[c] for c in children], np.int64)
        return Prefixed(_token_ids(lm, list(hierarchy.BEGINNINGS)), which, ids[child]), child, children, parents


def _within(items: Concepts, cut: float) -> Concepts:
    """The items whose activation norm is within the cut; the rest is counted."""
    keep = np.linalg.norm(items.x, axis=1) <= cut
    counts = {**items.counts, "items": int(keep.sum()), "items_masked": int((~keep).sum())}
    return replace(items, counts=counts, identity={**items.identity, "cut": cut}).where(keep)


def _token_ids(lm: LanguageModel, texts: list[str]) -> tuple[tuple[int, ...], ...]:
    found = lm.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tuple(tuple([*lm.lead(), *ids]) for ids in found)


def _prompt(examples: np.ndarray) -> str:
    return "\n" + "".join(f" {w} has the first letter: {w[0].upper()}\n" for w in examples)


def _place(word: str, n: int) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % n


def _first_without(word: int, start: int, holds: list[set[int]]) -> int:
    """The next prefix, from `start` on, whose examples do not hold the word."""
    n = len(holds)
    return next(((start + i) % n for i in range(n) if word not in holds[(start + i) % n]), start)


def _others(rng: np.random.Generator, pool: np.ndarray, word: int) -> np.ndarray:
    """Ten words of a pool, never the word itself; repeated only where the pool has too few."""
    others = pool[pool != word]
    return rng.choice(others, _EXAMPLES, replace=len(others) < _EXAMPLES)
