"""Our kernels against what SAEBench answers on the same inputs (`perf/saebench_cases.py` stored its answers).

Where the two should agree they must agree closely; where they differ on purpose, the reason is tested too.
docs/agreement.md holds the same as a table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from bench.kernels import ablation, absorption, cosine, probes
from bench.sae.activations import ReLU
from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.types import NotApplicable, Result
from tasks import scr
from tasks import tpp as tpp_task
from tests import saebench_inputs as inputs

Answers = dict[str, Any]


@pytest.fixture(scope="module")
def theirs() -> Answers:
    return json.loads((Path(__file__).parent / "data" / "saebench_cases.json").read_text())


def score_words(w: inputs.Words, scale: float = 1.0) -> absorption.Absorbed:
    directions = inputs.unit(w.directions.astype(np.float64))
    main = np.zeros((len(w.rows), inputs.LETTERS), bool)
    for c, latents in enumerate(w.main):
        main[list(latents), c] = True
    projection = scale * np.einsum("nd,nd->n", w.x.astype(np.float64), directions[w.letter])
    return absorption.absorbed(sp.csr_matrix(w.f), projection, w.letter, w.rows.astype(np.float64) @ directions.T, main)


def test_absorption_of_every_word(theirs: Answers) -> None:
    ours, fraction = score_words(inputs.words()), np.array(theirs["absorption"]["fraction"])
    assert {0.0, 1.0} < set(fraction) and ((fraction > 0) & (fraction < 1)).sum() >= 15  # every branch is taken
    np.testing.assert_allclose(ours.fraction, fraction, atol=1e-6)
    np.testing.assert_array_equal(ours.full, np.array(theirs["absorption"]["full"], bool))
    assert 5 <= ours.full.sum() <= len(fraction) / 2


def test_a_zero_projection_stops_them_and_counts_here(theirs: Answers) -> None:
    assert theirs["absorption_zero_projection_raises"] == 1
    ours = score_words(inputs.words(), scale=0.0)
    assert ours.zero_projection.all() and not ours.fraction.any() and not ours.full.any()


def dense(s: inputs.Linear) -> DenseSAE:
    w_enc, b_enc, w_dec, b_dec = (torch.from_numpy(v) for v in (s.w_enc, s.b_enc, s.w_dec, s.b_dec))
    return DenseSAE(w_enc, b_enc, w_dec, b_dec, torch.zeros(len(b_dec)), ReLU())


def pooled_codes(s: inputs.Linear, x: np.ndarray, padding: bool = False) -> Codes:
    """Mean code of every row of tokens [n, tokens, d] over its kept tokens; `padding` adds padded tokens to the sum."""
    kept = inputs.kept(x)
    used = np.ones_like(kept) if padding else kept
    found = dense(s).encode_sparse(x[used]).pooled(np.nonzero(used)[0], len(x))
    return Codes(
        found.indptr, found.indices, found.values * np.repeat(used.sum(1) / kept.sum(1), found.l0()).astype(np.float32), found.d_sae
    )


def effects_of(s: inputs.Linear, rows: np.ndarray, y: np.ndarray, w: np.ndarray, clamp: bool) -> np.ndarray:
    """Effects from training rows; `clamp` keeps latents that are higher on positives only (TPP), else absolute (SCR)."""
    low, high = pooled_codes(s, rows).group_means(y, 2)
    difference = np.maximum(high - low, 0) if clamp else high - low
    effects = ablation.latent_effects(difference, w.astype(np.float64), s.w_dec.astype(np.float64))
    return effects if clamp else np.abs(effects)


def ablated_logits(
    s: inputs.Linear, x: np.ndarray, latents: np.ndarray, w: np.ndarray, b: np.ndarray, padding: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, c] of pooled rows as they are, and [sizes, n, c] with the first N of `latents` taken away."""
    clean = inputs.pooled(x).astype(np.float64) @ w.T + b
    codes = pooled_codes(s, x, padding).columns(latents)
    return clean, clean + ablation.logit_shifts(codes.astype(np.float64), s.w_dec[latents].astype(np.float64) @ w.T, inputs.SIZES)


