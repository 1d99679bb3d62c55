"""SAEs with a planted defect: the dose is what they have, L0 and explained variance are what they had; and the truth's own scores."""

from __future__ import annotations

from functools import cache
from itertools import pairwise, permutations

import numpy as np
import pytest

from bench.errors import UsageError
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.testing import check_sae
from bench.worlds import truth
from bench.worlds.defects import DEFECTS, attribute_pairs, partners
from bench.worlds.good import BALLAST, good_sae
from bench.worlds.names import open_world
from bench.worlds.planted import World

LINEAR = [n for n in DEFECTS if n != "broken_circles"]


@cache
def good(name: str) -> tuple[World, DenseSAE]:
    world = open_world(f"world:{name}")
    return world, good_sae(world)


@cache
def sample(name: str) -> tuple[np.ndarray, Codes]:
    """Tokens that no SAE was calibrated on."""
    return good(name)[0].sample(10_000, np.random.default_rng(77))


def shape(name: str, sae: DenseSAE) -> tuple[float, float]:
    """Explained variance and L0."""
    x = sample(name)[0].astype(np.float64)
    codes = sae.encode_sparse(sample(name)[0])
    error = np.square(x - sae.decode_sparse(codes)).sum()
    return 1 - float(error / np.square(x - x.mean(0)).sum()), float(codes.l0().mean())


def f1(name: str, sae: DenseSAE) -> np.ndarray:
    every = np.arange(good(name)[0].n_features)
    return truth.firing_f1(sample(name)[1], sae.encode_sparse(sample(name)[0]), every, every)


@pytest.mark.parametrize("name", ["tiny", "small", "letters", "attributes", "circles"])
def test_the_good_sae_is_near_the_truth(name: str) -> None:
    world, sae = good(name)
    ev, l0 = shape(name, sae)
    assert ev >= 0.98 and l0 == pytest.approx(world.mean_l0 * (1 + BALLAST), rel=0.03)
    assert f1(name, sae).mean() >= 0.985 and sae.d_sae == world.n_features + max(8, world.n_features // 32)
    assert np.allclose(Canonical(sae).W_dec[: world.n_features], world.dictionary, atol=1e-6)
    check_sae(sae)


@pytest.mark.parametrize("defect", LINEAR)
def test_a_tenth_is_a_tenth_at_equal_l0_and_reconstruction(defect: str) -> None:
    world, sae = good("small")
    made = DEFECTS[defect](sae, world, 0.1)
    ev, l0 = shape("small", sae)
    bad_ev, bad_l0 = shape("small", made.sae)
    assert made.rate == pytest.approx(0.1, abs=0.02) and made.sae.d_sae == sae.d_sae
    assert bad_l0 == pytest.approx(l0, rel=0.03) and abs(bad_ev - ev) <= 0.02
    assert np.linalg.norm(made.sae.W_dec.numpy(), axis=1) == pytest.approx(np.ones(sae.d_sae), abs=1e-5)
    check_sae(made.sae)


@pytest.mark.parametrize("defect", LINEAR)
def test_more_is_more_none_is_none_and_the_same_is_the_same(defect: str) -> None:
    world, sae = good("tiny")
    made = [DEFECTS[defect](sae, world, dose) for dose in (0.0, 0.125, 0.25, 0.375)]
    rates = [m.rate for m in made]
    assert rates[0] == pytest.approx(0, abs=0.01) and all(b > a + 0.05 for a, b in pairwise(rates))
    assert rates == pytest.approx([0, 0.125, 0.25, 0.375], abs=0.07)  # a concept of eight is 12.5 %
    assert made[0].sae.sha256 == sae.sha256 and DEFECTS[defect](sae, world, 0.25).sae.sha256 == made[2].sae.sha256
    if defect != "shrunk":
        assert DEFECTS[defect](sae, world, 0.25, seed=1).sae.sha256 != made[2].sae.sha256
        changed = [set(np.flatnonzero((m.sae.W_enc != sae.W_enc).any(0).numpy()[: world.n_features])) for m in made]
        assert changed[1] < changed[2] < changed[3]  # a higher dose holds what a lower one does


def test_the_true_f1_falls_where_firing_is_touched() -> None:
    world, sae = good("small")
    base = f1("small", sae)
    for defect, units in (("absorbed", world.edges[:, 0]), ("rotated", world.concepts), ("entangled", attribute_pairs(world)[:, 0])):
        assert f1("small", DEFECTS[defect](sae, world, 0.25).sae)[units].mean() < base[units].mean() - 0.01, defect
    assert np.allclose(f1("small", DEFECTS["shrunk"](sae, world, 0.25).sae), base)  # what fires is what fired


def test_a_broken_circle_keeps_its_reconstruction_and_loses_its_neighbours() -> None:
    world, sae = good("circles")
    made = DEFECTS["broken_circles"](sae, world, 0.25)
    (ev, l0), (bad_ev, bad_l0) = shape("circles", sae), shape("circles", made.sae)
    assert made.rate == 0.25 and DEFECTS["broken_circles"](sae, world, 0.0).rate == 0
    assert abs(bad_ev - ev) <= 0.02 and bad_l0 == pytest.approx(l0, rel=0.03)


def test_pairs_and_partners_are_of_concepts_and_disjoint_trees() -> None:
    world = good("small")[0]
    pairs = attribute_pairs(world)
    assert pairs[:2].tolist() == [[0, 1], [2, 3]] and pairs[16].tolist() == [32, 33] and len(np.unique(pairs)) == pairs.size == 160
    partner = partners(world)
    root = np.where(partner < 32, partner, world.parents[partner])
    assert partner[:, 0].tolist() == world.concepts.tolist() and sorted(partner[:, 1]) == world.concepts.tolist()
    assert (root[:, 0] != root[:, 1]).all()


@pytest.mark.parametrize(("defect", "dose"), [("absorbed", 1.1), ("absorbed", -0.1), ("duplicated", 0.9), ("broken_circles", 0.1)])
def test_what_cannot_be_planted_is_refused(defect: str, dose: float) -> None:
    world, sae = good("tiny")
    with pytest.raises(UsageError):
        DEFECTS[defect](sae, world, dose)


# the truth's own scores


def hand() -> tuple[Codes, Codes]:
    """Six tokens: feature 1 is a child of feature 0; its latent takes over on tokens 2 and 3."""
    true = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]], np.float32)
    found = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 0, 0]], np.float32)
    return Codes.from_dense(true), Codes.from_dense(found)


