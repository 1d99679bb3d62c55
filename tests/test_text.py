"""Text: the split keeps training and evaluation apart, corpora read what they are given, rows start as they should."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from bench.data.text import MIN_CHARS, Corpus, normalise, open_corpus, part_of, rows_of, text_hash, tokenised
from bench.errors import UnavailableError, UsageError
from bench.lm import tiny
from bench.lm.hf import LanguageModel
from bench.store import Store

WORDS = ("stone", "river", "light", "house", "under", "green", "people", "about")
LONG = st.text(st.sampled_from("abc XYZ.é\n"), min_size=1, max_size=40).map(lambda t: (t + "word ") * 60)


def documents(n: int, seed: int = 0, words: int = 80) -> list[str]:
    r = random.Random(seed)
    return [" ".join(r.choice(WORDS) for _ in range(words)) + f" {i}" for i in range(n)]


def corpus(texts: list[str], name: str = "made") -> Corpus:
    return Corpus(name, name, lambda: iter(texts))


def respelt(text: str, r: random.Random) -> str:
    """The same words in other case and with other white space."""
    spaced = "".join(r.choice([" ", "  ", "\n", "\t "]) if c == " " else c for c in text)
    return r.choice(["", " ", "\n\n"]) + (spaced.upper() if r.random() < 0.5 else spaced.title()) + r.choice(["", "  "])


@given(LONG)
def test_the_split_is_a_function_of_the_text(text: str) -> None:
    assert part_of(text) == part_of(str(text)) and part_of(text) in ("train", "eval")


@given(LONG, st.integers(0, 2**32))
def test_case_and_white_space_do_not_move_a_long_text(text: str, seed: int) -> None:
    other = respelt(normalise(text), random.Random(seed))
    if normalise(other) == normalise(text):  # some letters change more than their case
        assert text_hash(other) == text_hash(text) and part_of(other) == part_of(text)


def test_about_half_train() -> None:
    sides = [part_of(t) for t in documents(2000)]
    assert 0.45 < sides.count("train") / len(sides) < 0.55


def test_known_sides() -> None:
    """The rule itself, so that no change of it goes unnoticed."""
    sides = "".join(part_of(t)[0] for t in documents(24))
    assert sides == "".join("t" if text_hash(t)[0] & 1 else "e" for t in documents(24))
    assert text_hash("Hello  World").hex() == text_hash("hello world").hex() != text_hash("helloworld").hex()
    assert len(text_hash("")) == 16


@given(st.text(max_size=MIN_CHARS - 1))
def test_short_texts_never_train(text: str) -> None:
    assert part_of(text) == "eval"


@given(st.lists(LONG, min_size=1, max_size=8), st.integers(0, 2**32))
def test_train_and_eval_share_no_text(texts: list[str], seed: int) -> None:
    r = random.Random(seed)
    made = corpus([t for text in texts for t in (text, respelt(text, r), text + "\n")])
    sides = []
    for part in ("train", "eval"):
        try:
            sides.append({normalise(t) for t in made.documents(part)})
        except UnavailableError:
            sides.append(set())
    assert not sides[0] & sides[1]


def test_documents_are_unique_and_in_the_same_order_whatever_the_file() -> None:
    texts = documents(60)
    shuffled = random.Random(1).sample(texts * 2, 120)
    for part in ("train", "eval"):
        found = corpus(texts).documents(part)
        assert found == corpus(shuffled).documents(part) and len(set(found)) == len(found)
        assert found != sorted(found) and all(part_of(t) == part for t in found)
    assert len(corpus(texts).documents("train")) + len(corpus(texts).documents("eval")) == 60


def test_a_corpus_of_short_texts_is_refused() -> None:
    with pytest.raises(UnavailableError, match="256 characters") as e:
        corpus(["short"] * 5, "few").documents("eval")
    assert "few" in e.value.cause and e.value.exit_code == 4


def test_text_file(tmp_path: Path) -> None:
    texts = documents(30)
    path = tmp_path / "t.txt"
    path.write_bytes("\n\n".join(texts).encode() + b"\n\nbroken \xff\xfe")
    opened = open_corpus(f"file:{path}")
    assert {*opened.documents("train"), *opened.documents("eval")} == set(texts)
    path.write_text("\r\n\r\n".join(texts))
    assert {*opened.documents("train"), *opened.documents("eval")} == set(texts)


def test_identity_follows_the_contents_and_not_the_name(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    for p in (a, b):
        p.write_text("\n\n".join(documents(20)))
    before = open_corpus(f"file:{a}").sha256
    assert before == open_corpus(f"file:{b}").sha256
    a.write_text(a.read_text() + "x")
    assert open_corpus(f"file:{a}").sha256 != before


def test_json_lines(tmp_path: Path) -> None:
    texts = [t.replace("stone", "st\u2028ne\x85\x1c") for t in documents(30)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "id": 1}, ensure_ascii=False) for t in texts) + "\n\n")
    opened = open_corpus(f"file:{path}")
    assert {*opened.documents("train"), *opened.documents("eval")} == set(texts)


BAD_LINES = [b"{", b"[]", b'"x"', b"3", b'{"txt": "x"}', b'{"text": "\xff"}', b"null"]


@pytest.mark.parametrize("line", BAD_LINES, ids=repr)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(UnavailableError, match="line 3 of") as e:
        open_corpus(f"file:{path}").documents("eval")
    assert e.value.remedy


@pytest.mark.parametrize("reference", ["file:/no/such.txt", "file:", "file:/"])
def test_files_that_are_not_there(reference: str) -> None:
    with pytest.raises(UnavailableError, match="no text file"):
        open_corpus(reference)


@pytest.mark.parametrize("reference", ["", "x", "files:x", "http://x", "/etc/hosts"])
def test_unknown_sources(reference: str) -> None:
    with pytest.raises(UsageError) as e:
        open_corpus(reference)
    assert "file:PATH" in e.value.remedy


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny.load()


def with_bos(lm: LanguageModel) -> LanguageModel:
    """The same model; its tokenizer puts <eos> in front of every text."""
    other = tiny.load()
    other.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    other.tokenizer.bos_token = "<eos>"
    return other


def test_rows_without_bos(lm: LanguageModel) -> None:
    assert [len(r) for r in lm.token_rows("a" * 300, 128)] == [128, 128, 44]
    assert not any(0 in row for row in lm.token_rows("a b" * 100, 64))
    assert lm.tail_row("x" * 300 + "yz", 16) == lm.token_rows("x" * 14 + "yz", 16)[0]


def test_rows_with_bos(lm: LanguageModel) -> None:
    other = with_bos(lm)
    rows = other.token_rows("a" * 300, 128)
    assert [len(r) for r in rows] == [128, 128, 47] and all(r[0] == 0 for r in rows)
    assert [i for r in rows for i in r[1:]] == [i for r in lm.token_rows("a" * 300, 128) for i in r]
    assert other.tail_row("x" * 300 + "yz", 16) == [0, *lm.tail_row("x" * 300 + "yz", 15)]
    assert other.tokenizer_sha256 != lm.tokenizer_sha256


def test_the_first_position_of_every_row_is_special() -> None:
    rows = rows_of([[5, 6, 7], [8, 0, 9], [], [4]], [0, 0, 1, 2], {0})
    assert rows.special.tolist() == [True, False, False, True, True, False, True]
    assert rows.offsets.tolist() == [0, 3, 6, 6, 7] and rows.lengths.tolist() == [3, 3, 0, 1]
    assert rows.token_document.tolist() == [0, 0, 0, 0, 0, 0, 2]


def test_identity_of_rows() -> None:
    shas = {rows_of(p, d, {0}).sha256 for p, d in (([[1, 2], [3]], [0, 0]), ([[1], [2, 3]], [0, 0]), ([[1, 2], [3]], [0, 1]))}
    assert len(shas) == 3 and rows_of([[1]], [0], set()).sha256 == rows_of([[1]], [0], {1}).sha256


@pytest.mark.parametrize("bos", [False, True], ids=["no BOS", "BOS"])
def test_tokenised(lm: LanguageModel, tmp_path: Path, bos: bool) -> None:
    model = with_bos(lm) if bos else lm
    made, store = corpus(documents(60)), Store(tmp_path)
    rows = tokenised(model, made, "eval", 1000, store, context=64, rows_per_document=2)
    assert 1000 <= len(rows.ids) < 1000 + 2 * 64 and rows.lengths.max() == 64
    assert np.bincount(rows.document).max() == 2 and rows.special[rows.offsets[:-1]].all()
    assert int(rows.special.sum()) == len(rows.lengths)
    assert (rows.ids[rows.offsets[:-1]] == 0).all() == bos
    text = made.documents("eval")[0]
    first = model.tokenizer.decode(rows.ids[: rows.lengths[0]], skip_special_tokens=True)
    assert text.startswith(first) and len(first) >= 63
    again = tokenised(model, Corpus("made", "made", lambda: iter([])), "eval", 1000, store, context=64, rows_per_document=2)
    assert again.sha256 == rows.sha256 and (again.special == rows.special).all()


def test_tokenised_sides_differ_and_a_small_corpus_ends(lm: LanguageModel, tmp_path: Path) -> None:
    made, store = corpus(documents(40)), Store(tmp_path)
    train, held = (tokenised(lm, made, part, 10**6, store, rows_per_document=1) for part in ("train", "eval"))
    assert len(train.lengths) + len(held.lengths) == 40 and train.sha256 != held.sha256
    starts = [{tuple(r.ids[a : a + 100].tolist()) for a in r.offsets[:-1]} for r in (train, held)]
    assert not starts[0] & starts[1]
