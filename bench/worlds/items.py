"""Items of a planted world: numbered tokens whose activation and truth are known, and labelled sets made of them.

An item's number is its identity: item i is the same token in every run. The first `POOL` items make the labelled
sets; text begins at `TEXT`. Where a task wants a text, the item's decimal number stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csc_matrix

from bench.data import attributes, labelled
from bench.data.attributes import Classes, TwoWay
from bench.data.concepts import Concepts
from bench.data.labelled import Labelled, SetInfo
from bench.errors import UsageError
from bench.rng import numpy_rng
from bench.sae.codes import Codes
from bench.store import Arrays, Store, array_sha256, digest
from bench.worlds.planted import World
from bench.worlds.truth import fires

POOL, TEXT = 1 << 16, 1 << 20
_BLOCK = 4096
_PER_LABEL = 500  # most items of one label, cell or class
_PER_CONCEPT = 300  # items drawn for one concept of absorption
_FEWEST = 100  # items of each label below which a feature is no question
_MOST_CONCEPTS = 32


@dataclass(frozen=True)
class Items:
    """Items of one world.

    Args:
        world: Where they come from.
        store: Where blocks of them are kept.
    """

    world: World
    store: Store

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, Codes]:
        """[n, d] float32 activations and true codes of items by number."""
        x = np.empty((len(numbers), self.world.d), np.float32)
        parts, order = [Codes.from_dense(np.zeros((0, self.world.n_features), np.float32))], [np.zeros(0, np.int64)]
        for block in np.unique(numbers // _BLOCK):
            at = np.flatnonzero(numbers // _BLOCK == block)
            found = self._block(int(block))
            x[at] = found["x"][numbers[at] % _BLOCK]
            parts.append(_codes(found, self.world.n_features).take(numbers[at] % _BLOCK))
            order.append(at)
        return x, Codes.concat(parts).take(np.argsort(np.concatenate(order), kind="stable"))

    @cached_property
    def pool(self) -> csc_matrix:
        """[POOL, features] which features fire on the first items."""
        blocks = [_codes(self._block(b), self.world.n_features) for b in range(POOL // _BLOCK)]
        return fires(Codes.concat(blocks))

    def fires(self, feature: int) -> np.ndarray:
        """[POOL] whether a feature fires on each item of the pool."""
        return self.pool[:, [feature]].toarray().ravel() > 0

    def _block(self, block: int) -> Arrays:
        def compute() -> Arrays:
            x, codes = self.world.sample(_BLOCK, numpy_rng(self.world.spec.seed, "items", block))
            return {"x": x, **codes.arrays()}

        return self.store.get("planted", {"world": self.world.spec.sha256, "block": block, "size": _BLOCK}, compute)

    def draw(self, members: np.ndarray, most: int, *path: object) -> np.ndarray:
        """At most so many of the pool's items in the mask, in random order."""
        return numpy_rng(self.world.spec.seed, "items", *path).permutation(np.flatnonzero(members))[:most]


def labelled_set(items: Items, name: str) -> Labelled:
    """Does a feature fire? Balanced.

    Args:
        items: Items.
        name: `feature_12`, or the name of a real probing set, which stands for one of the concepts.
    """
    known = list(labelled.catalogue())
    (feature,) = _features(items.world, name, "feature", items.world.concepts[:, None], known)
    fires = items.fires(feature)
    size = min(_PER_LABEL, int(fires.sum()), int((~fires).sum()))
    if size < _FEWEST:
        raise UsageError(f"feature {feature} of {items.world.name} fires on {int(fires.sum())} of {POOL} items", "ask for another feature")
    drawn = [items.draw(fires == y, size, "labelled", feature, y) for y in (False, True)]
    texts = [str(i) for i in np.stack(drawn, 1).ravel()]
    sha = digest([items.world.spec.sha256, "labelled", feature])
    info = SetInfo(name, f"does feature {feature} fire?", len(texts), f"feature {feature}", sha)
    return Labelled(info, texts, np.tile([0, 1], size).astype(np.int8), {})


