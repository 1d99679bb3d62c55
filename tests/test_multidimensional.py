"""The task on planted circles: found on top among ordinary features, and nothing in their place without them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bench.context import Context, Tokens
from bench.errors import UsageError
from bench.registry import build
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import Store
from bench.types import NotApplicable, Result
from tasks.multidimensional import Multidimensional
from tests.worlds import tied_sae, tiny_context

D, ORDINARY, N = 64, 400, 5_000
PLANTED = (7, 12)


@dataclass(frozen=True)
class PlantedContext(Context):
    """A context whose evaluation tokens have known codes."""

    given: Codes | None = None

    def text(self, tokens: int) -> Tokens:
        return None  # type: ignore[return-value]

    def text_codes(self, sae: Canonical, text: Tokens) -> Codes:
        return self.given.scaled(sae.norms)


@dataclass(frozen=True)
class World:
    """Decoder rows [m, D], codes [n, m], and which rows lie on each circle."""

    rows: np.ndarray
    codes: np.ndarray
    circles: tuple[frozenset[int], ...]


def world(seed: int, circles: tuple[int, ...] = PLANTED) -> World:
    """Ordinary features with Zipf frequencies, and circles with one row per point, of which one fires at a time."""
    r = np.random.default_rng(seed)
    rows, sets, at = [r.standard_normal((ORDINARY, D))], [], ORDINARY
    frequency = r.permutation(np.arange(1, ORDINARY + 1) ** -0.5)
    fires = r.random((N, ORDINARY)) < 12 * frequency / frequency.sum()
    codes = [fires * r.uniform(0.5, 1.5, fires.shape)]
    for k in circles:
        plane = np.linalg.qr(r.standard_normal((D, 2)))[0].T
        angle = 2 * np.pi * (np.arange(k) + 0.05 * r.uniform(-1, 1, k)) / k
        rows.append(np.stack([np.cos(angle), np.sin(angle)], 1) @ plane + 0.05 * r.standard_normal((k, D)) / np.sqrt(D))
        codes.append(one_of(k, r))
        sets.append(frozenset(range(at, at + k)))
        at += k
    return World(np.concatenate(rows), np.concatenate(codes, 1), tuple(sets))


def one_of(k: int, r: np.random.Generator) -> np.ndarray:
    """[N, k] codes of features that fire one at a time, on 15 % of the tokens."""
    fired = (r.random(N) < 0.15)[:, None] & (r.integers(0, k, N)[:, None] == np.arange(k))
    return fired * r.uniform(0.8, 1.2, (N, 1))


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(Store(tmp_path_factory.mktemp("store")))


def run(w: World, ctx: Context, **params: object) -> Result | NotApplicable:
    """The task on unit-norm latents with the world's codes."""
    rows = w.rows / np.linalg.norm(w.rows, axis=1, keepdims=True)
    return on(tied_sae(torch.from_numpy(rows).float()), w.codes, ctx, **params)


def on(sae: object, codes: np.ndarray, ctx: Context, **params: object) -> Result | NotApplicable:
    planted = PlantedContext(ctx.opener, ctx.site, ctx.corpus, ctx.store, ctx.seed, given=Codes.from_dense(codes.astype(np.float32)))
    return Multidimensional(**{"fewest_active": 300, **params}).run(Canonical(sae), planted)


def latents(r: Result, i: int) -> frozenset[int]:
    return frozenset(map(int, r.units["latents"][i].split()))


def test_planted_circles_come_out_on_top_and_nothing_scores_so_high_without_them(ctx: Context) -> None:
    found, above = 0, 0
    for seed in range(20):
        w = world(seed)
        r, without = run(w, ctx), run(World(w.rows[:ORDINARY], w.codes[:, :ORDINARY], ()), ctx)
        found += {latents(r, 0), latents(r, 1)} == set(w.circles)
        above += without.metrics["score_top"].value < r.units["score"][1]
    assert found >= 19 and above >= 19


def test_first_plane_tells_a_circle_from_unrelated_latents_that_fire_one_at_a_time(ctx: Context) -> None:
    w, r = world(0), np.random.default_rng(0)
    rows, codes, stars, at = [w.rows[ORDINARY:]], [w.codes[:, ORDINARY:]], [], sum(PLANTED)
    for k in (6, 7, 8):
        rows.append(r.standard_normal((k, D)) + 2 * r.standard_normal(D))  # similar rows, in no plane
        codes.append(one_of(k, r))
        stars.append(frozenset(range(at, at + k)))
        at += k
    both = World(np.concatenate(rows), np.concatenate(codes, 1), ())
    result = run(both, ctx, clustering="threshold", threshold=0.54, neighbours=5)
    found = {latents(result, i): i for i in range(len(result.units["score"]))}
    of = lambda column, sets: [result.units[column][found[s]] for s in sets]  # noqa: E731
    circles = [frozenset(i - ORDINARY for i in c) for c in w.circles]
    assert set(found) == {*stars, *circles}
    assert max(of("score", stars)) > 0.6 * min(of("score", circles))  # the score alone hardly tells them apart
    assert max(of("first_plane", stars)) < 0.7 and min(of("first_plane", circles)) > 0.95


