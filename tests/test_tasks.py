"""Tasks on small worlds: hand values, NumPy references, planted-good above planted-bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.context import Context
from bench.data.labelled import Labelled, SetInfo
from bench.sae.activations import ReLU
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from bench.store import Store
from bench.types import NotApplicable, Result
from tasks.distinct_features import DistinctFeatures
from tasks.reconstruction import Reconstruction
from tasks.sparse_probing import SparseProbing
from tests.worlds import dictionary, tied_sae, tiny_context

D = 32
LETTERS = "abcdefgh"
SETS = {"36_sciq_tf": "a", "87_glue_cola": "b", "96_spam_is": "c"}  # real names, so that a record's key can be made; planted texts


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """The tiny model, with labelled sets whose concept is the prompt's last letter."""
    return replace(tiny_context(Store(tmp_path_factory.mktemp("store"))), labelled=letters)


def letters(name: str) -> Labelled:
    """Does the prompt end with this letter or another? One family per letter."""
    target = SETS.get(name, name[-1])
    r = np.random.default_rng(ord(target))
    others = [c for c in LETTERS if c != target]
    labels = np.arange(160) % 2
    words = ["".join(r.choice(list(LETTERS), 6)) + " " + (target if y else str(r.choice(others))) for y in labels]
    return Labelled(SetInfo(name, "last letter", 160, name, "0"), [f"{i:03d} {w}" for i, w in enumerate(words)], labels.astype(np.int8), {})


def repeated(name: str) -> Labelled:
    """The same question where the letter fills the prompt, so that a mean over tokens can tell."""
    full = letters(name)
    return replace(full, texts=[t[:4] + t[-1] * 7 for t in full.texts])


def identity_sae() -> DenseSAE:
    """Reconstructs everything: one latent for each signed axis."""
    return tied_sae(torch.cat([torch.eye(D), -torch.eye(D)]))


def mean_sae(mean: torch.Tensor) -> DenseSAE:
    """Always answers the mean."""
    return DenseSAE(torch.zeros(D, 4), -torch.ones(4), dictionary(4, D), mean, mean, ReLU())


def probing(**params: object) -> SparseProbing:
    base = {"sets": tuple(SETS), "ks": (1, 2, 5), "rows": 160}
    return SparseProbing(**{**base, **params})


def run(task: object, sae: object, ctx: Context) -> Result:
    answer = task.run(Canonical(sae), ctx)
    assert isinstance(answer, Result)
    return answer


def value(r: Result, name: str) -> float:
    return r.metrics[name].value


# reconstruction


def test_a_perfect_sae_has_everything(ctx: Context) -> None:
    r = run(Reconstruction(tokens=900), identity_sae(), ctx)
    assert value(r, "explained_variance") == pytest.approx(1, abs=1e-6)
    assert value(r, "shrinkage_slope") == pytest.approx(1, abs=1e-6) and value(r, "cosine") == pytest.approx(1, abs=1e-6)
    assert value(r, "kl_sae") == pytest.approx(0, abs=1e-6)
    assert value(r, "ce_sae") == pytest.approx(value(r, "ce_clean"), abs=1e-5)
    for kind in ("zero", "mean"):
        if f"ce_recovered_{kind}" in r.metrics:
            assert value(r, f"ce_recovered_{kind}") == pytest.approx(1, abs=1e-2)


def test_predicting_the_mean_explains_nothing(ctx: Context) -> None:
    mean = torch.from_numpy(ctx.text(900).kept.mean(0))
    r = run(Reconstruction(tokens=900), mean_sae(mean), ctx)
    assert value(r, "explained_variance") == pytest.approx(0, abs=1e-6) and value(r, "l0") == 0
    assert value(r, "ce_sae") == pytest.approx(value(r, "ce_mean"), abs=1e-4)


