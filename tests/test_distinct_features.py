"""Distinct features on planted dictionaries: duplicates by dose, another dictionary, nulls, invariance, what is left out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import tasks.distinct_features
from bench.context import Context
from bench.errors import UsageError
from bench.sae.activations import ReLU
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from bench.store import Store
from bench.types import Result
from tasks.distinct_features import DistinctFeatures
from tests.worlds import dictionary, tied_sae, tiny_context

D, M = 32, 64
TASK = DistinctFeatures(tokens=900)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(Store(tmp_path_factory.mktemp("store")))


def run(w: torch.Tensor, ctx: Context, against: torch.Tensor | None = None, task: DistinctFeatures = TASK) -> Result:
    other = None if against is None else ("other", Canonical(tied_sae(against)))
    answer = task.run(Canonical(tied_sae(w)), replace(ctx, against=other))
    assert isinstance(answer, Result)
    return answer


def values(r: Result) -> dict[str, float]:
    return {k: m.value for k, m in r.metrics.items()}


def dosed(dose: float, seed: int) -> torch.Tensor:
    """Unit rows, a share of them copies of others at other norms."""
    w = dictionary(M, D, seed)
    n = round(dose * M)
    w[M - n :] = w[:n] * torch.linspace(0.5, 3, max(n, 1))[:n, None]
    return w


def test_every_number_follows_the_dose_of_duplicates(ctx: Context) -> None:
    for seed in range(3):
        clean = dictionary(M, D, seed + 50)
        found = [values(run(dosed(dose, seed), ctx, clean)) for dose in (0.0, 0.125, 0.25, 0.5)]
        for name in ("mean_max_cosine", "mean_max_cosine_alive", "share_above_0.7", "share_above_0.9"):
            assert [f[name] for f in found] == sorted({f[name] for f in found}), name
        for name in ("distinct_at_0.7", "distinct_at_0.9", "components_at_0.9", "effective_rank", "matched_cosine"):
            assert [f[name] for f in found] == sorted({f[name] for f in found}, reverse=True), name
        assert [f["distinct_at_0.9"] for f in found] == [64, 56, 48, 32]
        assert [f["share_above_0.9"] for f in found] == [0, 0.25, 0.5, 1]


def test_triplicates_cluster_and_pairs_do_not(ctx: Context) -> None:
    w = dictionary(63, D, 3)
    pairs, triples = w.clone(), w.clone()
    pairs[:30] = w[:15].repeat(2, 1)
    triples[:30] = w[:10].repeat(3, 1)
    task = DistinctFeatures(tokens=900, densities=(15 / 1953, 30 / 1953))
    assert values(run(triples, ctx, task=task))["clustering_at_0.015361"] == 1
    alone = run(pairs, ctx, task=task)
    assert "clustering_at_0.00768049" not in alone.metrics and any("0.00768049" in w for w in alone.warnings)


def test_clustering_equals_a_count_over_all_triples(ctx: Context) -> None:
    w = dictionary(M, D, 4) + 0.25  # rows around one direction, so that close pairs share latents
    found = run(w, ctx, task=DistinctFeatures(tokens=900, densities=(0.1, 0.01, 0.03)))
    v = w.double().numpy() / np.linalg.norm(w.double().numpy(), axis=1, keepdims=True)
    c = v @ v.T
    order = sorted(itertools.combinations(range(M), 2), key=lambda p: -c[p])
    for density in (0.01, 0.03, 0.1):
        near = np.zeros((M, M), dtype=bool)
        for i, j in order[: round(density * M * (M - 1) / 2)]:
            near[i, j] = near[j, i] = True
        closed = sum(bool(near[i, j] and near[j, k] and near[i, k]) for i, j, k in itertools.combinations(range(M), 3))
        paths = sum(int(d) * (int(d) - 1) // 2 for d in near.sum(0))
        assert found.metrics[f"clustering_at_{density}"].value == pytest.approx(3 * closed / paths)


def test_a_permuted_and_rescaled_copy_is_the_same_dictionary(ctx: Context) -> None:
    w, g = dictionary(M, D, 5), np.random.default_rng(0)
    copy = (w * torch.from_numpy(g.uniform(0.3, 3, (M, 1))).float())[g.permutation(M)]
    for other in (w, copy):
        r = run(w, ctx, other)
        v = values(r)
        assert v["matched_cosine"] == pytest.approx(1, abs=1e-5) and v["best_cosine"] == pytest.approx(1, abs=1e-5)
        assert v["unique_below_0.2"] == v["unique_below_relative"] == 0 and r.counts["unmatched"] == 0
        assert v["matched_cosine_random"] < v["best_cosine_random"] < 0.6


def test_a_random_dictionary_is_matched_like_its_random_null(ctx: Context) -> None:
    gaps: dict[str, list[float]] = {}
    for seed in range(8):
        v = values(run(dictionary(M, D, seed), ctx, dictionary(M, D, seed + 20)))
        for k in ("matched_cosine", "best_cosine", "unique_below_0.2", "unique_below_relative"):
            gaps.setdefault(k, []).append(v[k] - v[f"{k}_random"])
        assert v["best_cosine"] == pytest.approx(v["random_level"], abs=0.05)
    assert {k: abs(np.mean(g)) < 0.03 for k, g in gaps.items()} == dict.fromkeys(gaps, True)


def test_what_two_dictionaries_share_is_found_by_dose(ctx: Context) -> None:
    w, found = dictionary(M, D, 6), []
    for shared in (0, 16, 32, 48, 64):
        other = dictionary(M, D, 7)
        other[:shared] = w[:shared]
        found.append(values(run(w, ctx, other[np.random.default_rng(shared).permutation(M)])))
    for name in ("matched_cosine", "best_cosine"):
        assert [f[name] for f in found] == sorted({f[name] for f in found}), name
    assert [f["unique_below_relative"] for f in found] == sorted({f["unique_below_relative"] for f in found}, reverse=True)


def test_numbers_against_another_dictionary_equal_a_float64_reference(ctx: Context) -> None:
    from scipy.optimize import linear_sum_assignment

    a, b = dictionary(M, D, 8), dictionary(40, D, 9)
    r = run(a, ctx, b)
    c = np.array([[float(np.dot(p, q)) for q in b.double().numpy()] for p in a.double().numpy()])
    i, j = linear_sum_assignment(-np.maximum(c, 0))
    v = values(r)
    assert v["best_cosine"] == pytest.approx(c.max(1).mean(), abs=1e-6)
    assert v["matched_cosine"] == pytest.approx(np.maximum(c[i, j], 0).sum() / M, abs=1e-6)
    assert v["unique_below_0.2"] == (c.max(1) < 0.2).mean() and v["unique_below_relative"] == (c.max(1) < 2.2 * v["random_level"]).mean()
    assert r.counts["unmatched"] == M - 40 and r.counts["alive_against"] == 40
    assert r.metrics["best_cosine"].spread == pytest.approx(np.percentile(c.max(1), [5, 95]), abs=1e-6)


def gated(w: torch.Tensor, silent: slice) -> Canonical:
    """The tied SAE with some latents that never fire."""
    sae = tied_sae(w)
    bias = sae.b_enc.clone()
    bias[silent] = -1e6
    return Canonical(DenseSAE(sae.W_enc, bias, sae.W_dec, sae.b_dec, sae.b_pre, ReLU()))


def test_latents_that_do_not_fire_are_not_compared(ctx: Context) -> None:
    w = dictionary(M, D, 10)
    w[60:] = w[:4]
    whole, part = TASK.run(gated(w, slice(0, 0)), ctx), TASK.run(gated(w, slice(60, 64)), ctx)
    assert isinstance(whole, Result) and isinstance(part, Result)
    assert part.counts["alive"] == 60 and values(part)["mean_max_cosine"] == values(whole)["mean_max_cosine"]
    among = (w[:60].double() @ w[:60].double().T).fill_diagonal_(-2).max(dim=1).values
    assert values(part)["mean_max_cosine_alive"] == pytest.approx(float(among.mean()), abs=1e-6)
    other = dictionary(M, D, 11)
    other[0] = w[63]
    r = TASK.run(gated(w, slice(60, 64)), replace(ctx, against=("o", gated(other, slice(0, 1)))))
    assert isinstance(r, Result) and r.metrics["matched_cosine"].n == 60 and r.counts["alive_against"] == 63
    best = (w[:60].double() @ other[1:].double().T).max(dim=1).values
    assert r.metrics["best_cosine"].value == pytest.approx(float(best.mean()), abs=1e-6)
    mute = TASK.run(gated(w, slice(0, 64)), replace(ctx, against=("o", gated(other, slice(0, 1)))))
    assert isinstance(mute, Result) and "best_cosine" not in mute.metrics and any("no alive latents" in x for x in mute.warnings)


def test_rescaling_and_permuting_either_dictionary_changes_nothing(ctx: Context) -> None:
    a, b, g = dosed(0.2, 12), dictionary(M, D, 13), np.random.default_rng(1)
    one = values(run(a, ctx, b))
    moved = [(w * torch.from_numpy(g.uniform(0.3, 3, (M, 1))).float())[g.permutation(M)] for w in (a, b)]
    two = values(run(moved[0], ctx, moved[1]))
    assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


def test_the_curve_holds_the_metrics_and_falls_and_rises(ctx: Context) -> None:
    r = run(dosed(0.3, 14), ctx)
    curve = {p["tau"]: p for p in r.details["threshold_curve"]}
    for tau in (0.3, 0.5, 0.7, 0.9):
        assert curve[tau]["distinct"] == values(r)[f"distinct_at_{tau}"] and curve[tau]["share_above"] == values(r)[f"share_above_{tau}"]
    distinct, share = ([curve[t][k] for t in sorted(curve)] for k in ("distinct", "share_above"))
    assert distinct == sorted(distinct) and share == sorted(share, reverse=True) and len(curve) == 14


def test_too_many_pairs_are_left_out_with_a_warning(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    w = dictionary(M, D, 15) + 0.1
    whole = run(w, ctx, task=DistinctFeatures(tokens=900, densities=(0.01, 0.05, 0.2)))
    monkeypatch.setattr(tasks.distinct_features, "_MOST_PAIRS", 150)
    r = run(w, ctx, task=DistinctFeatures(tokens=900, densities=(0.01, 0.05, 0.2)))
    gone = {"distinct_at_0.3", "clustering_at_0.2"}
    assert set(values(whole)) - set(values(r)) == gone and values(r) == {k: v for k, v in values(whole).items() if k not in gone}
    assert len(r.warnings) == 2 and all("more than 150 pairs" in x for x in r.warnings)
    assert "distinct" not in r.details["threshold_curve"][0] and r.details["threshold_curve"][0]["share_above"] > 0


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"taus": (1.0,)}, {"cover_taus": (-0.1,)}, {"densities": (0.0,)}, {"densities": (1.5,)}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="distinct_features needs"):
        DistinctFeatures(**wrong)


def test_two_rows_and_no_thresholds_still_have_an_answer(ctx: Context) -> None:
    r = run(torch.eye(D)[:2], ctx, task=DistinctFeatures(tokens=900, taus=(), cover_taus=(), densities=()))
    assert values(r)["mean_max_cosine"] == 0 and not any(k.startswith(("share", "distinct", "clustering")) for k in r.metrics)