def two_way_set(items: Items, name: str) -> TwoWay:
    """Which of two features fire?

    Args:
        items: Items.
        name: `features_3_7`, or the name of a real set, which stands for one of the pairs of neighbouring roots.
    """
    known, pairs = list(attributes.two_way_sets()), np.arange(items.world.spec.roots // 2 * 2).reshape(-1, 2)
    first, second = _features(items.world, name, "features", pairs, known)
    a, b = items.fires(first), items.fires(second)
    size = min(_PER_LABEL, *(int(((a == p) & (b == q)).sum()) for p in (0, 1) for q in (0, 1)))
    cells = [items.draw((a == p) & (b == q), size, "two_way", first, second, p, q) for p in (0, 1) for q in (0, 1)]
    at = np.concatenate(cells)
    names = (f"feature {first}", f"feature {second}")
    sha = digest([items.world.spec.sha256, "two_way", first, second])
    return TwoWay(name, [str(i) for i in at], a[at], b[at], *names, names, sha, {})


def class_set(items: Items, name: str) -> Classes:
    """Which of a parent's exclusive children fires?

    Args:
        items: Items.
        name: `children_5`, or the name of a real set, which stands for one of the roots.
    """
    world, known = items.world, list(attributes.class_sets())
    (parent,) = _features(world, name, "children", np.arange(world.spec.roots)[:, None], known)
    children = world.children(parent)
    if len(children) < 2 or not world.spec.exclusive:
        raise UsageError(f"feature {parent} of {world.name} has no exclusive children", "ask for another feature")
    fires = [items.fires(int(c)) for c in children]
    size = min(_PER_LABEL, *(int(f.sum()) for f in fires))
    at = np.concatenate([items.draw(f, size, "classes", c) for c, f in zip(children, fires, strict=True)])
    sha = digest([world.spec.sha256, "classes", parent])
    family, names = f"feature {parent}", tuple(f"feature {c}" for c in children)
    return Classes(name, [str(i) for i in at], np.repeat(np.arange(len(children)), size), names, family, sha, {})


def concept_items(items: Items, by_descendant: bool) -> Concepts:
    """Items on which parents fire; the concepts are the parents.

    Args:
        items: Items.
        by_descendant: Take the roots, put the items of one lowest descendant into one group, and let an item count for
            the root it was drawn for and against those that do not fire; otherwise take the most frequent parents,
            every item its own group.
    """
    world = items.world
    parents = np.arange(world.spec.roots) if by_descendant else world.concepts
    size = np.diff(items.pool.indptr)[parents]
    parents = parents[np.argsort(-size, kind="stable")][:_MOST_CONCEPTS]
    parents = np.sort(parents[np.diff(items.pool.indptr)[parents] >= _FEWEST])
    drawn = [items.draw(items.fires(int(p)), _PER_CONCEPT, "concept", p) for p in parents]
    at, first = np.unique(np.concatenate([*drawn, np.zeros(0, np.int64)]), return_index=True)
    x, truth = items.read(at)
    labels = fires(truth)[:, parents].toarray() > 0
    own = np.repeat(parents, [len(d) for d in drawn])[first]
    group = _lowest(world, truth, own) if by_descendant else np.arange(len(at))
    known = ~labels | (parents == own[:, None]) if by_descendant else np.ones_like(labels)
    identity, counts = (
        {"planted": "concepts", "by_descendant": by_descendant, "items": array_sha256(at)},
        {"items": len(at), "parents": len(parents)},
    )
    return Concepts(x, labels, tuple(f"feature {p}" for p in parents), group, identity, counts, known)


def _lowest(world: World, truth: Codes, root: np.ndarray) -> np.ndarray:
    """[n] lowest feature below each item's root that fires on it."""
    matrix, out = fires(truth), root.copy()
    for _ in range(world.spec.depth):
        for feature in np.unique(out):
            at = np.flatnonzero(out == feature)
            for child in world.children(int(feature)):
                out[at[matrix[:, [child]].toarray().ravel()[at] > 0]] = child
    return out


def _features(world: World, name: str, prefix: str, choices: np.ndarray, known: Sequence[str]) -> list[int]:
    """The features a set's name stands for.

    Args:
        world: Whose features.
        name: `PREFIX_3` (with as many numbers as a choice has), or the name of a real set: those take the choices in turn.
        prefix: Prefix of the first form.
        choices: [n, k] features.
        known: Names of the real sets.

    Raises:
        UsageError: Neither.
    """
    parts = name.removeprefix(f"{prefix}_").split("_")
    if name in known and len(choices):
        return [int(f) for f in choices[list(known).index(name) % len(choices)]]
    if len(parts) == choices.shape[1] and all(p.isdecimal() and int(p) < world.n_features for p in parts):
        return [int(p) for p in parts]
    numbers = "_".join(str(i) for i in range(choices.shape[1]))
    raise UsageError(f"{world.name} has no set {name!r}", f"write {prefix}_{numbers}, or the name of a real set such as {known[0]}")


def _codes(found: Arrays, n_features: int) -> Codes:
    return Codes(np.asarray(found["indptr"]), np.asarray(found["indices"]), np.asarray(found["values"]), n_features)