def accuracies(d: inputs.Documents, s: inputs.Linear, latents: np.ndarray, padding: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy [c] of every class's probe, and [sizes, c] after ablation."""
    clean, after = [], []
    for c in range(len(d.test)):
        x, y = inputs.one_against_rest(d.test, c)
        before, moved = ablated_logits(s, x, latents, d.w[c : c + 1], d.b[c : c + 1], padding)
        clean.append(((before[:, 0] > 0) == y).mean())
        after.append(((moved[:, :, 0] > 0) == y).mean(1))
    return np.array(clean), np.array(after).T


def tpp(d: inputs.Documents, s: inputs.Linear, padding: bool = False) -> Answers:
    """What `perf/saebench_cases.py` asks SAEBench for, by our kernels."""
    sets = [inputs.one_against_rest(d.train, c) for c in range(len(d.train))]
    effects = np.stack([effects_of(s, x, y, d.w[c], clamp=True) for c, (x, y) in enumerate(sets)])
    order = [ablation.strongest(e, max(inputs.SIZES)) for e in effects]
    clean = accuracies(d, s, order[0])[0]
    ablated = np.stack([accuracies(d, s, o, padding)[1] for o in order])
    drop = clean - ablated
    own = np.einsum("csc->cs", drop)
    logits = ablated_logits(s, d.test[0], order[0], d.w[:1], d.b[:1], padding)[1][inputs.SIZES.index(5), :, 0]
    score = own - (drop.sum(2) - own) / (len(clean) - 1)
    selected = [[sorted(o[:k].tolist()) for k in inputs.SIZES] for o in order]
    return {"effects": effects, "selected": selected, "clean": clean, "ablated": ablated, "score": score.mean(0), "logits": logits}


def test_tpp_effects_selection_accuracies_and_score(theirs: Answers) -> None:
    ours, they = tpp(inputs.documents(), inputs.sae()), theirs["tpp"]
    np.testing.assert_allclose(ours["effects"], they["effects"], atol=1e-5)
    assert ours["selected"] == they["selected"]
    for name in ("clean", "ablated", "score"):
        np.testing.assert_allclose(ours[name], they[name], atol=1e-6)
    np.testing.assert_allclose(ours["logits"], they["logits"], atol=1e-5)
    assert np.ptp(they["score"]) > 0.1 and min(they["score"]) > 0


def test_all_negatives_give_what_their_draws_give_on_average(theirs: Answers) -> None:
    """They draw as many negatives as positives; the task takes all and weighs both sides equally."""
    d, s, draws = inputs.documents(), inputs.sae(), np.array(theirs["tpp_draws"])
    x, c = d.test.reshape(-1, *d.test.shape[2:]), np.repeat(np.arange(len(d.test)), d.test.shape[1])
    train, y = d.train.reshape(x.shape), c[:, None] == np.arange(len(d.test))
    score = []
    for k in range(len(d.test)):
        latents = ablation.strongest(effects_of(s, train, (c == k).astype(np.int64), d.w[k], clamp=True), max(inputs.SIZES))
        before, after = ablated_logits(s, x, latents, d.w, d.b)
        drop = tpp_task._balanced(before, y) - tpp_task._balanced(after[inputs.SIZES.index(5)], y)
        score.append(drop[k] - np.delete(drop, k).mean())
    assert draws.std() > 0.01  # the draw alone moves the score
    assert abs(np.mean(score) - draws.mean()) < draws.std()


def test_where_positive_effects_run_out(theirs: Answers) -> None:
    """Asked for more latents than have an effect above 0, they go on with effects of 0, ours with those below 0."""
    effects = np.array(theirs["tpp"]["effects"][0])
    they, we = theirs["tpp"]["selected_many"], ablation.strongest(effects, inputs.MANY)
    positive, present = np.flatnonzero(effects > 0), np.flatnonzero(effects)
    assert len(positive) < len(present) < inputs.MANY
    assert len(they) == len(we) == len(present) and set(positive) <= set(they) & set(we)
    assert set(we) == set(present)
    assert not effects[sorted(set(they) - set(positive))].any()


def test_padding_is_in_their_ablation_and_not_in_ours(theirs: Answers) -> None:
    d, s, they = inputs.documents(padded=True), inputs.sae(fires_on_padding=True), theirs["tpp_padded"]
    ours, with_padding = tpp(d, s), tpp(d, s, padding=True)
    np.testing.assert_allclose(ours["effects"], they["effects"], atol=1e-5)
    np.testing.assert_allclose(with_padding["logits"], they["logits"], atol=1e-5)  # the whole difference is the padding
    np.testing.assert_allclose(with_padding["ablated"], they["ablated"], atol=1e-6)
    assert np.abs(ours["logits"] - they["logits"]).max() > 0.5
    assert np.abs(ours["score"] - they["score"]).max() > 0.02
    latents = np.array(ours["selected"][0][inputs.SIZES.index(5)])
    np.testing.assert_allclose(ours["logits"], by_decoding(d.test[0], s, latents) @ d.w[0] + d.b[0], atol=1e-5)


def by_decoding(x: np.ndarray, s: inputs.Linear, latents: np.ndarray) -> np.ndarray:
    """Pooled activations after ablation the slow way: encode, zero, decode, error term, one token at a time."""
    out = np.zeros((len(x), x.shape[2]))
    for i, row in enumerate(x.astype(np.float64)):
        tokens = [t for t in row if t.any()]
        for t in tokens:
            f = np.maximum(t @ s.w_enc + s.b_enc, 0)
            error = t - (f @ s.w_dec + s.b_dec)
            f[latents] = 0
            out[i] += (f @ s.w_dec + s.b_dec + error) / len(tokens)
    return out


def attribute(x: np.ndarray, which: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of attribute 0 (a) or 1 (b) from cells [a, b, n, …]."""
    cells = x if which == 0 else x.swapaxes(0, 1)
    flat = cells.reshape(2, -1, *x.shape[3:])
    return np.concatenate([flat[1], flat[0]]), np.repeat([1, 0], flat.shape[1])


def test_scr_effects_accuracies_and_scores(theirs: Answers) -> None:
    x, they = inputs.cells(), theirs["scr"]
    s = inputs.sae(along=x.along)
    train, test = ([attribute(part, i) for i in (0, 1)] for part in (x.train, x.test))
    effects = [effects_of(s, *train[i], x.w[i], clamp=False) for i in (0, 1)]
    np.testing.assert_allclose(effects, they["effects"], atol=1e-5)
    scores = []
    for i in (0, 1):  # score attribute i, the other one's latents taken away
        other = ablation.strongest(effects[1 - i], max(inputs.SIZES))
        before, moved = ablated_logits(s, test[i][0], other, x.w[[i, 2]], x.b[[i, 2]])
        clean, biased = ((before > 0) == test[i][1][:, None]).mean(0)
        ablated = ((moved[:, :, 1] > 0) == test[i][1]).mean(1)
        assert [clean, biased] == pytest.approx([they["clean"][i], they["clean"][3 + i]], abs=1e-6)
        np.testing.assert_allclose(ablated, np.array(they["ablated"])[1 - i, :, i], atol=1e-6)
        scores.append((ablated - biased) / (clean - biased))
    np.testing.assert_allclose(np.array(scores).T, they["by_direction"], atol=1e-5)
    worse = int(they["clean"][4] < they["clean"][3])
    np.testing.assert_allclose(scores[worse], they["score"], atol=1e-5)


def scr_result(case: int) -> Result | NotApplicable:
    """What the task makes of one pair whose accuracies are given, 2,000 test texts each."""
    (of_b, of_a, biased_a, biased_b), (after_b, after_a) = inputs.ACCURACIES[case]
    table: dict[str, list[object]] = {"pair": ["p", "p"], "level_1": ["x", "x"], "level_2": ["y", "y"], "N": [20, 20]}
    table |= {"accuracy_clean": [of_a, of_b], "accuracy_biased": [biased_a, biased_b], "accuracy_ablated": [after_b, after_a]}
    table |= {"used": [biased_a <= biased_b, biased_b <= biased_a], "error": [0.01, 0.01]}
    return scr._result(table, {"pairs": 1}, {}, (20,), ())


@pytest.mark.parametrize("case", [0, 1])
def test_scr_score_from_accuracies(theirs: Answers, case: int) -> None:
    found = scr_result(case)
    assert isinstance(found, Result) and found.metrics["scr_n20"].value == pytest.approx(theirs["scr_scores"][case][2], abs=1e-6)


def test_scr_score_where_no_direction_is_worse(theirs: Answers) -> None:
    found, (first, second, reported) = scr_result(2), theirs["scr_scores"][2]
    assert reported is None
    assert isinstance(found, Result) and found.metrics["scr_n20"].value == pytest.approx((first + second) / 2, abs=1e-6)


def test_scr_score_where_there_is_little_bias_to_remove(theirs: Answers) -> None:
    """An accuracy of 0.7005 against 0.70 scores 0 there, 0.72 against 0.70 scores 2.5; here both pairs are left out."""
    assert [theirs["scr_scores"][i][2] for i in (3, 4)] == [0, 2.5]
    assert isinstance(scr_result(3), NotApplicable) and isinstance(scr_result(4), NotApplicable)


@pytest.mark.parametrize("name", ["probing", "probing_unequal"])
def test_probing_selection_and_accuracy(theirs: Answers, name: str) -> None:
    p, they = inputs.probing(unequal=name == "probing_unequal"), theirs[name]
    codes = Codes.from_dense(p.train)
    order = probes.rank_by_difference(codes.group_means(p.y_train, 2))
    leading = order[: max(inputs.KS)]
    w, b = probes.nested_logistic(codes.columns(leading).astype(np.float64), p.y_train, inputs.KS)
    held = Codes.from_dense(p.test).columns(leading)
    for i, k in enumerate(inputs.KS):
        assert sorted(order[:k].tolist()) == they["selected"][i]
        assert probes.scores(p.y_test, held @ w[i] + b[i])["accuracy"] == pytest.approx(they["accuracy"][i], abs=1e-6)
        np.testing.assert_allclose(w[i, np.argsort(order[:k])], they["weights"][i], rtol=1e-2, atol=5e-3)  # they stop at a gradient of 1e-4
        assert b[i] == pytest.approx(they["intercept"][i], rel=1e-2, abs=5e-3)


def test_standardised_columns_probe_otherwise_where_latents_differ_in_size(theirs: Answers) -> None:
    """The task standardises: the penalty then treats small and large latents alike."""
    p, they = inputs.probing(unequal=True), theirs["probing_unequal"]
    leading = probes.rank_by_difference(Codes.from_dense(p.train).group_means(p.y_train, 2))[: max(inputs.KS)]
    train, held = probes.standardised(p.train[:, leading].astype(np.float64), p.test[:, leading].astype(np.float64))
    w, b = probes.nested_logistic(train, p.y_train, inputs.KS)
    ours = [probes.scores(p.y_test, held @ v + c)["accuracy"] for v, c in zip(w, b, strict=True)]
    assert ours[0] == pytest.approx(they["accuracy"][0], abs=1e-6)  # one column: only its threshold counts
    assert ours[-1] > they["accuracy"][-1] + 0.02


def test_probes_on_noise_are_right_half_of_the_time(theirs: Answers) -> None:
    """They report the best of 20 epochs on the test rows, which beats chance on rows without signal; ours do not look."""
    ours = []
    for seed in range(inputs.NOISE):
        train, test, y = inputs.noise(seed=seed)
        w, b = ablation.raw_probes(train, (y == 1)[:, None], 0.01)
        ours.append(((test @ w.T + b)[:, 0] > 0) == y)
    error = 0.5 / np.sqrt(np.size(ours))
    assert np.mean(theirs["noise"]) > 0.5 + 2 * error
    assert abs(np.mean(ours) - 0.5) < 2 * error


def test_nearest_cosine(theirs: Answers) -> None:
    ours = cosine.nearest_cosine(torch.from_numpy(inputs.dictionary())).numpy()
    np.testing.assert_allclose(ours, theirs["max_cosine"], atol=1e-6)
