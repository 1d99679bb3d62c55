"""A context whose activations come from a planted world: every task that needs no language model runs on it unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal

import numpy as np
from scipy.sparse import csr_matrix

from bench.context import Context, Tokens, last_ordinary, site_facts
from bench.data.concepts import Concepts
from bench.data.text import Corpus, Rows, rows_of
from bench.errors import BenchError, UsageError
from bench.lm.concepts import Hierarchy, Spelling
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import Store, digest
from bench.worlds.items import TEXT, Items, class_set, concept_items, labelled_set, two_way_set
from bench.worlds.planted import World

ROW = 64  # tokens of a planted document, the first of which is masked as in every text


class NoLanguageModelError(BenchError):
    """A task asks a planted world for its language model; it does not apply there."""

    code = "no_language_model"


@dataclass(frozen=True)
class WorldContext(Context):
    """Serves tasks from a world instead of a language model. Made by `world_context`.

    Args:
        items: The world's tokens.
    """

    has_lm: ClassVar[bool] = False
    items: Items | None = None

    @property
    def world(self) -> World:
        """The world."""
        return self._items.world

    @property
    def device(self) -> str:
        """Where activations are computed."""
        return "cpu"

    @property
    def _items(self) -> Items:
        if self.items is None:
            raise UsageError("a context of a world needs its items", "make it with bench.worlds.context.world_context")
        return self.items

    @cached_property
    def norm_cut(self) -> float:
        return float("inf")

    def sets_identity(self, kind: Literal["labelled", "two_way", "classes"], names: tuple[str, ...]) -> str:
        return digest([self.site["revision"], kind, *(self._set_identity(kind, n) for n in names)])

    def _set_identity(self, kind: str, name: str) -> str:
        try:
            if kind == "labelled":
                return self.labelled(name).info.sha256
            return (self.two_way(name) if kind == "two_way" else self.classes(name)).identity
        except UsageError as e:  # the world has no such set; the task itself will say so
            return e.cause

    def text(self, tokens: int) -> Tokens:
        """The first `tokens` planted tokens, in documents of 64."""
        ids = np.arange(TEXT, TEXT + tokens, dtype=np.int32)
        offsets = np.append(np.arange(0, tokens, ROW), tokens).astype(np.int64)
        special = np.zeros(tokens, bool)
        special[offsets[:-1]] = True
        rows = Rows(ids, offsets, np.arange(len(offsets) - 1, dtype=np.int32), special)
        return Tokens(rows, self._items.read(ids)[0], ~special)

    def truth(self, text: Tokens) -> Codes:
        """True codes of a text's kept tokens."""
        return self._items.read(text.rows.ids[text.keep])[1]

    def text_cached(self, tokens: int) -> tuple[int, int]:
        return tokens, tokens

    def prompts(self, texts: list[str], context: int = 128) -> Rows:
        """One row per item number: a masked first token, then the item."""
        if not all(t.isdecimal() for t in texts):
            raise UsageError("a planted world has no words, only numbered items", "give decimal numbers as texts")
        return rows_of([[0, int(t)] for t in texts], list(range(len(texts))), set())

    def last_kept(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        wanted, some = last_ordinary(rows)
        x = self._items.read(rows.ids[wanted])[0]
        return np.where(some[:, None], x, 0), some

    def pooled(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        tokens, n = self._tokens(rows), len(rows.lengths)
        size = np.bincount(tokens.row, minlength=n)
        member = csr_matrix((1 / size[tokens.row], (tokens.row, np.arange(len(tokens.row)))), shape=(n, len(tokens.row)))
        return (member @ tokens.kept).astype(np.float32), size > 0

    def pooled_codes(self, sae: Canonical, rows: Rows) -> Codes:
        tokens = self._tokens(rows)
        codes = self.codes(sae, tokens.kept, {"rows": rows.sha256, "cut": self.norm_cut})
        return codes.pooled(tokens.row, len(rows.lengths))

    def concepts(self, request: Spelling | Hierarchy) -> Concepts:
        """Items on which features with children fire, in place of words."""
        return concept_items(self._items, isinstance(request, Hierarchy))

    def concepts_planned(self, request: Spelling | Hierarchy) -> tuple[int, int]:
        return 0, 0

    def _tokens(self, rows: Rows) -> Tokens:
        return Tokens(rows, self._items.read(rows.ids)[0], ~rows.special)


def world_context(world: World, store: Store, seed: int = 0, against: tuple[str, Canonical] | None = None) -> WorldContext:
    """The context of a world.

    Args:
        world: Where activations come from.
        store: Cache shared by all tasks and SAEs.
        seed: Root of every random draw of the tasks; the world's own draws depend on its specification alone.
        against: Name and SAE to compare dictionaries with.
    """
    items = Items(world, store)
    return WorldContext(
        opener=partial(_refuse, world.name),
        site=world_site(world),
        corpus=Corpus(world.name, world.spec.sha256, lambda: iter(())),
        store=store,
        seed=seed,
        against=against,
        labelled=partial(labelled_set, items),
        two_way=partial(two_way_set, items),
        classes=partial(class_set, items),
        items=items,
    )


def world_site(world: World) -> dict[str, str]:
    """A world's site, as that of a language model: a name, what pins it, and one place."""
    return site_facts(world.name, world.spec.sha256, "float32", Hook(0))


def _refuse(name: str) -> LanguageModel:
    raise NoLanguageModelError(
        f"{name} is a planted world: it has activations, but no language model", "measure this task on a language model"
    )
