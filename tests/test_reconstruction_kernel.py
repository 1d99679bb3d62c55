"""Reconstruction sums and spliced losses against float64 loops; the scores at their two ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.reconstruction import Sums, document_sums, token_losses

SEEDS = st.integers(0, 2**32 - 1)


def case(seed: int, n: int, d: int, documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    x = (3 * g.standard_normal((n, d)) + 2).astype(np.float32)
    xhat = (x + g.standard_normal((n, d))).astype(np.float32)
    return x, xhat, g.integers(0, documents, n), x.mean(0, dtype=np.float64)


def slow(x: np.ndarray, xhat: np.ndarray, document: np.ndarray, mean: np.ndarray) -> dict[str, list[float]]:
    """Number by number in Python's floats."""
    names = ("tokens", "error", "total", "cross", "cosine", "norm_ratio")
    out = {k: [0.0] * (int(max(document)) + 1) for k in names}
    for row, other, at in zip(x, xhat, document, strict=True):
        dot = a2 = b2 = 0.0
        for p, q, m in zip(row, other, mean, strict=True):
            p, q, m = float(p), float(q), float(m)
            out["error"][at] += (p - q) ** 2
            out["total"][at] += (p - m) ** 2
            out["cross"][at] += (p - m) * (q - m)
            dot, a2, b2 = dot + p * q, a2 + p * p, b2 + q * q
        out["tokens"][at] += 1
        out["cosine"][at] += dot / math.sqrt(a2 * b2) if a2 * b2 else 0
        out["norm_ratio"][at] += math.sqrt(b2) / (math.sqrt(a2) if a2 else 1)
    return out


def same(a: Sums, b: Sums | dict[str, list[float]], scale: float = 1e-9) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[k], b[k], rtol=1e-9, atol=scale) for k in a)


def fvu(s: Sums) -> float:
    return float(s["error"].sum() / s["total"].sum())


# document_sums


def test_sums_by_hand() -> None:
    x, xhat = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = document_sums(x, xhat, np.array([0, 2, 2]), np.array([1.0, 2.0]))
    expected = {
        "tokens": [1, 0, 2],
        "error": [16, 0, 2],
        "total": [8, 0, 1 + 4],
        "cross": [0, 0, 1 + 4],
        "cosine": [0.6, 0, 1],
        "norm_ratio": [0.6, 0, 0.5],
    }
    assert {k: v.tolist() for k, v in found.items()} == {k: pytest.approx(v) for k, v in expected.items()}


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 25), st.integers(1, 6), st.integers(1, 6))
def test_sums_equal_a_double_loop(seed: int, n: int, d: int, documents: int) -> None:
    x, xhat, document, mean = case(seed, n, d, documents)
    x[0], xhat[-1] = 0, 0
    assert same(document_sums(x, xhat, document, mean), slow(x, xhat, document, mean))


def test_sums_over_more_tokens_than_are_read_at_a_time() -> None:
    x, xhat, document, mean = case(1, 9000, 2, 40)
    found = document_sums(x, xhat, document, mean)
    assert same(found, slow(x, xhat, document, mean), 1e-6)
    assert found["tokens"].sum() == 9000


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 200), st.integers(1, 5), st.data())
def test_sums_ignore_order_and_batches(seed: int, n: int, documents: int, data: st.DataObject) -> None:
    x, xhat, document, mean = case(seed, n, 4, documents)
    document[-1] = document[0] = documents - 1  # so that both parts know how many documents there are
    found = document_sums(x, xhat, document, mean)
    order = np.random.default_rng(seed).permutation(n)
    assert same(document_sums(x[order], xhat[order], document[order], mean), found)
    at = data.draw(st.integers(1, n - 1))
    parts = [document_sums(x[p], xhat[p], document[p], mean) for p in (slice(0, at), slice(at, n))]
    assert same({k: parts[0][k] + parts[1][k] for k in found}, found)
    names, seen = np.random.default_rng(seed).permutation(documents), np.unique(document)
    renamed = document_sums(x, xhat, names[document], mean)
    assert same({k: v[names[seen]] for k, v in renamed.items()}, {k: v[seen] for k, v in found.items()})


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 60), st.floats(0.01, 100))
def test_ratios_ignore_scale_and_fvu_ignores_a_shift(seed: int, n: int, scale: float) -> None:
    x, xhat, document, mean = (v.astype(np.float64) if v.dtype == np.float32 else v for v in case(seed, n, 4, 3))
    found, scaled = document_sums(x, xhat, document, mean), document_sums(scale * x, scale * xhat, document, scale * mean)
    assert fvu(scaled) == pytest.approx(fvu(found))
    assert scaled["cosine"] == pytest.approx(found["cosine"]) and scaled["norm_ratio"] == pytest.approx(found["norm_ratio"])
    assert scaled["error"] == pytest.approx(scale**2 * found["error"])
    assert fvu(document_sums(x + 7, xhat + 7, document, mean + 7)) == pytest.approx(fvu(found))


def test_a_perfect_reconstruction_has_no_error() -> None:
    x, _, document, mean = case(2, 300, 8, 9)
    found = document_sums(x, x.copy(), document, mean)
    assert not found["error"].any()
    assert found["cross"] == pytest.approx(found["total"])
    assert found["cosine"] == pytest.approx(found["tokens"]) and found["norm_ratio"] == pytest.approx(found["tokens"])


def test_predicting_the_mean_explains_nothing() -> None:
    x, _, document, mean = case(3, 300, 8, 9)
    found = document_sums(x.astype(np.float64), np.tile(mean, (300, 1)), document, mean)
    assert found["error"] == pytest.approx(found["total"])
    assert fvu(found) == pytest.approx(1)
    assert found["cross"] == pytest.approx(np.zeros(9), abs=1e-9)


