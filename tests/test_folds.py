"""Samples and splits keep every class; data sets that share texts or a file are one family."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.folds import source_families, stratified_sample, stratified_split

SEEDS = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def hashes(numbers: range | list[int]) -> list[bytes]:
    return [b"%d" % i for i in numbers]


# stratified_sample


def test_sample_by_hand() -> None:
    labels = np.repeat([0, 1], [30, 10])
    found = stratified_sample(labels, 20, rng())
    assert np.bincount(labels[found]).tolist() == [15, 5]
    assert sorted(stratified_sample(labels, 40, rng())) == sorted(stratified_sample(labels, 1000, rng())) == list(range(40))


@given(SEEDS, st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 150))
def test_sample_keeps_proportions_and_classes(seed: int, sizes: list[int], most: int) -> None:
    labels = rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    found = stratified_sample(labels, most, rng(seed))
    n = sum(sizes)
    assert len(set(found.tolist())) == len(found) <= min(most, n)
    counts = np.bincount(labels[found], minlength=len(sizes))
    if most >= n:
        assert len(found) == n
    elif most >= len(sizes):
        assert counts.min() >= 1
        assert len(found) >= most - len(sizes) / 2
        assert np.abs(counts - np.array(sizes) * most / n).max() <= len(sizes)


def test_sample_never_loses_a_class_of_one() -> None:
    labels = np.r_[np.zeros(100, int), 1]  # both shares round up, to one row too many
    for seed in range(100):
        assert np.bincount(labels[stratified_sample(labels, 10, rng(seed))]).tolist() == [9, 1]


def test_sample_is_fair_and_in_random_order() -> None:
    labels = np.repeat([0, 1], [20, 20])
    picked, first, place = np.zeros(40), 0, []
    for seed in range(400):
        found = stratified_sample(labels, 10, rng(seed))
        picked[found] += 1
        first += labels[found[0]]
        place.append(int(np.argmax(labels[found])))
    assert picked.min() > 55 and picked.max() < 145  # 100 expected, standard deviation 9
    assert 150 < first < 250
    assert len(set(place)) > 3
    rare = np.r_[np.zeros(100, int), 1]
    ends = [int(np.argmax(rare[stratified_sample(rare, 10, rng(s))])) for s in range(200)]
    assert set(ends) == set(range(10))


def test_sample_depends_on_its_generator_only() -> None:
    labels = rng(1).integers(0, 3, 100)
    assert stratified_sample(labels, 30, rng(2)).tolist() == stratified_sample(labels, 30, rng(2)).tolist()
    assert stratified_sample(labels, 30, rng(2)).tolist() != stratified_sample(labels, 30, rng(3)).tolist()


# stratified_split


def test_split_by_hand() -> None:
    labels = np.repeat([0, 1], [10, 20])
    test = stratified_split(labels, 0.3, rng())
    assert np.bincount(labels[test]).tolist() == [3, 6]


@given(SEEDS, st.lists(st.integers(1, 50), min_size=1, max_size=5), st.floats(0, 1))
def test_split_keeps_the_share_within_every_class(seed: int, sizes: list[int], share: float) -> None:
    labels = rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    test = stratified_split(labels, share, rng(seed))
    assert test.dtype == bool and test.shape == labels.shape
    for c, size in enumerate(sizes):
        held = int(test[labels == c].sum())
        if size == 1:
            assert held == 0  # a single row is for training
        else:
            assert 1 <= held <= size - 1
            assert abs(held - share * size) <= 1


def test_split_is_fair() -> None:
    labels = np.repeat([0, 1], 10)
    held = np.sum([stratified_split(labels, 0.3, rng(s)) for s in range(400)], axis=0)
    assert held.min() > 80 and held.max() < 160  # 120 expected, standard deviation 9


def test_split_of_nothing() -> None:
    assert stratified_split(np.zeros(0, int), 0.3, rng()).shape == (0,)


# source_families


@pytest.mark.parametrize(("common", "same"), [(5, True), (4, False), (100, True), (0, False)])
def test_five_percent_of_the_smaller_set_joins(common: int, same: bool) -> None:
    texts = {"big": hashes(range(1000)), "small": hashes(range(1000 - common, 1100 - common))}
    found = source_families(texts, {})
    assert found == {"big": "big", "small": "big" if same else "small"}


def test_exactly_five_percent_is_enough_at_every_size() -> None:
    for size in range(20, 1000, 20):
        k = size // 20
        joined = source_families({"a": hashes(range(size)), "b": hashes(range(size - k, 2 * size - k))}, {})
        apart = source_families({"a": hashes(range(size)), "b": hashes(range(size - k + 1, 2 * size - k + 1))}, {})
        assert joined["b"] == "a" and apart["b"] == "b"


def test_repeats_within_a_set_do_not_count() -> None:
    texts = {"a": hashes(list(range(100))), "b": hashes([0] * 50 + list(range(100, 199)))}
    assert source_families(texts, {})["b"] == "b"  # one text of a hundred in common


def test_one_file_is_one_family_and_families_are_transitive() -> None:
    texts = {n: hashes(range(100 * i, 100 * i + 100)) for i, n in enumerate("dcbae")}
    assert len(set(source_families(texts, {}).values())) == 5
    assert source_families(texts, {"d": "file", "b": "file"}) == {"a": "a", "b": "b", "c": "c", "d": "b", "e": "e"}
    texts["c"] = hashes(range(195, 295))  # five of b's texts
    texts["e"] = hashes([*range(100, 110), *range(1000, 1090)])  # no set has these ten
    texts["a"] = hashes([*range(105, 110), *range(2000, 2095)])
    assert source_families(texts, {"d": "file", "b": "file"}) == {"a": "a", "b": "b", "c": "b", "d": "b", "e": "a"}


def test_no_sets_and_empty_sets() -> None:
    assert source_families({}, {}) == {}
    assert source_families({"a": [], "b": [], "c": hashes([1])}, {}) == {"a": "a", "b": "b", "c": "c"}
    assert source_families({"a": hashes([1])}, {"a": "file", "b": "file"}) == {"a": "a"}


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 9), st.sampled_from([0.05, 0.2, 0.5]))
def test_families_equal_a_slow_closure(seed: int, sets: int, share: float) -> None:
    g = rng(seed)
    names = [f"s{i}" for i in g.permutation(sets)]
    texts = {n: hashes(g.integers(0, 120, int(g.integers(1, 25))).tolist()) for n in names}
    groups = {n: f"file{g.integers(4)}" for n in names if g.random() < 0.3}
    near = {a: {a} for a in names}
    for a in names:
        for b in names:
            p, q = set(texts[a]), set(texts[b])
            if a != b and (len(p & q) >= share * min(len(p), len(q)) or (a in groups and groups[a] == groups.get(b))):
                near[a].add(b)
    for _ in names:
        near = {a: set().union(*(near[b] for b in near[a])) for a in names}
    found = source_families(texts, groups, share)
    assert found == {a: min(near[a]) for a in names}
    assert source_families(dict(reversed(texts.items())), groups, share) == found
