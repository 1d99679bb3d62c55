"""English words for the first-letter task, shipped with the project (`words.txt`; its licence is in `NOTICE.md`).

How `words.txt` was made: every entry of the American word list of SCOWL (Debian package `wamerican`,
2020.12.07-2) made only of a-z, which leaves out proper nouns and words with apostrophes or accents. Then

- kept: words of at most 9 letters, and longer ones that are a single token, with a leading space, of SmolLM2, GPT-2,
  cl100k or o200k (a longer word that none of four vocabularies holds is hardly a token of a fifth);
- dropped: two-letter abbreviations (`kg`, `vs`; 55 two-letter words were kept by hand) and Roman numerals (`xii`, not `mix`).

Sorted by code point, one word a line, inflected forms included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any


@cache
def words() -> tuple[str, ...]:
    """All words: lower case a-z, at least two letters, sorted, each once."""
    return tuple(resources.files("bench.data").joinpath("words.txt").read_text(encoding="ascii").split())


@cache
def words_sha256() -> str:
    """Identity of the list: SHA-256 of the words, each followed by a newline (the bytes of the file)."""
    return hashlib.sha256("".join(f"{word}\n" for word in words()).encode("ascii")).hexdigest()


def single_tokens(words: Sequence[str], tokenizer: Any) -> dict[str, int]:
    """The words that are exactly one token with a leading space, and that token's id, in the order given.

    Words are looked at after a line break, as they stand in the prompts: some tokenizers put a space of their own in
    front of a text. No BOS or other special token is added. The whole list takes about 2 s on one core.

    Args:
        words: Words without spaces.
        tokenizer: A `transformers` tokenizer.
    """
    if not words:
        return {}
    stem: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    rows: list[list[int]] = tokenizer([f"\n {word}" for word in words], add_special_tokens=False)["input_ids"]
    return {word: row[-1] for word, row in zip(words, rows, strict=True) if row[:-1] == stem}
