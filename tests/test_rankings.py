"""Rankings of latents: references from scikit-learn and by hand, and the planted latents come first."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.rankings import RANKINGS, f_statistic, mean_difference, mutual_information, ranked


def codes(seed: int = 0, n: int = 400, m: int = 60) -> tuple[sp.csr_matrix, np.ndarray]:
    """Latents 5, 9 and 20 fire with the class, ever less; the others at random."""
    r = np.random.default_rng(seed)
    y = r.random(n) < 0.4
    f = np.where(r.random((n, m)) < 0.15, r.random((n, m)) + 0.2, 0)
    for latent, share in ((5, 0.95), (9, 0.8), (20, 0.6)):
        fires = np.where(r.random(n) < share, y, r.random(n) < 0.4)
        f[:, latent] = fires * (1 + r.random(n))
    return sp.csr_matrix(f), y


@pytest.mark.parametrize("name", RANKINGS)
def test_planted_latents_come_first(name: str) -> None:
    f, y = codes()
    order = ranked(name, f, y, 10)
    assert len(set(order.tolist())) == 10 and order[0] == 5
    assert 9 in order[:3].tolist()


@pytest.mark.parametrize("name", RANKINGS)
def test_permuting_latents_permutes_the_order(name: str) -> None:
    f, y = codes(1)
    p = np.random.default_rng(0).permutation(f.shape[1])
    assert [int(p[i]) for i in ranked(name, f[:, p].tocsr(), y, 3)] == ranked(name, f, y, 3).tolist()


def test_f_statistic_equals_scikit_learn() -> None:
    from sklearn.feature_selection import f_classif

    f, y = codes(2)
    assert np.allclose(f_statistic(f, y), f_classif(f.toarray(), y)[0], rtol=1e-8)


def test_f_statistic_of_constant_and_perfect_latents() -> None:
    y = np.array([True, True, False, False])
    f = sp.csr_matrix(np.array([[1.0, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]))
    found = f_statistic(f, y)
    assert found[0] == 0 and found[1] > 1e9 and found[2] == 0


def test_mutual_information_by_hand() -> None:
    y = np.array([True, True, False, False])
    perfect, useless = np.array([[3.0], [3], [0], [0]]), np.array([[3.0], [0], [3], [0]])
    assert mutual_information(sp.csr_matrix(perfect), y)[0] == pytest.approx(np.log(2))
    f = sp.csr_matrix(np.concatenate([useless, np.zeros((4, 1))], 1))
    assert mutual_information(f, y)[1] == pytest.approx(0)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_mutual_information_equals_the_double_loop(seed: int) -> None:
    r = np.random.default_rng(seed)
    n = 30
    f = np.where(r.random((n, 4)) < 0.6, r.random((n, 4)) + 0.1, 0)
    y = r.random(n) < 0.5
    y[:2] = [True, False]
    found = mutual_information(sp.csr_matrix(f), y)
    for j in range(4):
        active = np.flatnonzero(f[:, j])
        bins = np.zeros(n, int)
        for rank, i in enumerate(active[np.argsort(f[active, j], kind="stable")]):
            bins[i] = 1 + 4 * rank // len(active)
        total = 0.0
        for b in range(5):
            for c in (False, True):
                joint = np.mean((bins == b) & (y == c))
                if joint > 0:
                    total += joint * np.log(joint / (np.mean(bins == b) * np.mean(y == c)))
        assert found[j] == pytest.approx(total, abs=1e-12)


def test_scale_matters_to_differences_of_means_only() -> None:
    f, y = codes(3)
    scale = np.ones(f.shape[1])
    scale[9] = 100.0
    louder = (f @ sp.diags(scale)).tocsr()
    assert ranked("difference", louder, y, 1)[0] == 9
    for name in ("f_statistic", "mutual_information"):
        assert np.array_equal(ranked(name, louder, y, 5), ranked(name, f, y, 5))
    assert np.allclose(mean_difference(louder, y)[9], 100 * mean_difference(f, y)[9])
