"""Dictionary geometry: cosines against a float64 double loop, the level of random rows, spectrum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.cosine import nearest_cosine, nearest_in, random_level, spectrum, unit

SEEDS = st.integers(0, 2**32 - 1)
THREE = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])


def rows(seed: int, m: int, d: int) -> Tensor:
    """Random rows with norms between 0.1 and 10."""
    g = np.random.default_rng(seed)
    return torch.from_numpy(g.standard_normal((m, d)) * 10 ** g.uniform(-1, 1, (m, 1))).float()


def cosine(a: Tensor, b: Tensor) -> float:
    """One cosine in float64, number by number; 0 with a zero row."""
    dot = sum(float(p) * float(q) for p, q in zip(a, b, strict=True))
    size = math.sqrt(sum(float(p) ** 2 for p in a) * sum(float(q) ** 2 for q in b))
    return dot / size if size else 0.0


def slow_nearest(w: Tensor) -> list[float]:
    return [max(cosine(w[i], w[j]) for j in range(len(w)) if j != i) for i in range(len(w))]


# unit, nearest_cosine, nearest_in


def test_unit_rows_and_zero_rows() -> None:
    assert unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_nearest_by_hand() -> None:
    assert nearest_cosine(THREE).tolist() == pytest.approx([math.sqrt(0.5)] * 3)


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 14), st.integers(1, 5))
def test_nearest_equals_a_double_loop(seed: int, m: int, d: int) -> None:
    w = rows(seed, m, d)
    assert nearest_cosine(w).tolist() == pytest.approx(slow_nearest(w), abs=1e-6)


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 40), st.integers(1, 50))
def test_nearest_ignores_order_scale_and_block(seed: int, m: int, block: int) -> None:
    g, w = np.random.default_rng(seed), rows(seed, m, 6)
    found, order = nearest_cosine(w), g.permutation(m)
    assert torch.allclose(nearest_cosine(w, block), found, atol=1e-6)
    assert torch.allclose(nearest_cosine(w[order]), found[order], atol=1e-6)
    assert torch.allclose(nearest_cosine(w * torch.from_numpy(g.uniform(0.01, 100, (m, 1))).float()), found, atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 8, 1024])
def test_a_duplicate_has_nearest_cosine_one_wherever_it_is(block: int) -> None:
    w = rows(0, 12, 20)
    before = nearest_cosine(w, block)
    for j in range(1, 12):
        copied = w.clone()
        copied[j] = 5 * w[0]
        after = nearest_cosine(copied, block)
        assert after[0] == pytest.approx(1, abs=1e-6) and after[j] == pytest.approx(1, abs=1e-6)
    assert before.max() < 0.9


def test_nearest_edges() -> None:
    assert nearest_cosine(torch.eye(5)).tolist() == [0] * 5
    assert nearest_cosine(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).tolist() == pytest.approx([-1, -1])
    assert nearest_cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])).tolist() == [0, 0, 0]
    many = nearest_cosine(torch.ones(50, 7) / 3)
    assert many.max() <= 1 and many.min() == pytest.approx(1, abs=1e-6)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 10), st.integers(1, 10), st.integers(1, 12))
def test_nearest_in_another_dictionary_equals_a_double_loop(seed: int, m: int, n: int, block: int) -> None:
    a, b = rows(seed, m, 4), rows(seed + 1, n, 4)
    slow = [max(cosine(p, q) for q in b) for p in a]
    assert nearest_in(a, b, block).tolist() == pytest.approx(slow, abs=1e-6)
    assert nearest_in(a, torch.cat([b, 2 * a]), block).tolist() == pytest.approx([1] * m, abs=1e-6)


def test_tiles_and_segments_meet_every_pair_once_at_the_usual_block() -> None:
    w = rows(3, 2500, 24)  # ten tiles of rows, two of columns, and a last segment that is not full
    dense = (unit(w.double()) @ unit(w.double()).T).fill_diagonal_(-2)
    assert torch.allclose(nearest_cosine(w).double(), dense.max(dim=1).values, atol=1e-6)


# random_level


@pytest.mark.parametrize(("m", "d", "level"), [(4608, 576, 0.152), (4096, 512, 0.160)])
def test_level_of_random_rows(m: int, d: int, level: float) -> None:
    assert random_level(m, d) == pytest.approx(level, abs=0.003)


def test_level_rises_with_rows_and_falls_with_dimensions() -> None:
    assert random_level(50, 32) < random_level(400, 32) < random_level(2500, 32)
    assert random_level(400, 64) < random_level(400, 32)
    assert random_level(400, 32) == random_level(400, 32)
    assert random_level(400, 32, seed=1) == pytest.approx(random_level(400, 32), abs=0.02)


def test_level_is_the_mean_nearest_cosine_on_both_sides_of_the_sample_size() -> None:
    w = torch.randn(300, 16, generator=torch.Generator().manual_seed(5))
    assert random_level(300, 16, seed=5) == pytest.approx(float(nearest_cosine(w).mean()), abs=1e-6)
    w = torch.randn(2100, 8, generator=torch.Generator().manual_seed(5))
    assert random_level(2100, 8, seed=5) == pytest.approx(float(nearest_cosine(w)[:2048].mean()), abs=1e-6)


# spectrum


def test_spectrum_by_hand() -> None:
    assert spectrum(torch.eye(4)) == {"effective_rank": 4, "participation_ratio": 4}
    assert spectrum(torch.ones(9, 3)) == pytest.approx({"effective_rank": 1, "participation_ratio": 1}, abs=1e-6)
    # eigenvalues 2 and 1: entropy of (2/3, 1/3), and 9 / 5
    two = spectrum(torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0]]))
    assert two["effective_rank"] == pytest.approx(3 / 2 ** (2 / 3))
    assert two["participation_ratio"] == pytest.approx(9 / 5)


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 12), st.integers(1, 8))
def test_spectrum_equals_that_of_the_whole_gram_matrix(seed: int, m: int, d: int) -> None:
    w = rows(seed, m, d)
    v = w.double().numpy() / np.linalg.norm(w.double().numpy(), axis=1, keepdims=True)
    gram = np.array([[sum(p * q for p, q in zip(a, b, strict=True)) for b in v] for a in v])
    p = np.clip(np.linalg.eigvalsh(gram), 0, None)
    p = p / p.sum()
    entropy = -sum(q * math.log(q) for q in p if q > 0)
    found = spectrum(w)
    assert found["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-5)
    assert found["participation_ratio"] == pytest.approx(1 / sum(q * q for q in p), rel=1e-5)


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 6), st.integers(1, 40))
def test_a_dictionary_of_rank_r_has_effective_rank_at_most_r(seed: int, r: int, m: int) -> None:
    g = np.random.default_rng(seed)
    w = torch.from_numpy(g.standard_normal((m, r)) @ g.standard_normal((r, 10)))
    found = spectrum(w)
    assert 1 - 1e-9 <= found["participation_ratio"] <= found["effective_rank"] + 1e-9
    assert found["effective_rank"] <= min(r, m) + 1e-6


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 20))
def test_spectrum_ignores_order_scale_sign_and_rotation(seed: int, m: int) -> None:
    g, w = np.random.default_rng(seed), rows(seed, m, 5).double()
    turn = torch.from_numpy(np.linalg.qr(g.standard_normal((5, 5)))[0])
    factor = torch.from_numpy(g.uniform(0.1, 10, (m, 1)) * g.choice([-1, 1], (m, 1)))
    assert spectrum((w * factor)[g.permutation(m)] @ turn) == pytest.approx(spectrum(w), rel=1e-6)


def test_spectrum_of_many_rows_is_summed_in_parts() -> None:
    w = rows(1, 5000, 6)
    v = w.double() / w.double().norm(dim=1, keepdim=True)
    p = torch.linalg.eigvalsh(v.T @ v)
    p = p / p.sum()
    found = spectrum(w)
    assert found["effective_rank"] == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)
    assert found["participation_ratio"] == pytest.approx(float(1 / p.square().sum()), rel=1e-6)
