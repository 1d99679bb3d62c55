"""Two-attribute and many-class sets: what is read, what is left out, and what cannot be had."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.data import attributes, hub_attributes, labelled, sources
from bench.data.hub_attributes import SETS
from bench.data.text import part_of, read_member, text_hash
from bench.errors import UnavailableError, UsageError
from bench.kernels.folds import source_families

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def bios(n: int = 6) -> list[dict[str, object]]:
    """Rows in the schema of LabHC/bias_in_bios."""
    return [
        {"hard_text": f"{p} {g} biography number {i}", "profession": p, "gender": g} for i in range(n) for p in (21, 13, 3) for g in (0, 1)
    ]


# names and identities, nothing fetched


def test_listed_sets_can_all_be_asked_for_their_identity() -> None:
    names = [n for n, said in attributes.two_way_sets().items() if "hf:" not in said]
    assert len(names) == 14 and sum(n.startswith("vader_") for n in names) == 6
    every = [*names, *attributes.class_sets()]
    assert len({attributes.identity([n]) for n in every}) == len(every)
    assert attributes.identity(names) != attributes.identity(names[::-1]) == attributes.identity(names[::-1])


def test_hub_sets_are_listed_and_pinned_by_commit() -> None:
    listed = [n for n, said in attributes.two_way_sets().items() if "hf:" in said]
    assert {"bias_in_bios_professor_nurse", "bias_in_bios_attorney_teacher", "amazon_books_cds"} <= set(listed) and len(listed) == 8
    one = attributes.identity([f"amazon_books_cds@{COMMIT}"])
    assert one != attributes.identity([f"amazon_books_cds@{COMMIT[::-1]}"])
    assert hub_attributes.identity(f"bias_in_bios_yoga_teacher_dj@{COMMIT}") == f"hf:LabHC/bias_in_bios@{COMMIT}"


@pytest.mark.parametrize(
    "name", ["vader_movie_tweets", "bias_in_bios_nurse", "bias_in_bios_nurse_nurse", "amazon_books_shoes", "97_news_class"]
)
def test_unknown_names_are_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(UsageError) as e:
        attributes.load_two_way(name)
    assert e.value.remedy


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(UsageError, match="97_news_class"):
        attributes.load_classes("97_newsclass")
    with pytest.raises(UsageError, match="vader_movie_tweet"):
        attributes.identity(["vader_movie_tweets"])


# rows of the hub


def test_rows_of_bias_in_bios_become_two_attributes() -> None:
    found = hub_attributes.two_way("x", bios(), SETS["bias_in_bios"], ("professor", "nurse"), "id")
    assert len(found.texts) == 24 and np.bincount(found.cell).tolist() == [6, 6, 6, 6]
    for text, a, b in zip(found.texts, found.a, found.b, strict=True):
        profession, gender = text.split()[:2]
        assert a == (profession == "21") and b == (gender == "1")
    assert (found.a_name, found.b_name, found.levels, found.identity) == ("professor, not nurse", "female", ("professor", "nurse"), "id")


def test_rows_of_amazon_leave_out_middling_ratings() -> None:
    rows = [{"text": f"{c} {r} review {i}", "category": c, "rating": r} for i in range(3) for c in (24, 26, 6) for r in (1.0, 3.0, 5.0)]
    found = hub_attributes.two_way("x", rows, SETS["amazon"], ("books", "cds"), "id")
    assert np.bincount(found.cell).tolist() == [3, 3, 3, 3]
    assert all(b == (t.split()[1] == "5.0") and a == t.startswith("24") for t, a, b in zip(found.texts, found.a, found.b, strict=True))


def test_duplicates_contradictions_and_training_texts_are_left_out_and_counted() -> None:
    long = [f"{i} " + "a long biography of somebody who " * 12 for i in range(40)]
    rows = [{"hard_text": t, "profession": 21, "gender": 0} for t in long]
    rows += [{"hard_text": t, "profession": p, "gender": 0} for t in ("Twice", " twice ") for p in (21,)]
    rows += [{"hard_text": "both", "profession": p, "gender": 1} for p in (21, 13)]
    found = hub_attributes.two_way("x", rows, SETS["bias_in_bios"], ("professor", "nurse"), "id")
    training = sum(part_of(t) == "train" for t in long)
    assert found.counts == {"duplicates": 2, "contradicting": 1, "training_side": training} and 0 < training < 40
    assert found.texts == [*(t for t in long if part_of(t) == "eval"), "Twice"]


def test_a_folder_in_the_same_schema_is_read(tmp_path: Path) -> None:
    pd.DataFrame(bios()).to_parquet(tmp_path / "train.parquet")
    rows = list(hub_attributes.read_rows(str(tmp_path), None))
    assert rows == bios()


def test_what_cannot_be_read_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="cannot be read"):
        list(hub_attributes.read_rows(str(tmp_path / "nothing"), None))
    renamed = [{"text": "a", "profession": 21, "sex": 0}]
    with pytest.raises(UnavailableError, match="gender"):
        hub_attributes.two_way("x", renamed, SETS["bias_in_bios"], ("professor", "nurse"), "id")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where the extra is not installed
    with pytest.raises(UnavailableError, match="datasets"):
        attributes.load_two_way(f"bias_in_bios_professor_nurse@{COMMIT}")


# the real sources


@pytest.mark.model
def test_vader_pairs_are_large_enough_and_share_their_cells() -> None:
    pairs = {n: attributes.load_two_way(n) for n in attributes.two_way_sets() if n.startswith("vader_")}
    for name, p in pairs.items():
        assert p.levels == tuple(name.split("_")[1:]) and np.bincount(p.cell).min() >= 500, name
        assert len({text_hash(t) for t in p.texts}) == len(p.texts) and all(part_of(t) == "eval" for t in p.texts)
    news = [
        {t for t, c in zip(p.texts, p.cell, strict=True) if c == k}
        for p, k in ((pairs["vader_movie_news"], 1), (pairs["vader_news_tweet"], 3))
    ]
    assert news[0] == news[1]  # positive news, whichever side of a pair it stands on
    table = labelled.vader()
    score = {text_hash(t): s for t, s in zip(table["text"], table["score"], strict=True)}
    for t, b in zip(pairs["vader_movie_tweet"].texts, pairs["vader_movie_tweet"].b, strict=True):
        assert abs(score[text_hash(t)]) >= 1 and (score[text_hash(t)] > 0) == b


@pytest.mark.model
def test_joined_sets_carry_both_labels_and_are_all_too_small_for_the_default() -> None:
    wheel = sources.fetch(sources.SAE_PROBES)
    sex = read_member(wheel, "sae_probes/data/cleaned_data/56_wikidatasex_or_gender.csv.zst")
    said = {text_hash(t): v for t, v in zip(sex["prompt"].astype(str), sex["target"], strict=True)}
    actors = labelled.load_set("61_wikidata_occupation_isactor")
    is_actor = {text_hash(t): v for t, v in zip(actors.texts, actors.labels, strict=True)}
    found = attributes.load_two_way("gender_actor")
    assert len(found.texts) > 150 and all(part_of(t) == "eval" for t in found.texts)
    for t, a, b in zip(found.texts, found.a, found.b, strict=True):
        assert said[text_hash(t)] == ("male" if a else "female") and is_actor[text_hash(t)] == b
    joined = [n for n, s in attributes.two_way_sets().items() if not n.startswith("vader_") and "hf:" not in s]
    smallest = {n: int(np.bincount(attributes.load_two_way(n).cell, minlength=4).min()) for n in joined}
    assert len(smallest) == 8 and 10 < max(smallest.values()) < 200, smallest


@pytest.mark.model
def test_class_sets_hold_several_classes_and_only_evaluation_texts() -> None:
    for name in attributes.class_sets():
        found = attributes.load_classes(name)
        sizes = np.bincount(found.labels, minlength=len(found.class_names))
        assert len(sizes) >= 3 and sizes.min() >= 60 and len(found.labels) == len(found.texts), name
        assert len({text_hash(t) for t in found.texts}) == len(found.texts) and all(part_of(t) == "eval" for t in found.texts[:200])
    code = attributes.load_classes("code")
    html = [t for t, k in zip(code.texts, code.labels, strict=True) if code.class_names[k] == "HTML"]
    assert np.mean(["<" in t for t in html]) > 0.9
    topics = Counter(attributes.load_classes("bbc_topic").class_names)
    assert set(topics) == {"business", "entertainment", "politics", "sports", "tech"}


@pytest.mark.model
def test_families_are_those_of_shared_texts_and_files() -> None:
    """Sets that share texts carry one family's name, others different ones; and the name is the probing catalogue's."""
    listed = attributes.class_sets()
    hashes = {n: [text_hash(t) for t in attributes.load_classes(n).texts] for n in listed}
    found = source_families(hashes, {}, share=0.055)  # of evaluation texts; of whole files none but the joined share 0.05
    joined = {(a, b) for a in listed for b in listed if a < b and found[a] == found[b]}
    assert joined == {("13_us_state", "14_us_timezone")}
    assert {(a, b) for a in listed for b in listed if a < b and listed[a] == listed[b]} == joined | {
        ("agnews", "code")
    }  # by their negatives
    known = {i.family for i in labelled.catalogue().values()}
    for name, family in listed.items():
        if family not in known:
            assert name in ("99_sci_cat", "vader_domain", "bbc_topic")
            continue
        binary = labelled.load_set(family)
        shared = len({text_hash(t) for t in binary.texts} & set(hashes[name])) / min(len(binary.texts), len(hashes[name]))
        assert shared >= 0.05 or name in ("agnews", "14_us_timezone"), (name, shared)