def test_firing_scores_by_hand() -> None:
    true, found = hand()
    every = np.arange(3)
    both, feature, latent = truth.firing_counts(true, found, every, every)
    assert (both.tolist(), feature.tolist(), latent.tolist()) == ([2, 3, 1], [4, 3, 2], [2, 4, 1])
    assert truth.firing_f1(true, found, every, every) == pytest.approx([4 / 6, 6 / 7, 2 / 3])
    assert truth.firing_f1(true, found, np.array([0]), np.array([2])) == pytest.approx([2 / 5])


def test_absorbed_share_by_hand() -> None:
    true, found = hand()
    w = np.eye(3, dtype=np.float32)
    carrying = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32)
    edges, own = np.array([[0, 1]]), np.arange(3)
    share, firings = truth.absorbed_share(true, found, carrying, w, edges, own)
    assert share == pytest.approx([2 / 3]) and firings.tolist() == [3]
    assert truth.absorbed_share(true, found, w, w, edges, own)[0].tolist() == [0]  # silent, but nobody carries it
    assert truth.absorbed_share(true, true, carrying, w, edges, own)[0].tolist() == [0]  # carried, but not silent


def test_sums_are_told_from_features_and_from_noise() -> None:
    w = np.eye(32, dtype=np.float32)
    r = np.random.default_rng(0).standard_normal((4, 32))
    rows = np.stack([w[0], w[0] + w[1], 2 * w[2] + w[3], 3 * w[2] + w[3], w[4] - w[5], -w[6], *r])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert truth.composed(rows, w).tolist() == [False, True, True, False, False, False, *[False] * 4]  # √2 − 1 lies between 1/2 and 1/3
    assert truth.recovered(rows, w).nonzero()[0].tolist() == [0, 2]


def test_matching_is_the_best_of_all_permutations_and_the_sparse_one_agrees() -> None:

    g = np.random.default_rng(3)
    a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (g.standard_normal((5, 4)), g.standard_normal((7, 4))))
    at, value = truth.matched(a, b)
    best = max(sum(abs(a[i] @ b[j]) for i, j in enumerate(p)) for p in permutations(range(7), 5))
    assert value.sum() == pytest.approx(best) and value == pytest.approx(np.abs(np.einsum("ij,ij->i", a, b[at])))
    assert truth.matched(a, b, most_dense=4)[1] == pytest.approx(value)
    fewer, cosine = truth.matched(b, a)
    assert (fewer < 0).sum() == 2 and (cosine[fewer < 0] == 0).all() and len(set(fewer[fewer >= 0])) == 5
    assert truth.matched(b, a, most_dense=4)[1].sum() == pytest.approx(cosine.sum())
