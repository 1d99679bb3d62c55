"""Ablation by linearity equals doing it: encode, zero the latents, add back, pool, probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.ablation import latent_effects, logit_shifts, raw_probes, strongest
from bench.sae.activations import JumpReLU, ReLU, TopK
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from tests.worlds import dictionary

SEEDS = st.integers(0, 2**32 - 1)
SIZES = (1, 2, 5, 12, 500)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_sae(act: object, m: int = 40, d: int = 12, seed: int = 0) -> DenseSAE:
    g = torch.Generator().manual_seed(seed)
    rows = dictionary(m, d, seed) * (0.2 + 2 * torch.rand(m, 1, generator=g))
    bias = torch.randn(m, generator=g) * 0.1
    return DenseSAE(torch.randn(d, m, generator=g), bias, rows, torch.randn(d, generator=g), torch.randn(d, generator=g), act)


ACTIVATIONS = {"relu": ReLU(), "topk": TopK(7), "jumprelu": JumpReLU(torch.linspace(0.1, 1.5, 40))}


# logit_shifts


def test_shifts_by_hand() -> None:
    f = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    onto = np.array([[2.0, 0.0], [1.0, -1.0], [-1.0, 5.0]])
    found = logit_shifts(f, onto, (1, 2, 9))
    assert found.tolist() == [[[-2, 0], [0, 0]], [[-2, 0], [-3, 3]], [[0, -10], [-2, -2]]]


def test_shifts_equal_a_double_loop() -> None:
    f, onto = rng(1).random((6, 12)) * (rng(2).random((6, 12)) < 0.4), rng(3).standard_normal((12, 3))
    found = logit_shifts(f, onto, SIZES)
    for s, size in enumerate(SIZES):
        for n in range(6):
            for c in range(3):
                assert found[s, n, c] == pytest.approx(-sum(f[n, i] * onto[i, c] for i in range(min(size, 12))), abs=1e-12)


@given(SEEDS, st.lists(st.integers(1, 30), min_size=1, max_size=6, unique=True))
@settings(max_examples=40)
def test_shifts_do_not_depend_on_the_other_sizes_and_add_up(seed: int, sizes: list[int]) -> None:
    r = rng(seed)
    f, onto, sizes = r.random((5, 20)), r.standard_normal((20, 2)), sorted(sizes)
    together = logit_shifts(f, onto, tuple(sizes))
    for i, n in enumerate(sizes):
        assert np.allclose(together[i], logit_shifts(f, onto, (n,))[0])
        assert np.allclose(together[i], -f[:, :n] @ onto[:n])
    assert np.allclose(logit_shifts(2 * f, onto / 2, tuple(sizes)), together)  # scale of codes and rows cancels


def test_no_ranked_latents_move_nothing() -> None:
    assert not logit_shifts(np.zeros((4, 0)), np.zeros((0, 2)), (1, 5)).any()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_shift_equals_encode_zero_add_pool_probe(name: str) -> None:
    """The slow path in float64 on every token; canonical codes, so uneven decoder norms are part of it."""
    inner = random_sae(ACTIVATIONS[name])
    sae = Canonical(inner)
    x = rng(4).standard_normal((90, 12)).astype(np.float32) * 2
    document = np.sort(rng(5).integers(0, 9, 90))
    w, b = rng(6).standard_normal((3, 12)), rng(7).standard_normal(3)
    pooled = sae.encode_sparse(x).pooled(document, 9)
    ranked = strongest(np.abs(latent_effects(pooled.columns(np.arange(40)).mean(0).astype(np.float64), w[0], sae.W_dec)), 30)
    shift = logit_shifts(pooled.columns(ranked), sae.W_dec[ranked] @ w.T, SIZES)
    means = np.stack([x[document == k].astype(np.float64).mean(0) for k in range(9)])
    f = inner.encode(torch.from_numpy(x)).double().numpy()
    rows = inner.W_dec.double().numpy()
    error = x - (f @ rows + inner.b_dec.double().numpy())
    for i, size in enumerate(SIZES):
        kept = f.copy()
        kept[:, ranked[:size]] = 0
        moved = kept @ rows + inner.b_dec.double().numpy() + error  # decode, error term kept
        slow = np.stack([moved[document == k].mean(0) for k in range(9)]) @ w.T + b
        fast = means @ w.T + b + shift[i]
        assert np.abs(fast - slow).max() <= 1e-4 * np.abs(slow).max()
        if size < 500:
            assert np.abs(slow - (means @ w.T + b)).max() > 1e-3  # something was moved


# strongest, latent_effects


def test_effects_and_ranking_by_hand() -> None:
    decoder = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 0.0]])
    effects = latent_effects(np.array([1.0, -2.0, 0.5, 9.0]), np.array([2.0, 1.0]), decoder)
    assert effects.tolist() == pytest.approx([2.0, -2.0, 1.0, 0.0])
    assert strongest(effects, 9).tolist() == [0, 2, 1] and strongest(np.abs(effects), 2).tolist() == [0, 1]  # ties by index
    assert strongest(np.zeros(5), 3).tolist() == []


@given(SEEDS)
def test_ranking_follows_a_permutation_of_the_latents(seed: int) -> None:
    effects = rng(seed).permutation(np.arange(-10, 11).astype(float))
    order = rng(seed + 1).permutation(21)
    assert order[strongest(effects[order], 15)].tolist() == strongest(effects, 15).tolist()
    assert np.all(np.diff(effects[strongest(effects, 30)]) < 0) and 0 not in effects[strongest(effects, 30)]


# raw_probes


def test_probes_equal_scikit_learn_on_standardised_columns() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = rng(1).standard_normal((200, 8)) * np.logspace(-2, 2, 8) + np.linspace(-50, 50, 8)
    y = np.stack([x[:, 0] * 100 + rng(2).standard_normal(200) > -5000, rng(3).random(200) < 0.3], axis=1)
    assert y.any(0).all() and not y.all(0).any()
    w, b = raw_probes(x.astype(np.float64), y, 0.1)
    for k in range(2):
        slow = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-10, max_iter=5000)).fit(x, y[:, k])
        assert np.allclose(x @ w[k] + b[k], slow.decision_function(x), atol=1e-4)


def test_a_constant_column_has_no_weight() -> None:
    x = rng(1).standard_normal((60, 3))
    x[:, 1] = 7.3
    w, _ = raw_probes(x, (x[:, :1] > 0), 1.0)
    assert w[0, 1] == 0 and abs(w[0, 0]) > 1


@given(SEEDS, st.floats(0.01, 100))
@settings(max_examples=20)
def test_logits_do_not_depend_on_the_scale_of_a_column(seed: int, scale: float) -> None:
    x = rng(seed).standard_normal((80, 4))
    y = (x[:, :1] + rng(seed + 1).standard_normal((80, 1))) > 0
    factors = np.array([scale, 1.0, 1.0, 1 / scale])
    one, two = raw_probes(x, y, 0.5), raw_probes(x * factors, y, 0.5)
    assert np.allclose(x @ one[0].T + one[1], (x * factors) @ two[0].T + two[1], atol=1e-4)


# real text


@pytest.mark.model
def test_shift_on_real_text_equals_the_slow_path() -> None:
    """demo:ortsae on VADER sentences: pooled codes and one matrix product against re-decoding every token."""
    from bench.data.attributes import load_two_way
    from bench.runner import workload
    from bench.spec import make_spec

    job = workload(make_spec({"sae": ("demo:ortsae",), "tasks": ("distinct_features",)})).jobs[0]
    ctx, sae = job.context, job.sae
    pair = load_two_way("vader_movie_tweet")
    at = np.concatenate([np.flatnonzero(pair.cell == k)[:8] for k in range(4)])
    rows = ctx.prompts([pair.texts[i] for i in at], 64)
    x, some = ctx.pooled(rows)
    assert some.all()
    y = np.stack([pair.a[at], pair.b[at]], axis=1)
    w, b = raw_probes(x, y, 0.01)
    codes = ctx.pooled_codes(sae, rows)
    means = codes.group_means(y[:, 0].astype(np.int64), 2)
    ranked = strongest(np.abs(latent_effects(means[1] - means[0], w[0], sae.W_dec)), 500)
    sizes = (2, 20, 500)
    shift = logit_shifts(codes.columns(ranked), sae.W_dec[ranked] @ w.T, sizes)
    for members, tokens in ctx._shards(rows):
        f = sae.inner.encode(torch.from_numpy(tokens.kept))
        plain = sae.inner.decode(f).double().numpy()
        for i, size in enumerate(sizes):
            f_kept = f.clone()
            f_kept[:, ranked[:size]] = 0
            moved = sae.inner.decode(f_kept).double().numpy() + (tokens.kept - plain)
            slow = np.stack([moved[tokens.row == r].mean(0) for r in range(len(members))]) @ w.T + b
            fast = x[members] @ w.T + b + shift[i][members]
            assert np.abs(fast - slow).max() <= 1e-4 * np.abs(slow).max()
            assert np.abs(shift[i]).max() > 0.01 * np.abs(slow).max()
