"""Planted worlds against SAELens' synthetic models (MIT; `pip install sae-lens`): same firing statistics, same scores.

Run with `pytest -m parity tests/test_world_parity.py` where sae-lens is installed.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from types import ModuleType

import numpy as np
import pytest
import torch

from bench.sae.dense import DenseSAE
from bench.worlds import truth
from bench.worlds.good import good_sae
from bench.worlds.planted import World, WorldSpec

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # the other libraries warn of one another

TOKENS = 40_000
WORLD = World(WorldSpec(64, 48, roots=8, branching=3, depth=1, p_min=0.004, rank=3, strength=0.3))


@cache
def theirs() -> ModuleType:
    try:
        import sae_lens.synthetic
    except ImportError as e:
        pytest.fail(f"parity needs SAELens with its synthetic models: pip install sae-lens ({e})")
    return sae_lens.synthetic


def competing(shares: np.ndarray) -> np.ndarray:
    """Independent firing probabilities r of siblings such that, with one random winner, sibling i wins with `shares[i]`."""
    r = shares.copy()
    for _ in range(500):
        wins = np.zeros_like(r)
        for on in product([0, 1], repeat=len(r)):
            fired = np.array(on)
            wins += np.prod(np.where(fired, r, 1 - r)) * fired / max(fired.sum(), 1)
        r = np.clip(r * shares / wins, 0, 1)
    return r


@cache
def generator() -> object:
    """SAELens' generator of the same world: copula on roots and free features, one random winner among siblings."""
    lib, p = theirs(), WORLD.probabilities.copy()
    factors = np.zeros((WORLD.n_features, WORLD.spec.rank), np.float32)
    factors[WORLD._top] = WORLD._copula[0]
    roots = []
    for root in WORLD.concepts:
        kids = WORLD.children(root)
        p[kids] = competing(WORLD.probabilities[kids] / WORLD.probabilities[root])
        children = [lib.HierarchyNode(feature_index=int(k)) for k in kids]
        roots.append(lib.HierarchyNode(feature_index=int(root), children=children, mutually_exclusive_children=True))
    low_rank = lib.LowRankCorrelationMatrix(torch.from_numpy(factors), torch.from_numpy(1 - np.square(factors).sum(1)))
    return lib.ActivationGenerator(
        WORLD.n_features,
        torch.from_numpy(p).float(),
        std_firing_magnitudes=WORLD.spec.magnitude_sd,
        mean_firing_magnitudes=WORLD.spec.magnitude,
        modify_activations=lib.hierarchy_modifier(roots),
        correlation_matrix=low_rank,
    )


