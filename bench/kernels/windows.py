"""Windows of text around the tokens on which a latent fires, or does not: apart from one another, and no text twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer


@dataclass(frozen=True)
class Layout:
    """What a window around each token of a text shows.

    Args:
        ids: [n] token ids.
        start: [n] first token of the window centred on each token.
        end: [n] token after its last.
    """

    ids: Integer[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]
    end: Int[np.ndarray, " n"]

    def text(self, centre: int) -> bytes:
        """Identity of a window's tokens."""
        return self.ids[self.start[centre] : self.end[centre]].tobytes()


def layout(
    ids: Integer[np.ndarray, " n"], hidden: Bool[np.ndarray, " n"], offsets: Integer[np.ndarray, " rows_and_end"], radius: int
) -> Layout:
    """Windows of up to 2 · radius + 1 tokens that stay within their row and end before a hidden token.

    Args:
        ids: [n] token ids.
        hidden: [n] tokens that are never shown; a window centred on one is empty.
        offsets: [rows + 1] first token of each row.
        radius: Tokens to either side.
    """
    n, place = len(ids), np.arange(len(ids))
    edge = np.zeros(n + 1, dtype=bool)
    edge[offsets] = True
    last_hidden = np.maximum.accumulate(np.where(hidden, place, -1))
    first = np.maximum(np.maximum.accumulate(np.where(edge[:n], place, 0)), last_hidden + 1)
    next_hidden = np.minimum.accumulate(np.where(hidden, place, n)[::-1])[::-1]
    row_end = np.minimum.accumulate(np.where(edge[1:], place + 1, n)[::-1])[::-1]
    end = np.minimum.reduce([next_hidden, row_end, place + radius + 1])
    return Layout(ids, np.maximum(first, place - radius), np.where(hidden, np.maximum(first, place - radius), end))


def apart(text: Layout, candidates: Integer[np.ndarray, " c"], count: int, avoid: Integer[np.ndarray, " a"]) -> Int[np.ndarray, " k"]:
    """The first candidates whose windows overlap no other's that was chosen or is to be avoided, and repeat no text of them.

    Args:
        text: Windows.
        candidates: [c] centres, in order of preference.
        count: Most centres wanted.
        avoid: [a] centres of windows in use.
    """
    occupied, seen, chosen = np.zeros(len(text.ids), dtype=bool), set[bytes](), list[int]()
    for centre in avoid.tolist():
        occupied[text.start[centre] : text.end[centre]] = True
        seen.add(text.text(centre))
    for centre in candidates.tolist():
        if len(chosen) == count:
            break
        span = slice(text.start[centre], text.end[centre])
        if occupied[centre] or span.start >= span.stop or occupied[span].any() or text.text(centre) in seen:
            continue
        occupied[span] = True
        seen.add(text.text(centre))
        chosen.append(centre)
    return np.array(chosen, dtype=np.int64)


def silent(text: Layout, firings: Integer[np.ndarray, " f"], candidates: Integer[np.ndarray, " c"]) -> Integer[np.ndarray, " k"]:
    """Candidates in whose windows nothing fires; `firings` ascending."""
    first, last = np.searchsorted(firings, text.start[candidates]), np.searchsorted(firings, text.end[candidates])
    return candidates[first == last]


def by_importance(values: Float[np.ndarray, " f"], rng: np.random.Generator) -> Int[np.ndarray, " f"]:
    """A random order: each next one is drawn with probability ∝ value² among those that are left.

    Source: Efraimidis & Spirakis 2006, weighted random sampling without replacement.
    """
    weight = np.square(values / np.abs(values).max()) if len(values) else values
    return np.argsort(np.log(rng.random(len(values))) / np.maximum(weight, 1e-300)).astype(np.int64)[::-1]


def by_decile(strength: Float[np.ndarray, " w"], each: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """Indices of `each` random ones from every tenth of windows in order of strength, the strongest tenth first.

    Args:
        strength: [w] of the windows, w ≥ 10 · each.
        each: How many of a tenth.
        rng: For the choice within a tenth.
    """
    tenths = np.array_split(np.argsort(-strength, kind="stable"), 10)
    return np.concatenate([rng.choice(t, min(each, len(t)), replace=False) for t in tenths]).astype(np.int64)


def by_stratum(counts: Integer[np.ndarray, " m"], fewest: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """Latents with at least `fewest` firings, in a random order that takes turns among the tenths of firing counts."""
    some = np.flatnonzero(counts >= fewest)
    order = some[np.argsort(counts[some], kind="stable")]
    shuffled = [rng.permutation(t) for t in np.array_split(order, 10)]
    longest = max(map(len, shuffled))
    table = np.full((longest, 10), -1, dtype=np.int64)
    for i, t in enumerate(shuffled):
        table[: len(t), i] = t
    flat = table.reshape(-1)
    return flat[flat >= 0]
