"""Splitting rows fairly, and grouping data sets that are not independent of one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components


def stratified_sample(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of at most `most` rows in random order, classes in their own proportions (each keeps at least one)."""
    order = rng.permutation(len(labels))
    if len(labels) <= most:
        return order
    share = most / len(labels)
    picked = [order[labels[order] == c][: max(1, round(share * int((labels == c).sum())))] for c in np.unique(labels)]
    chosen = np.concatenate(picked)
    chosen = chosen[rng.permutation(len(chosen))]
    first = np.unique(labels[chosen], return_index=True)[1]  # rounding up may give too many: no class loses its only row
    kept = np.concatenate([first, np.setdiff1d(np.arange(len(chosen)), first)])[:most]
    return chosen[np.sort(kept)]


def stratified_split(labels: np.ndarray, test_share: float, rng: np.random.Generator) -> np.ndarray:
    """[n] bool, True for test rows: the share is kept within every class, with at least one row on each side."""
    test = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        size = min(max(1, round(test_share * len(members))), len(members) - 1)
        test[members[:size]] = True
    return test


def source_families(texts: Mapping[str, Sequence[bytes]], groups: Mapping[str, str], share: float = 0.05) -> dict[str, str]:
    """Group data sets that share texts or a source file; units of statistics are families, not sets.

    Args:
        texts: Set name → hashes of its de-duplicated texts.
        groups: Set name → name of the multi-class file it was cut from, where there is one.
        share: Two sets are joined when this share of the smaller one's texts is also in the other.

    Returns:
        Set name → family, named after the family's alphabetically first set.
    """
    names = sorted(texts)
    kept = {n: set(texts[n]) for n in names}
    owners: dict[bytes, list[int]] = {}
    for i, n in enumerate(names):
        for h in kept[n]:
            owners.setdefault(h, []).append(i)
    common = Counter((a, b) for who in owners.values() for k, a in enumerate(who) for b in who[k + 1 :])
    edges = [(a, b) for (a, b), c in common.items() if c >= share * min(len(kept[names[a]]), len(kept[names[b]]))]
    edges += [(a, b) for a, m in enumerate(names) for b, n in enumerate(names) if a < b and m in groups and groups[m] == groups.get(n)]
    rows, cols = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = sp.coo_matrix((np.ones(len(rows)), (rows, cols)), shape=(len(names), len(names)))
    label = connected_components(graph, directed=False)[1]
    first = {c: n for c, n in reversed(list(zip(label, names, strict=True)))}
    return {n: first[c] for n, c in zip(names, label, strict=True)}


def three_parts(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n] int8: 0 training (60 %), 1 validation (20 %), 2 test (20 %), in these shares within every class."""
    held = stratified_split(labels, 0.4, rng)
    test = np.zeros(len(labels), dtype=bool)
    test[held] = stratified_split(labels[held], 0.5, rng)
    return (held.astype(np.int8) + test).astype(np.int8)


def group_folds(groups: np.ndarray, labels: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """[n] fold of each item; items of one group share it, and every label's groups are spread over the folds.

    Args:
        groups: [n] integers.
        labels: [n, c] bool; a group has the labels of all its items and counts for the rarest of them.
        folds: Number of folds.
        rng: Order of the groups within a label.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    held = by_group(inverse, labels)
    rarity = np.where(held, held.sum(0), np.iinfo(np.int64).max)
    key = np.where(held.any(1), rarity.argmin(1), labels.shape[1])
    order = np.lexsort((rng.permutation(len(names)), key))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % folds
    return fold[inverse]


def by_group(inverse: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[groups, c] whether any item of a group has a label.

    Args:
        inverse: [n] group of each item, numbered from 0 without gaps.
        labels: [n, c] bool.
    """
    held = np.zeros((int(inverse.max(initial=-1)) + 1, labels.shape[1]), dtype=bool)
    np.logical_or.at(held, inverse, labels)
    return held
