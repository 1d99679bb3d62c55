"""Windows of text: within their row, apart, no text twice, and the orders in which they are chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.kernels import windows

NONE = np.empty(0, dtype=np.int64)


def plain(n: int, radius: int = 2) -> windows.Layout:
    return windows.layout(np.arange(n), np.zeros(n, dtype=bool), np.array([0, n]), radius)


def test_a_window_stays_in_its_row_and_ends_before_a_hidden_token() -> None:
    hidden = np.array([1, 0, 0, 0, 0, 1, 0, 0, 0, 0], dtype=bool)  # rows of 7 and 3 tokens
    text = windows.layout(np.arange(10), hidden, np.array([0, 7, 10]), 2)
    spans = [(int(a), int(b)) for a, b in zip(text.start, text.end, strict=True)]
    assert spans[1:5] == [(1, 4), (1, 5), (1, 5), (2, 5)]
    assert spans[6] == (6, 7) and spans[7:] == [(7, 10), (7, 10), (7, 10)]
    assert spans[0][0] >= spans[0][1] and spans[5][0] >= spans[5][1]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 5), st.sets(st.integers(1, 59)))
def test_windows_equal_a_loop(hidden: list[bool], radius: int, cuts: set[int]) -> None:
    n = len(hidden)
    offsets = np.array([0, *sorted(c for c in cuts if c < n), n])
    text = windows.layout(np.arange(n), np.array(hidden), offsets, radius)
    for i in range(n):
        if hidden[i]:
            assert text.start[i] >= text.end[i]
            continue
        row = int(np.searchsorted(offsets, i, side="right")) - 1
        first = last = i
        while first - 1 >= max(offsets[row], i - radius) and not hidden[first - 1]:
            first -= 1
        while last + 1 < min(offsets[row + 1], i + radius + 1) and not hidden[last + 1]:
            last += 1
        assert (text.start[i], text.end[i]) == (first, last + 1)


def test_chosen_windows_are_apart_in_order_of_preference_and_repeat_no_text() -> None:
    text = plain(30)
    assert windows.apart(text, np.array([10, 12, 14, 15, 20]), 9, NONE).tolist() == [10, 15, 20]
    assert windows.apart(text, np.array([10, 12, 14, 15, 20]), 2, NONE).tolist() == [10, 15]
    assert windows.apart(text, np.array([10, 15]), 9, np.array([12])).tolist() == []
    again = windows.layout(np.tile(np.arange(6), 5), np.zeros(30, dtype=bool), np.arange(0, 31, 6), 2)
    assert windows.apart(again, np.array([3, 9, 15, 14]), 9, NONE).tolist() == [3, 14]
    assert windows.apart(again, np.array([9, 14]), 9, np.array([3])).tolist() == [14]


@given(st.sets(st.integers(0, 39)), st.lists(st.integers(0, 39)))
def test_nothing_fires_in_a_silent_window(fires: set[int], asked: list[int]) -> None:
    text, at = plain(40), np.array(sorted(fires), dtype=np.int64)
    found = windows.silent(text, at, np.array(asked, dtype=np.int64))
    assert found.tolist() == [i for i in asked if not fires & set(range(text.start[i], text.end[i]))]


def test_importance_draws_in_proportion_to_the_square() -> None:
    r = np.random.default_rng(0)
    first = [int(windows.by_importance(np.array([1.0, 2.0, 3.0]), r)[0]) for _ in range(6000)]
    assert np.bincount(first) / 6000 == pytest.approx([1 / 14, 4 / 14, 9 / 14], abs=0.02)
    assert sorted(windows.by_importance(np.array([0.1, 0.1, 5.0, 0.0]), r).tolist()) == [0, 1, 2, 3]
    assert len(windows.by_importance(np.empty(0), r)) == 0


def test_every_tenth_gives_as_many() -> None:
    strength = np.random.default_rng(1).permutation(100) + 1.0
    chosen = windows.by_decile(strength, 3, np.random.default_rng(0))
    tenth = ((100 - strength[chosen]) // 10).astype(int)
    assert len(set(chosen.tolist())) == 30 and tenth.tolist() == np.repeat(np.arange(10), 3).tolist()


@given(st.integers(0, 2**32 - 1))
def test_strata_take_turns_and_follow_the_latents(seed: int) -> None:
    r = np.random.default_rng(seed)
    counts, key = r.integers(0, 200, 80), r.permutation(80)
    order = windows.by_stratum(counts, 16, key)
    assert sorted(order.tolist()) == np.flatnonzero(counts >= 16).tolist()
    tenths = np.array_split(np.sort(counts[counts >= 16]), 10)
    for i, latent in enumerate(order[:10]):
        assert tenths[i].min() <= counts[latent] <= tenths[i].max()
    shuffle = r.permutation(80)
    assert shuffle[windows.by_stratum(counts[shuffle], 16, key[shuffle])].tolist() == order.tolist()
