"""A text read latent by latent: where each fires, and windows of tokens around it. Never dense."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from bench.context import Context, Tokens
from bench.judge.questions import Window
from bench.kernels import cosine, windows
from bench.rng import seed_of
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes

RADIUS = 10  # tokens to either side of a window's centre
_CANDIDATES = 20_000  # firings of one latent that are looked at where windows of all strengths are wanted
_BROKEN = "\ufffd"  # what a token that ends within a character decodes to
_NEIGHBOURS = 5


@dataclass(frozen=True)
class Firings:
    """Where one latent fires.

    Args:
        at: [f] tokens, ascending.
        strength: [f] size of the code on each.
    """

    at: np.ndarray
    strength: np.ndarray

    @property
    def strongest(self) -> np.ndarray:
        """[f] indices of the firings, the strongest first."""
        return np.argsort(-self.strength, kind="stable")

    def codes(self, start: int, end: int) -> tuple[float, ...]:
        """Code of each token from `start` to before `end`, 0 where the latent is inactive."""
        first, last = np.searchsorted(self.at, [start, end])
        out = np.zeros(end - start)
        out[self.at[first:last] - start] = self.strength[first:last]
        return tuple(float(f"{v:.4g}") for v in out)


@dataclass(frozen=True)
class Decoder:
    """Text of token ids as they stand within a text: some tokenizers drop the space before what comes first.

    Args:
        tokenizer: Of the language model.
        anchor: An ordinary token, put in front and taken away again.
    """

    tokenizer: Any
    anchor: int

    def __call__(self, ids: list[int]) -> str:
        """Text of some tokens."""
        return self._plain([self.anchor, *ids])[len(self._plain([self.anchor])) :]

    def _plain(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class Reader:
    """A text with an SAE's codes.

    Args:
        tokens: The text; special tokens, such as BOS, are never shown.
        codes: Codes of its kept tokens.
        pieces: Text of every token id that occurs.
        decode: Text of several token ids.
        place: [kept] token of each row of the codes.
        keys: [d_sae] a number that belongs to each latent, whatever its place in the dictionary and its scale: for random draws.
    """

    tokens: Tokens
    codes: Codes
    pieces: dict[int, str]
    decode: Decoder = field(repr=False)
    place: np.ndarray
    keys: np.ndarray

    @staticmethod
    def of(sae: Canonical, ctx: Context, tokens: int, permuted: bool = False) -> Reader:
        """The first tokens of the evaluation text, as an SAE codes them.

        Args:
            sae: Canonical SAE.
            ctx: Gives text, activations and codes.
            tokens: How many.
            permuted: A control: every token gets the codes of another, drawn at random.
        """
        tokenizer = ctx.lm.tokenizer  # first: a planted world has none
        text = ctx.text(tokens)
        place = np.flatnonzero(text.keep)
        if permuted:
            place = ctx.rng("examples", "permuted").permutation(place)
        ordinary = text.rows.ids[~text.rows.special]
        decode = Decoder(tokenizer, int(ordinary[0]) if len(ordinary) else 0)
        pieces = {int(i): decode([int(i)]) for i in np.unique(text.rows.ids)}
        codes = ctx.text_codes(sae, text)
        words = Tokens(text.rows, np.empty((0, sae.d_in), dtype=np.float32), text.keep)  # activations are not needed any more
        return Reader(words, codes, pieces, decode, place, _keys(sae.W_dec))

    @cached_property
    def layout(self) -> windows.Layout:
        """The windows of all tokens."""
        rows = self.tokens.rows
        return windows.layout(rows.ids, rows.special, rows.offsets, RADIUS)

    @cached_property
    def _columns(self) -> sp.csc_matrix:
        return sp.csc_matrix(self.codes.matrix)

    def firings(self, latent: int) -> Firings:
        """Where a latent fires."""
        span = slice(*self._columns.indptr[latent : latent + 2])
        at, strength = self.place[self._columns.indices[span]], np.abs(self._columns.data[span])
        order = np.argsort(at)
        return Firings(at[order], strength[order])

    def sampled(self, fewest: int, seed: int) -> np.ndarray:
        """Latents with at least so many firings, in a random order that takes turns among the tenths of firing counts."""
        counts = self.codes.firing_counts()
        order = [seed_of(seed, "examples", int(k)) if n >= fewest else 0 for k, n in zip(self.keys, counts, strict=True)]
        return windows.by_stratum(counts, fewest, np.array(order, dtype=np.int64))

    def window(self, centre: int, firings: Firings) -> Window:
        """The window around a token, with one latent's codes."""
        start, end = int(self.layout.start[centre]), int(self.layout.end[centre])
        return Window(self.strings(start, end), firings.codes(start, end))

    def strings(self, start: int, end: int) -> tuple[str, ...]:
        """Text of each token; characters that several tokens share stand at the last of them."""
        ids = [int(i) for i in self.tokens.rows.ids[start:end]]
        pieces = [self.pieces[i] for i in ids]
        if not any(_BROKEN in p for p in pieces):
            return tuple(pieces)
        whole = [self.decode(ids[:k]) for k in range(len(ids) + 1)]
        shown, out = 0, []
        for text in whole[1:]:
            complete = len(text.rstrip(_BROKEN)) if text is not whole[-1] else len(text)
            out.append(text[shown : max(shown, complete)])
            shown = max(shown, complete)
        return tuple(out)

    @cached_property
    def kept(self) -> np.ndarray:
        """[kept] tokens that have codes, ascending."""
        return np.sort(self.place)

    def documents(self, at: np.ndarray) -> np.ndarray:
        """[n] document of some tokens."""
        return self._document[at]

    @cached_property
    def _document(self) -> np.ndarray:
        return self.tokens.rows.token_document


def _keys(w_dec: np.ndarray) -> np.ndarray:
    """[d_sae] hashes of the signs of decoder rows: neither scaling nor rounding moves them."""
    signs = np.packbits(w_dec > 0, axis=1)
    return np.array([int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "big") >> 1 for row in signs], dtype=np.int64)


def strongest(firings: Firings) -> np.ndarray:
    """Tokens where a latent fires, the strongest first."""
    return firings.at[firings.strongest]


def spread_out(firings: Firings, rng: np.random.Generator) -> np.ndarray:
    """The same, but at most 20,000 of them, drawn evenly: whatever fires so often has windows enough in them."""
    order = firings.strongest
    if len(order) > _CANDIDATES:
        order = order[np.sort(rng.choice(len(order), _CANDIDATES, replace=False))]
    return firings.at[order]


def neighbours(w_dec: np.ndarray, latents: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar other decoder rows of some latents, among those present: [q, ≤ 5] latents, nearest first, and cosines.

    Args:
        w_dec: [d_sae, d] unit rows.
        latents: [q].
        present: [d_sae] latents that may be named.
    """
    return cosine.nearest_others(w_dec, latents, np.flatnonzero(present), _NEIGHBOURS)