@pytest.mark.parametrize("slope", [0.0, 0.5, 0.8, 1.0, 1.3])
def test_slope_measures_shrinkage(slope: float) -> None:
    x, _, document, mean = case(4, 200, 5, 4)
    found = document_sums(x.astype(np.float64), mean + slope * (x - mean), document, mean)
    assert found["cross"].sum() / found["total"].sum() == pytest.approx(slope)
    assert fvu(found) == pytest.approx((1 - slope) ** 2, abs=1e-12)


def test_one_global_ratio_is_not_a_mean_of_ratios() -> None:
    x = np.array([[1.0], [-1.0], [10.0], [-10.0]])
    xhat = np.array([[0.0], [0.0], [10.0], [-10.0]])
    found = document_sums(x, xhat, np.array([0, 0, 1, 1]), np.zeros(1))
    assert fvu(found) == pytest.approx(2 / 202)
    assert (found["error"] / found["total"]).tolist() == [1, 0]


# token_losses


def losses(clean: Tensor, new: Tensor, target: Tensor) -> dict[str, list[float]]:
    return {k: v.tolist() for k, v in token_losses(clean, new, target).items()}


def slow_losses(clean: np.ndarray, new: np.ndarray, target: int) -> dict[str, float]:
    """One token in float64, entry by entry."""

    def log_softmax(logits: np.ndarray) -> list[float]:
        top = max(logits)
        total = math.log(sum(math.exp(v - top) for v in logits))
        return [float(v - top - total) for v in logits]

    p, q = log_softmax(clean), log_softmax(new)
    return {
        "ce": -q[target],
        "kl": sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)),
        "kl_reverse": sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True)),
    }


def test_losses_by_hand() -> None:
    found = losses(torch.zeros(2, 2), torch.tensor([[math.log(3), 0.0]] * 2), torch.tensor([0, 1]))
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    reverse = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found["ce"] == pytest.approx([-math.log(0.75), -math.log(0.25)])
    assert found["kl"] == pytest.approx([kl, kl]) and found["kl_reverse"] == pytest.approx([reverse, reverse])


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 8), st.integers(1, 30), st.floats(0.01, 30))
def test_losses_equal_a_slow_reference(seed: int, n: int, vocabulary: int, scale: float) -> None:
    g = np.random.default_rng(seed)
    clean, new = scale * g.standard_normal((2, n, vocabulary))
    target = g.integers(0, vocabulary, n)
    found = losses(torch.from_numpy(clean), torch.from_numpy(new), torch.from_numpy(target))
    single = losses(torch.from_numpy(clean).float(), torch.from_numpy(new).float(), torch.from_numpy(target))
    for i in range(n):
        expected = slow_losses(clean[i], new[i], int(target[i]))
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, rel=1e-9, abs=1e-9)
            assert single[name][i] == pytest.approx(value, rel=1e-4, abs=1e-4)
    assert all(len(v) == n for v in found.values())


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 20), st.floats(0, 1e-3))
def test_divergences_are_never_negative_and_zero_for_equal_predictions(seed: int, n: int, noise: float) -> None:
    g = torch.Generator().manual_seed(seed)
    clean = 5 * torch.randn(n, 300, generator=g)
    near = clean + noise * torch.randn(n, 300, generator=g)
    target = torch.zeros(n, dtype=torch.long)
    for new in (near, clean + 3, torch.randn(n, 300, generator=g)):
        found = token_losses(clean, new, target)
        assert (found["kl"] >= 0).all() and (found["kl_reverse"] >= 0).all()
    equal = token_losses(clean, clean.clone(), target)
    assert not equal["kl"].any() and not equal["kl_reverse"].any()
    assert torch.allclose(equal["ce"], torch.nn.functional.cross_entropy(clean, target, reduction="none"), atol=1e-5)


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 10), st.floats(-50, 50))
def test_losses_ignore_shifts_of_logits_order_of_tokens_and_names_of_words(seed: int, n: int, shift: float) -> None:
    g = np.random.default_rng(seed)
    clean, new = (torch.from_numpy(v) for v in 3 * g.standard_normal((2, n, 12)))
    target = torch.from_numpy(g.integers(0, 12, n))
    words, tokens = torch.from_numpy(g.permutation(12)), torch.from_numpy(g.permutation(n))
    found = token_losses(clean, new, target)
    shifted = token_losses(clean + shift, new - 2 * shift, target)
    renamed = token_losses(clean[:, words], new[:, words], torch.argsort(words)[target])
    moved = token_losses(clean[tokens], new[tokens], target[tokens])
    swapped = token_losses(new, clean, target)
    for name, values in found.items():
        assert torch.allclose(shifted[name], values, atol=1e-9)
        assert torch.allclose(renamed[name], values, atol=1e-9)
        assert torch.allclose(moved[name], values[tokens], atol=1e-12)
    assert torch.allclose(swapped["kl"], found["kl_reverse"], atol=1e-12)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e30])
def test_huge_logits_stay_finite(size: float) -> None:
    clean = torch.tensor([[size, -size, 0.0], [size, size, size], [0.0, 0.0, size]])
    new = torch.tensor([[-size, size, 0.0], [size, -size, 0.0], [0.0, 0.0, size]])
    found = token_losses(clean, new, torch.tensor([0, 1, 2]))
    assert all(torch.isfinite(v).all() and (v >= 0).all() for v in found.values())
    assert found["ce"].tolist() == pytest.approx([2 * size, 2 * size, 0])
    assert found["kl"][0] == pytest.approx(2 * size) and found["kl"][2] == 0
    assert found["kl_reverse"][1] == pytest.approx(math.log(3))