@cache
def codes() -> tuple[np.ndarray, np.ndarray]:
    """[n, features] codes drawn by us and by SAELens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = generator().sample(TOKENS).numpy()  # type: ignore[attr-defined]
    return WORLD.sample(TOKENS, np.random.default_rng(0))[1].matrix.toarray(), found


@cache
def dictionary() -> object:
    made = theirs().FeatureDictionary(WORLD.n_features, WORLD.d, initializer=None, seed=0)
    made.feature_vectors.data = torch.from_numpy(WORLD.dictionary)
    return made


@cache
def imperfect() -> DenseSAE:
    """The good SAE without ballast, its rows moved a little and its thresholds lowered."""
    sae, n = good_sae(WORLD), WORLD.n_features
    rows = sae.W_dec[:n] + 0.05 * torch.randn(n, WORLD.d, generator=torch.Generator().manual_seed(1))
    act = type(sae.act)(0.5 * sae.act.threshold[:n])  # type: ignore[union-attr]
    return DenseSAE(sae.W_enc[:, :n].contiguous(), sae.b_enc[:n], rows / rows.norm(dim=1, keepdim=True), sae.b_dec, sae.b_pre, act)


def test_the_power_law_is_the_same() -> None:
    for spec in (WorldSpec(100, 8, zipf=0.5, p_max=0.4, p_min=5e-4), WorldSpec(37, 8, zipf=1.3, p_max=0.2, p_min=0.01)):
        law = theirs().zipfian_firing_probabilities(spec.n_features, exponent=spec.zipf, max_prob=spec.p_max, min_prob=spec.p_min)
        assert World(spec).probabilities == pytest.approx(law.numpy(), rel=1e-4)


def test_marginals_l0_hierarchy_and_exclusion_agree() -> None:
    p = WORLD.probabilities
    error = np.sqrt(p * (1 - p) / TOKENS)
    for found in codes():
        on = found > 0
        assert (np.abs(on.mean(0) - p) < 5 * error).all()
        assert on.sum(1).mean() == pytest.approx(WORLD.mean_l0, abs=5 * on.sum(1).std() / np.sqrt(TOKENS))
        assert not (on[:, WORLD.edges[:, 1]] & ~on[:, WORLD.edges[:, 0]]).any()
        assert max(on[:, WORLD.children(c)].sum(1).max() for c in WORLD.concepts) == 1


def test_joint_firing_and_magnitudes_agree() -> None:
    a, b = ((c > 0).astype(np.float64) for c in codes())
    both = [m.T @ m / TOKENS for m in (a, b)]
    error = np.sqrt((both[0] + both[1]) / TOKENS + 1 / TOKENS**2)
    assert (np.abs(both[0] - both[1]) < 5.5 * error).all()  # 2,080 pairs
    ours, others = (c[c > 0] for c in codes())
    assert ours.mean() == pytest.approx(others.mean(), abs=0.004) and ours.std() == pytest.approx(others.std(), abs=0.004)


def test_mcc_uniqueness_and_firing_scores_agree_on_the_same_codes() -> None:
    lib, sae = theirs(), imperfect()
    x, true = WORLD.sample(8_000, np.random.default_rng(1))
    rows, every = sae.W_dec.numpy(), np.arange(WORLD.n_features)
    at, cosine = truth.matched(WORLD.dictionary, rows)
    assert at.tolist() == every.tolist()
    assert cosine.mean() == pytest.approx(lib.mean_correlation_coefficient(sae.W_dec, torch.from_numpy(WORLD.dictionary)), abs=1e-6)
    assert truth.recovered(rows, WORLD.dictionary).mean() == lib.feature_uniqueness(sae.W_dec, torch.from_numpy(WORLD.dictionary)) == 1
    found = sae.encode_sparse(x)
    scores = lib.compute_classification_metrics(
        torch.from_numpy(found.matrix.toarray()), torch.from_numpy(true.matrix.toarray()), sae.W_dec, torch.from_numpy(WORLD.dictionary)
    )
    f1 = truth.firing_f1(true, found, every, at).mean()
    assert f1 < 0.99 and f1 == pytest.approx(scores.f1_score, abs=1e-5)


def test_their_evaluation_of_our_sae_agrees_with_ours() -> None:
    import sae_lens

    sae, lib = imperfect(), theirs()
    twin = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(d_in=WORLD.d, d_sae=WORLD.n_features, apply_b_dec_to_input=False))
    with torch.no_grad():
        twin.W_enc.copy_(sae.W_enc)
        twin.b_enc.copy_(sae.b_enc - sae.b_pre @ sae.W_enc)
        twin.W_dec.copy_(sae.W_dec)
        twin.b_dec.copy_(sae.b_dec)
        twin.threshold.copy_(sae.act.threshold)  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        result = lib.eval_sae_on_synthetic_data(twin, dictionary(), generator(), num_samples=20_000)
    x, true = WORLD.sample(20_000, np.random.default_rng(2))
    found = sae.encode_sparse(x)
    ev = 1 - np.square(x - sae.decode_sparse(found)).sum() / np.square(x - x.mean(0)).sum()
    every = np.arange(WORLD.n_features)
    assert result.explained_variance == pytest.approx(ev, abs=0.005)
    assert result.sae_l0 == pytest.approx(found.l0().mean(), abs=0.05) and result.true_l0 == pytest.approx(WORLD.mean_l0, abs=0.05)
    assert result.mcc == pytest.approx(truth.matched(WORLD.dictionary, sae.W_dec.numpy())[1].mean(), abs=1e-6)
    assert result.classification.f1_score == pytest.approx(truth.firing_f1(true, found, every, every).mean(), abs=0.01)