def test_metrics_counts_and_table_agree(ctx: Context) -> None:
    r = run(world(1), ctx)
    scores, c = np.array(r.units["score"]), r.counts
    assert list(scores) == sorted(scores, reverse=True) and r.metrics["score_top"].value == scores[0]
    mean = r.metrics["score_mean"]
    assert mean.value == pytest.approx(scores.mean()) and mean.n == len(scores) and mean.interval[0] < mean.value < mean.interval[1]
    assert c["clusters"] == len(scores) + c["clusters_with_few_tokens"] + c["clusters_too_large"]
    assert r.metrics["dropped_share"].value == pytest.approx(1 - len(scores) / c["clusters"])
    assert r.units["size"] == [len(latents(r, i)) for i in range(len(scores))] and min(r.units["active"]) >= 300
    assert [b["latents"] for b in r.details["best"]] == r.units["latents"][:5]
    pairs = [i for i, size in enumerate(r.units["size"]) if size == 2]
    assert pairs and all(r.units["planes"][i] == 1 and r.units["first_plane"][i] == pytest.approx(1) for i in pairs)


def test_size_cap_and_token_floor_are_counted(ctx: Context) -> None:
    w = world(2)
    every, capped, few = run(w, ctx, fewest_active=20), run(w, ctx, fewest_active=20, largest=6), run(w, ctx)
    large = sum(size > 6 for size in every.units["size"])
    assert every.counts["clusters_with_few_tokens"] == 0 and large >= 2
    assert capped.counts["clusters_too_large"] == large and max(capped.units["size"]) <= 6
    assert few.counts["clusters_with_few_tokens"] == sum(active < 300 for active in every.units["active"]) > 0
    assert few.counts["latents_in_no_cluster"] == ORDINARY + sum(PLANTED) - sum(every.units["size"])


def test_points_on_a_line_have_no_plane(ctx: Context) -> None:
    w = world(3)
    ring = sorted(w.circles[0])
    codes = w.codes.copy()
    codes[:, ring[1:]] = 0
    codes[:, ring[0]] = np.random.default_rng(0).uniform(0.5, 1.5, N)
    r = run(World(w.rows, codes, w.circles), ctx)
    i = r.units["latents"].index(" ".join(map(str, ring)))
    assert r.counts["clusters_on_a_line"] == 1
    assert (r.units["planes"][i], r.units["score"][i], r.units["separability"][i], r.units["mixture"][i]) == (0, 0.0, 0.0, 1.0)


def test_cutoffs_differ_as_they_say(ctx: Context) -> None:
    w = world(4)
    mutual, either = run(w, ctx, fewest_active=100), run(w, ctx, clustering="nearest", fewest_active=100)
    fixed, same = (run(w, ctx, clustering="threshold", threshold=t, fewest_active=100) for t in (0.45, mutual.details["cutoff"]))
    assert either.details["cutoff"] == mutual.details["cutoff"] < 0.45 == fixed.details["cutoff"]
    assert same.units["latents"] == either.units["latents"]
    assert either.counts["latents_in_no_cluster"] <= mutual.counts["latents_in_no_cluster"]  # every mutual edge is there too
    assert fixed.counts["latents_in_no_cluster"] > either.counts["latents_in_no_cluster"]


def test_no_answer_says_what_was_found(ctx: Context) -> None:
    rare = run(world(0), ctx, fewest_active=5_000)
    assert isinstance(rare, NotApplicable) and "clusters_with_few_tokens" in rare.reason and "5000 tokens" in rare.reason
    apart = on(tied_sae(torch.eye(D)), np.ones((400, D)), ctx, clustering="threshold")
    assert isinstance(apart, NotApplicable) and "clusters 0" in apart.reason
    two = torch.zeros(5, D)
    two[0, 0] = two[1, 1] = 1
    assert "only 2 decoder rows" in on(tied_sae(two), np.ones((400, 5)), ctx).reason


def test_rescaling_and_permuting_latents_changes_nothing(ctx: Context) -> None:
    w, r = world(5), np.random.default_rng(0)
    order, a = r.permutation(len(w.rows)), r.uniform(0.2, 3, len(w.rows))
    unit = w.rows / np.linalg.norm(w.rows, axis=1, keepdims=True)
    one = run(w, ctx)
    two = on(tied_sae(torch.from_numpy((unit * a[:, None])[order]).float()), (w.codes / a)[:, order], ctx)
    assert {frozenset(order[list(latents(two, i))].tolist()) for i in range(5)} == {latents(one, i) for i in range(5)}
    assert two.units["score"] == pytest.approx(one.units["score"], abs=2e-3)  # a point on the edge of a cell may change cells
    for name, m in one.metrics.items():
        assert two.metrics[name].value == pytest.approx(m.value, rel=1e-4, abs=1e-5), name


def test_the_same_run_twice_is_the_same(ctx: Context) -> None:
    assert run(world(6), ctx) == run(world(6), ctx)


def test_unusable_parameters_are_refused() -> None:
    bad = [
        ("clustering", "spectral"),
        ("quantile", 1.0),
        ("threshold", 1.0),
        ("neighbours", 0),
        ("largest", 1),
        ("fewest_active", 1),
        ("tokens", 0),
    ]
    for name, value in bad:
        with pytest.raises(UsageError, match=name):
            build(Multidimensional, {name: value})


def test_it_reads_real_text_and_codes(ctx: Context) -> None:
    """On the tiny model, through the context's own text and codes."""
    rows = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    task = Multidimensional(tokens=900, quantile=0.9, fewest_active=200)
    r = task.run(Canonical(tied_sae(rows / rows.norm(dim=1, keepdim=True))), ctx)
    assert isinstance(r, Result) and 0 <= r.metrics["score_mean"].value <= r.metrics["score_top"].value
    assert next(iter(task.work(ctx).read.values())) == (len(ctx.text(900).keep), len(ctx.text(900).keep))