def test_reconstruction_equals_a_float64_reference(ctx: Context) -> None:
    sae = tied_sae(dictionary(40, D, 5) * torch.linspace(0.5, 2, 40)[:, None], -0.02)
    r = run(Reconstruction(tokens=900), sae, ctx)
    text = ctx.text(900)
    x = text.kept.astype(np.float64)
    f = np.maximum(x @ sae.W_enc.double().numpy() + sae.b_enc.double().numpy(), 0)
    xhat = f @ sae.W_dec.double().numpy()
    fvu = np.square(x - xhat).sum() / np.square(x - x.mean(0)).sum()
    assert value(r, "fvu") == pytest.approx(fvu, rel=1e-5)
    assert value(r, "mse") == pytest.approx(np.square(x - xhat).sum(1).mean(), rel=1e-5)
    assert value(r, "l0") == pytest.approx((f > 0).sum(1).mean(), rel=1e-3)
    whole = ctx.lm.model
    p = int(np.flatnonzero(text.rows.lengths > 3)[0])
    at = slice(int(text.rows.offsets[p]), int(text.rows.offsets[p + 1]))
    ids = torch.from_numpy(text.rows.ids[at].astype(np.int64))[None]
    with torch.no_grad():
        log = torch.log_softmax(whole(ids).logits[0].double(), -1)
    ce = -log[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
    scored = ctx.splicer(text).scored
    flat = np.full(len(scored), np.nan)
    flat[scored] = ctx.splicer(text).clean()["ce"]
    inside = scored[at]
    assert np.allclose(flat[at][inside], np.append(ce, np.nan)[inside], atol=1e-4)


def test_masked_positions_are_neither_replaced_nor_scored(ctx: Context) -> None:
    text = ctx.text(900)
    first = text.rows.offsets[:-1]
    assert not text.keep[first].any() and not ctx.splicer(text).scored[text.rows.offsets[1:] - 1].any()
    r = run(Reconstruction(tokens=900), identity_sae(), ctx)
    assert r.counts["tokens"] + r.counts["tokens_masked"] == len(text.keep)
    assert r.counts["documents"] == len(r.units["tokens"]) == r.metrics["l0"].n


def test_losses_on_fewer_tokens_are_those_of_the_first_documents(ctx: Context) -> None:
    whole, part = (run(Reconstruction(tokens=900, loss_tokens=n), identity_sae(), ctx) for n in (900, 300))
    first = part.units["scored"] > 0
    n = int(first.sum())
    assert 0 < n < len(first) and first[:n].all() and part.counts["tokens_scored_for_loss"] < whole.counts["tokens_scored_for_loss"]
    for loss in ("ce_clean", "ce_sae", "ce_zero", "kl_sae", "scored"):
        assert np.allclose(part.units[loss][:n], whole.units[loss][:n], atol=1e-4) and not part.units[loss][n:].any()
    assert part.metrics["ce_clean"].n == n and part.metrics["l0"] == whole.metrics["l0"]
    ratio = part.units["ce_sae"].sum() / part.units["scored"].sum()
    assert value(part, "ce_sae") == pytest.approx(ratio)


# distinct features


def test_duplicates_are_seen_and_counted(ctx: Context) -> None:
    good = dictionary(64, D, 1)
    bad = good.clone()
    bad[32:] = good[:32] * torch.linspace(0.5, 3, 32)[:, None]  # half the rows repeat the others, at other norms
    a, b = (run(DistinctFeatures(tokens=900), tied_sae(w), ctx) for w in (good, bad))
    assert value(b, "mean_max_cosine") == pytest.approx(1) and value(a, "mean_max_cosine") < 0.6
    assert value(b, "distinct_at_0.9") == 32 and value(a, "distinct_at_0.9") == 64
    assert value(b, "components_at_0.9") == 32 and value(a, "effective_rank") > value(b, "effective_rank")


def test_defect_dose_orders_distinctness(ctx: Context) -> None:
    for seed in range(5):
        scores = []
        for dose in (0.0, 0.1, 0.2, 0.4):
            w = dictionary(64, D, seed)
            n = round(dose * 64)
            w[64 - n :] = w[:n]
            scores.append(value(run(DistinctFeatures(tokens=900), tied_sae(w), ctx), "distinct_at_0.9"))
        assert scores == sorted(scores, reverse=True) and scores[0] == 64 and scores[1] == 58


def test_a_dictionary_against_itself_and_against_another(ctx: Context) -> None:
    a, b = Canonical(tied_sae(dictionary(64, D, 1))), Canonical(tied_sae(dictionary(64, D, 2)))
    same = DistinctFeatures(tokens=900).run(a, replace(ctx, against=("a", a)))
    other = DistinctFeatures(tokens=900).run(a, replace(ctx, against=("b", b)))
    assert value(same, "unique_below_relative") == 0 < value(other, "unique_below_relative") <= 1
    assert other.details["unique_against"]["sha256"] == b.sha256


def test_one_row_is_not_applicable(ctx: Context) -> None:
    w = torch.zeros(3, D)
    w[0, 0] = 1
    assert isinstance(DistinctFeatures(tokens=900).run(Canonical(tied_sae(w)), ctx), NotApplicable)


# sparse probing


def letter_sae(ctx: Context, noise: float, seed: int = 0) -> DenseSAE:
    """One latent per letter: the direction of its mean activation, less the others', mixed with noise."""
    rows = ctx.prompts([t for c in LETTERS for t in letters(f"last_{c}").texts])
    x, some = ctx.last_kept(rows)
    last = np.array([t[-1] for c in LETTERS for t in letters(f"last_{c}").texts])
    mean = x[some].mean(0)
    w = np.stack([x[some & (last == c)].mean(0) - mean for c in LETTERS])
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    mixed = torch.from_numpy(w).float() * (1 - noise) + noise * dictionary(len(LETTERS), D, seed)
    sae = tied_sae(mixed / mixed.norm(dim=1, keepdim=True))
    bias = torch.from_numpy(mean).float()
    return DenseSAE(sae.W_enc, sae.b_enc, sae.W_dec, bias, bias, ReLU())


@pytest.mark.parametrize("protocol", ["last_token", "mean_pool"])
def test_latents_for_the_concept_probe_better_than_random_ones(ctx: Context, protocol: str) -> None:
    spelled = replace(ctx, labelled=repeated) if protocol == "mean_pool" else ctx
    good, bad = (run(probing(protocol=protocol), letter_sae(ctx, n), spelled) for n in (0.0, 1.0))
    assert value(good, "accuracy_k1") > value(bad, "accuracy_k1") + 0.05
    assert value(good, "accuracy_majority") == pytest.approx(0.5, abs=0.05)
    assert value(good, "accuracy_dense") == value(bad, "accuracy_dense") and value(good, "accuracy_neurons_k2") == value(
        bad, "accuracy_neurons_k2"
    )


def test_probing_is_perfect_where_the_concept_is_one_latent(ctx: Context) -> None:
    r = run(probing(), letter_sae(ctx, 0.0), ctx)
    assert value(r, "accuracy_k1") > 0.95 and value(r, "auc_k1") > 0.97
    assert r.metrics["accuracy_k1"].n == 3 and r.counts["sets"] == 3


def test_probing_equals_scikit_learn_on_dense_codes(ctx: Context) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from bench.kernels.folds import stratified_sample, stratified_split

    sae = letter_sae(ctx, 0.5)
    r = run(probing(sets=("36_sciq_tf",)), sae, ctx)
    full = letters("36_sciq_tf")
    order = stratified_sample(full.labels, 160, ctx.rng("sample", "36_sciq_tf"))
    texts, y = [full.texts[i] for i in order], full.labels[order].astype(np.int64)
    x, some = ctx.last_kept(ctx.prompts(texts))
    assert some.all()
    test = stratified_split(y, 0.3, ctx.rng("probe", "36_sciq_tf"))
    f = sae.encode(torch.from_numpy(x).float()).numpy().astype(np.float64)
    difference = np.abs(f[~test & (y == 1)].mean(0) - f[~test & (y == 0)].mean(0))
    for k in (1, 2, 5):
        best = np.argsort(-difference)[:k]
        scaler = StandardScaler().fit(f[~test][:, best])
        reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(scaler.transform(f[~test][:, best]), y[~test])
        assert value(r, f"accuracy_k{k}") == pytest.approx(reference.score(scaler.transform(f[test][:, best]), y[test]))


def test_small_sets_are_counted_not_dropped_silently(ctx: Context) -> None:
    few = replace(ctx, labelled=lambda n: (lambda s: Labelled(s.info, s.texts[:20], s.labels[:20], s.counts))(letters(n)))
    assert isinstance(probing().run(Canonical(identity_sae()), few), NotApplicable)
    mixed = replace(ctx, labelled=lambda n: letters(n) if n != "36_sciq_tf" else few.labelled(n))
    r = run(probing(), identity_sae(), mixed)
    assert r.counts["sets"] == 2 and r.counts["sets_too_small"] == 1


def golden_sae(ctx: Context) -> DenseSAE:
    rows = torch.cat([dictionary(40, D, 7), letter_sae(ctx, 0.3, 8).W_dec]) * torch.linspace(0.5, 2, 48)[:, None]
    mean = torch.from_numpy(ctx.text(900).kept.mean(0)).float()
    return DenseSAE(rows.T.contiguous(), torch.full((48,), -0.01), rows, mean, mean, ReLU())


def test_planned_work_matches_what_is_read(ctx: Context, tmp_path: Path) -> None:
    fresh = replace(ctx, store=Store(tmp_path))
    task = Reconstruction(tokens=900)
    before, cached = next(iter(task.work(fresh).read.values()))
    assert cached == 0 and task.work(fresh).tail == 4 * before
    run(task, identity_sae(), fresh)
    assert next(iter(task.work(fresh).read.values())) == (before, before) and task.work(fresh).tail == before
