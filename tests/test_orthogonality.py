"""The penalty on decoder rows: value against a double loop, gradient against autograd, its level on random rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.orthogonality import chunks_of, nearest, orthogonality

SEEDS = st.integers(0, 2**32 - 1)


def rows(seed: int, m: int, d: int) -> Tensor:
    g = np.random.default_rng(seed)
    return torch.from_numpy(g.standard_normal((m, d)) * g.uniform(0.3, 3, (m, 1)))


def partition(seed: int, m: int, size: int) -> tuple[Tensor, ...]:
    return chunks_of(m, size, torch.Generator().manual_seed(seed))


def slow(w: Tensor, chunks: tuple[Tensor, ...]) -> float:
    """The definition, pair by pair."""
    total = 0.0
    for c in chunks:
        for i in c.tolist():
            best = 0.0
            for j in c.tolist():
                if j != i:
                    dot = sum(float(a) * float(b) for a, b in zip(w[i], w[j], strict=True))
                    best = max(best, dot / math.sqrt(float(w[i] @ w[i]) * float(w[j] @ w[j])))
            total += best**2 / len(c) / len(chunks)
    return total


def by_autograd(w: Tensor, chunks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The definition with the whole cosine matrix, differentiated by torch."""
    w = w.clone().requires_grad_()
    total = w.new_zeros(())
    for c in chunks:
        v = w[c] / w[c].norm(dim=1, keepdim=True)
        s = (v @ v.T).masked_fill(torch.eye(len(c), dtype=torch.bool), -1.0)
        total = total + s.max(dim=1).values.clamp(min=0).square().mean() / len(chunks)
    return total.detach(), torch.autograd.grad(total, w)[0]


# chunks_of


@given(SEEDS, st.integers(1, 60), st.integers(1, 70))
def test_chunks_partition_the_rows_evenly(seed: int, m: int, size: int) -> None:
    chunks = partition(seed, m, size)
    lengths = [len(c) for c in chunks]
    assert sorted(torch.cat(chunks).tolist()) == list(range(m))
    assert len(chunks) == math.ceil(m / size)
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= size


def test_chunks_are_fresh_and_depend_on_their_generator_only() -> None:
    g = torch.Generator().manual_seed(3)
    first, second = chunks_of(40, 10, g), chunks_of(40, 10, g)
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first), torch.cat(partition(3, 40, 10)))


# nearest


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 14), st.integers(2, 5), st.integers(1, 16))
def test_nearest_finds_the_row_that_a_double_loop_finds(seed: int, n: int, d: int, block: int) -> None:
    v = torch.nn.functional.normalize(rows(seed, n, d), dim=1)
    best, at = nearest(v, block)
    for i in range(n):
        values = [float(v[i] @ v[j]) if j != i else -2.0 for j in range(n)]
        assert float(best[i]) == pytest.approx(max(values), abs=1e-12)
        assert int(at[i]) == int(np.argmax(values))


def test_nearest_of_a_single_row() -> None:
    best, at = nearest(torch.ones(1, 1))
    assert best.tolist() == [-1] and at.tolist() == [0]


@pytest.mark.parametrize("block", [1, 2, 5, 1024])
def test_nearest_of_equal_rows_is_another_row(block: int) -> None:
    best, at = nearest(torch.tensor([[1.0, 0.0]] * 5), block)
    assert best.tolist() == [1] * 5
    assert all(int(j) != i for i, j in enumerate(at))


# orthogonality


def test_value_by_hand() -> None:
    w = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    value, _ = orthogonality(w, (torch.arange(3),))
    assert float(value) == pytest.approx(0.5)
    value, _ = orthogonality(w, (torch.tensor([0, 1]), torch.tensor([2])))
    assert float(value) == 0
    value, _ = orthogonality(w, (torch.tensor([0, 2]), torch.tensor([1])))
    assert float(value) == pytest.approx(0.25)


