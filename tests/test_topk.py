"""Selecting the largest: exactly what a full sort selects, whatever the sample, the ties or the blocks suggest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.topk import calibrated_threshold, largest

SEEDS = st.integers(0, 2**32 - 1)
SAMPLED = 61  # every 61st number decides the first guess


def matrix(seed: int, b: int, m: int, shift: float = 0.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((b, m)).astype(np.float32) + np.float32(shift))


def slow(pre: Tensor, count: int) -> list[int]:
    """Indices of the largest positive entries, one maximum at a time."""
    left = {i: float(v) for i, v in enumerate(pre.reshape(-1)) if v > 0}
    chosen = []
    for _ in range(min(count, len(left))):
        best = max(left, key=left.__getitem__)
        chosen.append(best)
        del left[best]
    return sorted(chosen)


def check(pre: Tensor, count: int) -> None:
    """What `largest` selects, against torch.topk: the same values, each once, ascending by index."""
    found, flat = largest(pre, count), pre.reshape(-1)
    expected = flat.topk(min(count, flat.numel())).values
    expected = expected[expected > 0].sort().values
    assert found.dtype == torch.int64
    assert torch.equal(flat[found].sort().values, expected)
    assert (found[1:] > found[:-1]).all()


# largest


def test_largest_by_hand() -> None:
    pre = torch.tensor([[0.1, 3.0], [2.0, -1.0]])
    assert [largest(pre, c).tolist() for c in range(5)] == [[], [1], [1, 2], [0, 1, 2], [0, 1, 2]]


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(1, 30), st.integers(0, 60))
def test_largest_equals_one_maximum_at_a_time(seed: int, b: int, m: int, count: int) -> None:
    pre = matrix(seed, b, m)
    assert largest(pre, count).tolist() == slow(pre, count)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 60), st.integers(1, 400), st.integers(0, 3000), st.sampled_from([-6.0, -2.0, 0.0, 5.0]))
def test_largest_equals_topk(seed: int, b: int, m: int, count: int, shift: float) -> None:
    check(matrix(seed, b, m, shift), count)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 60), st.integers(1, 400), st.integers(0, 3000), st.integers(1, 6))
def test_largest_equals_topk_with_ties(seed: int, b: int, m: int, count: int, values: int) -> None:
    check(torch.from_numpy(np.random.default_rng(seed).integers(-values, values + 1, (b, m)).astype(np.float32)), count)


@pytest.mark.parametrize("count", [0, 1, 37, 2048, 32_768, 40_000])
@pytest.mark.parametrize("kind", ["zeros", "ones", "negative", "one positive", "ascending", "heavy tail", "few rows"])
def test_largest_of_awkward_matrices(kind: str, count: int) -> None:
    b, m = 64, 512
    base = matrix(0, b, m)
    pre = {
        "zeros": torch.zeros(b, m),
        "ones": torch.ones(b, m),
        "negative": -base.abs() - 1,
        "one positive": torch.where(torch.arange(b * m).reshape(b, m) == 12_345, 1.0, -1.0),
        "ascending": torch.arange(b * m, dtype=torch.float32).reshape(b, m),
        "heavy tail": base**9,
        "few rows": torch.where(torch.arange(b)[:, None] < 2, base.abs() + 5, base - 5),
    }[kind]
    check(pre, count)


@pytest.mark.parametrize("count", [10, 500, 5000])
def test_largest_when_the_sample_misleads(count: int) -> None:
    pre = matrix(1, 64, 512).reshape(-1)
    pre[::SAMPLED] += 100  # the guess is far too high
    check(pre.reshape(64, 512), count)
    pre[::SAMPLED] = -1  # nothing in the sample is positive
    check(pre.reshape(64, 512), count)


def test_largest_of_a_view_indexes_the_view() -> None:
    pre = matrix(2, 40, 90)
    assert torch.equal(largest(pre.T, 50), largest(pre.T.contiguous(), 50))


@settings(max_examples=25)
@given(SEEDS, st.integers(0, 300))
def test_largest_follows_rows_and_scale(seed: int, count: int) -> None:
    pre = matrix(seed, 20, 30)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(20))
    back = order[largest(pre[order], count) // 30] * 30 + largest(pre[order], count) % 30
    assert torch.equal(back.sort().values, largest(pre, count))
    assert torch.equal(largest(8 * pre, count), largest(pre, count))


# calibrated_threshold


def test_threshold_by_hand() -> None:
    block = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert calibrated_threshold([block], 1) == 4
    assert calibrated_threshold([block], 0) == 6
    assert calibrated_threshold([block], 1.5) == 3
    assert calibrated_threshold([block], 2.9) == 1
    assert calibrated_threshold([block], 3) == 0
    assert calibrated_threshold([], 2) == 0
    assert calibrated_threshold([-block], 1) == 0


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 120), st.integers(20, 60), st.floats(0, 8), st.data())
def test_threshold_selects_as_many_as_asked_however_rows_are_split(seed: int, n: int, m: int, k: float, data: st.DataObject) -> None:
    pre = matrix(seed, n, m, 0.5)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    blocks = [p for p in torch.tensor_split(pre, cuts) if len(p)]
    theta = calibrated_threshold(blocks, k)
    assert theta == calibrated_threshold([pre], k) == calibrated_threshold(reversed(blocks), k)
    above = int((pre > theta).sum())
    assert above == min(math.floor(n * k), int((pre > 0).sum()))
    ordered = sorted((float(v) for v in pre.reshape(-1)), reverse=True)
    wanted = math.floor(n * k)
    assert theta == (ordered[wanted] if wanted < len(ordered) and ordered[wanted] > 0 else 0)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_threshold_over_many_blocks(block: int) -> None:
    pre = matrix(3, 1000, 128)
    theta = calibrated_threshold(pre.split(block), 4)
    assert int((pre > theta).sum()) == 4000
    assert theta == calibrated_threshold([pre], 4)


def test_threshold_with_ties_selects_no_more_than_asked() -> None:
    pre = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, (50, 20)).astype(np.float32))
    for k in range(0, 12):
        theta = calibrated_threshold([pre], k)
        above, at_least = int((pre > theta).sum()), int((pre >= theta).sum())
        assert above <= 50 * k and (at_least > 50 * k or theta == 0)


def test_threshold_refuses_an_order_that_misleads() -> None:
    pre = matrix(4, 2000, 100)
    pre[20:] -= 100
    with pytest.raises(ValueError, match="shuffle"):
        calibrated_threshold(pre.split(10), 5)
    assert calibrated_threshold([pre[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]], 0.2) > 0


def test_threshold_and_selection_agree_on_the_batch() -> None:
    pre = matrix(5, 256, 400)
    theta = calibrated_threshold(pre.split(50), 8)
    assert torch.equal(largest(pre, 256 * 8), torch.nonzero(pre.reshape(-1) > theta).squeeze(1))
