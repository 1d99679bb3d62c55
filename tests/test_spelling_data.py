"""The word list that is shipped: what it promises, and which words are one token."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from importlib import resources

import pytest

from bench.data.spelling import single_tokens, words, words_sha256

PINNED = "24de9538e149dc996f90f789decee2853d70375c55ac11f913dfc785851859ad"


def _file(name: str) -> bytes:
    return resources.files("bench.data").joinpath(name).read_bytes()


def test_words_are_lower_case_sorted_and_unique() -> None:
    assert all(re.fullmatch("[a-z]{2,}", word) for word in words())
    assert list(words()) == sorted(set(words()))


def test_the_list_is_the_pinned_one_and_small_enough_to_ship() -> None:
    assert len(words()) == 49_409
    assert words_sha256() == PINNED == hashlib.sha256(_file("words.txt")).hexdigest()
    assert len(_file("words.txt")) < 450_000


def test_short_forms_and_roman_numerals_are_left_out() -> None:
    assert not {"kg", "vs", "xii", "viii", "iv", "lb"} & set(words())
    assert {"mix", "ox", "go", "international", "zebra"} <= set(words())
    assert sum(len(word) == 2 for word in words()) == 55


def test_every_letter_has_words() -> None:
    counts = Counter(word[0] for word in words())
    assert len(counts) == 26
    assert sum(n >= 250 for n in counts.values()) == 22  # all but q, x, y, z


def test_notice_holds_both_licences_whole() -> None:
    notice = _file("NOTICE.md").decode("utf8")
    for passage in (
        "Copyright 2000-2018 by Kevin Atkinson",
        "provided that the above copyright notice appears in all copies",
        "Copyright 1993, Geoff Kuenning",
        "SUCH DAMAGE",
        "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.",
        "Title to copyright in this software, database and\nany associated documentation shall at all times remain with",
        "`words.txt`",
        "`wordnet.json`",
    ):
        assert passage in notice


def test_single_tokens_keeps_order_and_drops_the_rest() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["Ġ", "a", "c", "t", "s", "Ġa", "Ġc", "Ġca", "Ġcat", "Ġat"]  # Ġ is a leading space
    merges = [("Ġ", "a"), ("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t"), ("Ġa", "t")]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert list(single_tokens(["cat", "cats", "tact", "at"], tokenizer).items()) == [("cat", 8), ("at", 9)]
    assert single_tokens([], tokenizer) == {}


def test_reading_the_list_does_not_load_torch() -> None:
    code = "import sys; from bench.data.spelling import words; assert len(words()) > 1000; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.model
def test_single_tokens_of_the_embedded_tokenizer() -> None:
    from bench.lm import embedded

    tokenizer = embedded.load(layers=1).tokenizer
    found = single_tokens(words(), tokenizer)
    assert len(found) == 17_668
    counts = Counter(word[0] for word in found)
    assert sum(n >= 250 for n in counts.values()) == 20
    assert min(counts.values()) == 15  # z; x has none
    for word in ("cat", "international", "zoo"):
        assert tokenizer.decode([found[word]]) == f" {word}"
    assert len(set(found.values())) == len(found)