def test_gradient_by_hand() -> None:
    # rows at 0° and 60°: L = cos², dL/dθ = −sin 2θ for each row in its own direction of turning
    w = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    _, gradient = orthogonality(w, (torch.arange(2),))
    turn = math.sin(math.radians(120))
    assert gradient[0].tolist() == pytest.approx([0, turn])
    assert gradient[1].tolist() == pytest.approx([turn * math.sin(math.radians(60)), -turn * math.cos(math.radians(60))])


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 12), st.integers(1, 4), st.integers(1, 13))
def test_value_equals_a_double_loop(seed: int, m: int, d: int, size: int) -> None:
    w, chunks = rows(seed, m, d), partition(seed, m, size)
    assert float(orthogonality(w, chunks)[0]) == pytest.approx(slow(w, chunks), abs=1e-12)


@settings(max_examples=50)
@given(SEEDS, st.integers(1, 30), st.integers(2, 8), st.integers(1, 31), st.integers(1, 31))
def test_value_and_gradient_equal_autograd(seed: int, m: int, d: int, size: int, block: int) -> None:
    w, chunks = rows(seed, m, d), partition(seed, m, size)
    (value, gradient), (other, expected) = orthogonality(w, chunks, block), by_autograd(w, chunks)
    assert float(value) == pytest.approx(float(other), abs=1e-13)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_gradient_equals_finite_differences() -> None:
    w, chunks = rows(1, 9, 4), partition(1, 9, 5)
    _, gradient = orthogonality(w, chunks)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            step = torch.zeros_like(w)
            step[i, j] = 1e-6
            rise = float(orthogonality(w + step, chunks)[0] - orthogonality(w - step, chunks)[0]) / 2e-6
            assert float(gradient[i, j]) == pytest.approx(rise, abs=1e-7)


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 25), st.integers(1, 30))
def test_invariances(seed: int, m: int, block: int) -> None:
    g, w, chunks = np.random.default_rng(seed), rows(seed, m, 5), partition(seed, m, 9)
    value, gradient = orthogonality(w, chunks)
    factor = torch.from_numpy(g.uniform(0.05, 20, (m, 1)))
    scaled, scaled_gradient = orthogonality(w * factor, chunks, block)
    assert float(scaled) == pytest.approx(float(value), abs=1e-12)
    assert torch.allclose(scaled_gradient * factor, gradient, atol=1e-12)
    assert torch.allclose((gradient * w).sum(1), torch.zeros(m, dtype=w.dtype), atol=1e-12)  # so norms do not move
    order = torch.from_numpy(g.permutation(m))
    place = torch.argsort(order)
    moved, moved_gradient = orthogonality(w[order], tuple(place[c] for c in reversed(chunks)))
    assert float(moved) == pytest.approx(float(value), abs=1e-12)
    assert torch.allclose(moved_gradient, gradient[order], atol=1e-12)


@pytest.mark.parametrize(
    "w",
    [
        torch.eye(4),
        torch.tensor([[1.0, 0.0], [-2.0, 0.0]]),
        torch.ones(1, 3),
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]),
        torch.zeros(3, 2),
    ],
    ids=["orthogonal", "opposite", "one row", "a zero row", "zeros"],
)
def test_nothing_to_push_apart(w: Tensor) -> None:
    value, gradient = orthogonality(w, (torch.arange(len(w)),))
    assert float(value) == 0
    assert torch.count_nonzero(gradient) == 0


def test_duplicates_have_the_largest_penalty() -> None:
    w = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).repeat(8, 1)
    value, gradient = orthogonality(w, (torch.arange(8),))
    assert float(value) == pytest.approx(1, abs=1e-6)
    assert torch.isfinite(gradient).all()


def test_penalty_of_random_rows() -> None:
    w = torch.randn(4608, 576, generator=torch.Generator().manual_seed(0))
    value, _ = orthogonality(w, (torch.arange(4608),))
    assert float(value) == pytest.approx(0.0233, rel=0.05)


def test_descending_the_gradient_makes_rows_orthogonal() -> None:
    w = rows(2, 16, 16)
    before = float(orthogonality(w, (torch.arange(16),))[0])
    g = torch.Generator().manual_seed(0)
    for _ in range(400):
        w = w - 0.5 * orthogonality(w, chunks_of(16, 16, g))[1]
        w = w / w.norm(dim=1, keepdim=True)
    assert float(orthogonality(w, (torch.arange(16),))[0]) < 0.05 * before
