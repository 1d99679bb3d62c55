"""The parent and child concepts that are shipped: what the file promises, and which words are one token."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from bench.data.hierarchy import BEGINNINGS, Parent, hierarchy_sha256, parents
from bench.data.spelling import single_tokens, words

PINNED = "117e87b7f426f4421dd48411fd90240917ea0df561fa1d8aa2bc3a5e38f4a398"
POOL = sorted({child for parent in parents() for child in parent.children})
NAMED = {parent.name: parent for parent in parents()}


def _raw() -> str:
    return resources.files("bench.data").joinpath("wordnet.json").read_text(encoding="utf8")


def test_counts_and_size() -> None:
    assert len(parents()) == 73
    assert sum(len(parent.children) >= 16 for parent in parents()) == 69
    assert len(POOL) == 1_701
    assert len(_raw().encode()) <= 60_000


def test_parents_are_sorted_and_unique() -> None:
    names = [parent.name for parent in parents()]
    assert names == sorted(set(names))
    assert len({parent.offset for parent in parents()}) == len(names)


@pytest.mark.parametrize("parent", parents(), ids=lambda p: p.name)
def test_children(parent: Parent) -> None:
    assert 8 <= len(parent.children) <= 40
    assert list(parent.children) == sorted(set(parent.children))
    assert set(parent.children) <= set(words())
    assert parent.name not in parent.children


@pytest.mark.parametrize("parent", parents(), ids=lambda p: p.name)
def test_also_names_children_of_other_parents_only(parent: Parent) -> None:
    assert set(parent.also) <= set(POOL) - set(parent.children)
    assert list(parent.also) == sorted(set(parent.also))
    assert not {parent.name} & (set(POOL) - set(parent.also))  # "bird", a child of animal, is no counter-example of bird


@pytest.mark.parametrize(
    ("child", "parent"),
    [("bird", "animal"), ("mammal", "animal"), ("insect", "invertebrate"), ("metal", "chemical element")],
)
def test_nested_concepts_leave_no_false_negative(child: str, parent: str) -> None:
    above = set(NAMED[parent].children) | set(NAMED[parent].also)
    assert set(NAMED[child].children) <= above


def test_known_members() -> None:
    assert "dog" in NAMED["animal"].children and "dog" in NAMED["mammal"].children
    assert "dolphin" in NAMED["fish"].also and "dolphin" not in NAMED["fish"].children
    assert "oak" in NAMED["tree"].children and "orange" in NAMED["fruit"].children and "orange" in NAMED["color"].children
    assert NAMED["bird"].offset == 1503061


def test_what_was_done_by_hand_is_on_record() -> None:
    data = json.loads(_raw())
    assert data["wordnet"] == "3.0" and "NOTICE.md" in data["licence"]
    for parent in data["parents"]:
        assert set(parent["later_sense"]) <= set(parent["children"])
        assert not set(parent["left_out"]) & set(parent["children"])


def test_beginnings_fit_any_noun_and_name_no_concept() -> None:
    assert len(set(BEGINNINGS)) == len(BEGINNINGS) == 20
    concepts = {*POOL, *(word for name in NAMED for word in name.split())} - {"of"}
    for beginning in BEGINNINGS:
        spoken = beginning.lower().replace(",", "").split()
        assert 6 <= len(spoken) <= 14
        assert spoken[-1] in {"the", "this", "that", "some", "any", "another"}
        assert not concepts & set(spoken)


def test_identity_is_the_pinned_one() -> None:
    # Another value here means other results: the task that uses the file then needs a new version.
    assert hierarchy_sha256() == PINNED


@pytest.mark.model
def test_every_child_is_one_token_of_the_embedded_tokenizer() -> None:
    from bench.lm import embedded

    assert list(single_tokens(POOL, embedded.load(layers=1).tokenizer)) == POOL
