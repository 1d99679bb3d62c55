"""Planted worlds: probabilities by hand, the hierarchy always, moments within sampling error, and the context made of one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from bench.data import attributes, labelled
from bench.errors import UsageError
from bench.lm.concepts import Hierarchy, Spelling
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import Store
from bench.types import Result
from bench.worlds.context import NoLanguageModelError, WorldContext, world_context
from bench.worlds.good import good_sae
from bench.worlds.names import WORLDS, open_world
from bench.worlds.planted import World, WorldSpec
from tasks.reconstruction import Reconstruction

TINY = open_world("world:tiny")
ALL = 5.0  # standard errors; over 64 features a miss has probability 4e-5


def draw(world: World, n: int = 30_000, seed: int = 0) -> tuple[np.ndarray, Codes]:
    return world.sample(n, np.random.default_rng(seed))


def fires(codes: Codes) -> np.ndarray:
    return codes.matrix.toarray() > 0


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> WorldContext:
    return world_context(TINY, Store(tmp_path_factory.mktemp("store")))


# what a world is


def test_probabilities_and_trees_by_hand() -> None:
    world = World(WorldSpec(4, 4, zipf=1.0, p_max=0.4, p_min=0.1))
    assert world.probabilities == pytest.approx([0.4, 0.2, 0.4 / 3, 0.1])  # 1/i, mapped from [1/4, 1] to [0.1, 0.4]
    assert world.mean_l0 == pytest.approx(0.8333333) and not len(world.edges)
    trees = World(WorldSpec(16, 4, roots=2, branching=2, depth=2))
    assert trees.parents.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, -1, -1]
    assert trees.children(1).tolist() == [4, 5] and trees.children(14).tolist() == [] and trees.concepts.tolist() == [0, 1, 2, 3, 4, 5]


@given(exclusive=st.booleans(), share=st.sampled_from([0.2, 0.6, 1.0]), p_max=st.sampled_from([0.1, 0.9]))
@settings(max_examples=20)
def test_children_never_ask_for_more_than_their_parent_has(exclusive: bool, share: float, p_max: float) -> None:
    world = World(WorldSpec(40, 8, roots=3, branching=3, depth=2, exclusive=exclusive, child_share=share, p_max=p_max))
    p = world.probabilities
    for parent in world.concepts:
        children = p[world.children(parent)]
        assert (children.sum() if exclusive else children.max()) <= share * p[parent] + 1e-12
    assert (p > 0).all()


def test_the_hierarchy_holds_on_every_token() -> None:
    for spec in (WORLDS["tiny"], replace(WORLDS["tiny"], depth=2, roots=4, rank=4, strength=0.4, seed=3)):
        world = World(spec)
        on = fires(draw(world, 5_000)[1])
        parent, child = world.edges.T
        assert on[:, child].any() and not (on[:, child] & ~on[:, parent]).any()
        for p in world.concepts:
            assert on[:, world.children(p)].sum(1).max() <= 1
    free = World(replace(WORLDS["tiny"], exclusive=False))
    both = fires(draw(free, 5_000)[1])
    assert max(both[:, free.children(p)].sum(1).max() for p in free.concepts) > 1


@pytest.mark.parametrize(
    "changes",
    [{}, {"rank": 4, "strength": 0.4}, {"exclusive": False}, {"depth": 2, "roots": 4}],
    ids=["tiny", "correlated", "not exclusive", "deep"],
)
def test_marginals_are_exact(changes: dict[str, object]) -> None:
    world, n = World(replace(WORLDS["tiny"], **changes)), 30_000
    found, p = draw(world, n)[1].firing_counts() / n, world.probabilities
    assert (np.abs(found - p) <= ALL * np.sqrt(p * (1 - p) / n)).all()


def test_correlated_features_fire_together_as_the_copula_says() -> None:
    world, n = World(WorldSpec(12, 8, p_max=0.3, p_min=0.2, rank=2, strength=0.6, seed=1)), 60_000
    factors, _, threshold = world._copula
    rho = factors.astype(np.float64) @ factors.T.astype(np.float64)
    np.fill_diagonal(rho, 0)
    on = fires(draw(world, n)[1])
    for i, j in (np.unravel_index(rho.argmax(), rho.shape), np.unravel_index(rho.argmin(), rho.shape)):
        r = rho[i, j]
        both = multivariate_normal([0, 0], [[1, r], [r, 1]]).cdf([-threshold[i], -threshold[j]])
        assert abs(r) > 0.2 and (on[:, i] & on[:, j]).mean() == pytest.approx(both, abs=ALL * np.sqrt(both / n))
    alone = World(WorldSpec(12, 8, p_max=0.3, p_min=0.2))
    on, p = fires(draw(alone, n)[1]).astype(float), alone.probabilities
    assert np.abs(on.T @ on / n - np.outer(p, p))[~np.eye(12, dtype=bool)].max() < ALL * 0.3 / np.sqrt(n)


def test_moments_and_magnitudes_are_as_stated() -> None:
    x, codes = draw(TINY, 60_000)
    error = np.sqrt(np.square(x - x.mean(0)).sum(1).mean() / len(x))
    assert np.linalg.norm(x.mean(0) - TINY.mean) < 3 * error
    assert codes.matrix.toarray().var(0) == pytest.approx(TINY.variances, rel=0.25)
    assert codes.values.min() > 0 and codes.values.mean() == pytest.approx(TINY.mean_magnitude, abs=0.005)
    folded = World(replace(WORLDS["tiny"], magnitude=0.1, magnitude_sd=0.2))
    assert draw(folded)[1].values.mean() == pytest.approx(folded.mean_magnitude, abs=0.003) and folded.mean_magnitude > 0.15


def test_activations_are_codes_times_dictionary_plus_noise_of_the_stated_size() -> None:
    for noise in (0.0, 0.5):
        world = World(replace(WORLDS["tiny"], noise=noise))
        x, codes = draw(world, 3_000)
        rest = x.astype(np.float64) - codes.matrix.toarray().astype(np.float64) @ world.dictionary.astype(np.float64)
        assert np.sqrt(np.square(rest).sum(1).mean()) == pytest.approx(noise, rel=0.03, abs=1e-5)


def test_directions_are_unit_and_spread_where_they_should_be() -> None:
    def mean_square(directions: str, n: int, d: int) -> float:
        w = World(WorldSpec(n, d, directions=directions)).dictionary.astype(np.float64)
        assert np.linalg.norm(w, axis=1) == pytest.approx(np.ones(n), abs=1e-6)
        return float((np.square(w @ w.T).sum() - n) / (n * (n - 1)))

    assert mean_square("spread", 16, 24) == pytest.approx(0, abs=1e-8)
    lowest = (96 / 24 - 1) / 95  # of any 96 unit vectors in 24 dimensions (Welch 1974)
    assert mean_square("spread", 96, 24) == pytest.approx(lowest, rel=0.01) and mean_square("random", 96, 24) > 1.2 * lowest


def test_children_of_a_circle_lie_evenly_in_one_plane() -> None:
    world = open_world("world:circles")
    points = world.dictionary[world.children(3)].astype(np.float64)
    assert np.linalg.svd(points)[1][2:] == pytest.approx(np.zeros(6), abs=1e-6)
    assert np.einsum("ij,ij->i", points, np.roll(points, 1, 0)) == pytest.approx(np.full(8, np.cos(np.pi / 4)), abs=1e-6)


def test_a_world_depends_on_its_specification_and_the_generator_alone() -> None:
    again = World(WORLDS["tiny"])
    for a, b in zip(draw(TINY, 1_500), draw(again, 1_500), strict=True):
        assert np.array_equal(a.values, b.values) if isinstance(a, Codes) else np.array_equal(a, b)
    assert not np.array_equal(draw(TINY, 100)[0], draw(TINY, 100, 1)[0])
    assert not np.allclose(TINY.dictionary, World(replace(WORLDS["tiny"], seed=1)).dictionary)
    x, codes = draw(TINY, 0)
    assert x.shape == (0, 48) and codes.n == 0 and codes.d_sae == 64


def test_the_public_size_has_the_published_density() -> None:
    world = open_world("world:public")
    assert (world.n_features, world.d, world.spec.in_trees) == (16_384, 768, 10_880)
    assert world.probabilities[0] == pytest.approx(0.4) and world.probabilities[-1] == pytest.approx(5e-4)
    assert world.probabilities.min() > 4.5e-4 and world.mean_l0 == pytest.approx(34, rel=0.02)
    codes = draw(world, 1_024)[1]
    assert codes.l0().mean() == pytest.approx(34, rel=0.1) and codes.values.dtype == np.float32


@pytest.mark.parametrize(
    "changes",
    [{"p_max": 1.0}, {"p_min": 0.0}, {"p_min": 0.3}, {"noise": -1.0}, {"roots": 40}, {"circles": 9}, {"d": 1}, {"branching": 0}],
)
def test_a_world_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(WORLDS["tiny"], **changes)


# references


def test_references_name_worlds_and_changes() -> None:
    assert TINY.spec == WORLDS["tiny"] and TINY.name == "world:tiny"
    changed = open_world("world:tiny?seed=3&noise=0.5&exclusive=false&noise=0.2")
    assert changed.spec == replace(WORLDS["tiny"], seed=3, noise=0.2, exclusive=False)
    assert changed.name == "world:tiny?exclusive=false&noise=0.2&seed=3" and open_world(changed.name) == changed
    assert open_world("world:tiny?seed=0").name == "world:tiny" and changed.spec.sha256 != TINY.spec.sha256
    assert open_world("world:tiny?directions=random").spec.directions == "random"


@pytest.mark.parametrize(
    "bad",
    ["world:huge", "tiny", "world:tiny?size=3", "world:tiny?seed", "world:tiny?seed=x", "world:tiny?directions=x", "world:tiny?p_max=2"],
)
def test_unknown_worlds_and_changes_are_refused(bad: str) -> None:
    with pytest.raises(UsageError):
        open_world(bad)


# the context


def test_text_is_rows_of_64_with_the_first_token_masked(ctx: WorldContext) -> None:
    text = ctx.text(300)
    assert text.rows.lengths.tolist() == [64, 64, 64, 64, 44] and np.flatnonzero(~text.keep).tolist() == [0, 64, 128, 192, 256]
    assert text.document.tolist() == np.repeat(np.arange(5), [63, 63, 63, 63, 43]).tolist() and ctx.norm_cut == np.inf
    more = ctx.text(500)
    assert np.array_equal(more.x[:300], text.x)  # token i is token i, however many are read
    rest = text.kept - ctx.truth(text).matrix @ TINY.dictionary
    assert np.sqrt(np.square(rest).sum(1).mean()) == pytest.approx(0.1, rel=0.1)
    json.dumps(dict(ctx.site), allow_nan=False)


def test_prompts_are_items_by_number(ctx: WorldContext) -> None:
    rows = ctx.prompts(["7", "70000", "7", str(1 << 20)])
    assert rows.ids.tolist() == [0, 7, 0, 70_000, 0, 7, 0, 1 << 20] and rows.special.tolist() == [True, False] * 4
    x, some = ctx.last_kept(rows)
    pooled, has = ctx.pooled(rows)
    assert some.all() and has.all() and np.array_equal(x[0], x[2]) and not np.allclose(x[0], x[1])
    assert np.allclose(pooled, x) and np.array_equal(x[3], ctx.text(1).x[0])
    sae = Canonical(good_sae(TINY))
    assert np.allclose(ctx.pooled_codes(sae, rows).matrix.toarray(), sae.encode_sparse(x).matrix.toarray(), atol=1e-6)
    with pytest.raises(UsageError):
        ctx.prompts(["seven"])


def test_pooling_is_the_mean_of_kept_tokens(ctx: WorldContext) -> None:
    text = ctx.text(300)
    mean, some = ctx.pooled(text.rows)
    assert some.all() and np.allclose(mean, [text.kept[text.row == i].mean(0) for i in range(5)], atol=1e-6)
    sae = Canonical(good_sae(TINY))
    codes = ctx.text_codes(sae, text).matrix.toarray()
    found = ctx.pooled_codes(sae, text.rows).matrix.toarray()
    assert np.allclose(found, [codes[text.row == i].mean(0) for i in range(5)], atol=1e-6)


def items_of(ctx: WorldContext, texts: list[str]) -> np.ndarray:
    return fires(ctx.items.read(np.array(texts, np.int64))[1])


def test_labelled_sets_ask_whether_a_feature_fires(ctx: WorldContext) -> None:
    found = ctx.labelled("feature_5")
    assert np.array_equal(items_of(ctx, found.texts)[:, 5], found.labels == 1) and found.labels.mean() == 0.5
    assert len(set(found.texts)) == len(found.texts) == 1_000
    names = list(labelled.catalogue())[:8]
    families = [ctx.labelled(n).info.family for n in names]
    assert sorted(families) == sorted(f"feature {c}" for c in TINY.concepts)  # names take the concepts in turn
    for bad in ("feature_x", "no such set", "feature_1_2", "feature_64"):
        with pytest.raises(UsageError):
            ctx.labelled(bad)


def test_two_way_and_class_sets_are_true_and_balanced(ctx: WorldContext) -> None:
    for name in ("features_0_1", next(iter(attributes.two_way_sets()))):
        pair = ctx.two_way(name)
        truth = items_of(ctx, pair.texts)
        assert np.array_equal(truth[:, 0], pair.a) and np.array_equal(truth[:, 1], pair.b)
        assert set(np.bincount(pair.cell)) == {500} and pair.levels == ("feature 0", "feature 1")
    for name in ("children_0", next(iter(attributes.class_sets()))):
        classes = ctx.classes(name)
        truth = items_of(ctx, classes.texts)
        assert (truth[np.arange(len(truth)), TINY.children(0)[classes.labels]]).all() and set(np.bincount(classes.labels)) == {500}
    with pytest.raises(UsageError):
        ctx.classes("children_63")


def test_concepts_of_absorption_are_parents(ctx: WorldContext) -> None:
    items = ctx.concepts(Spelling())
    assert items.names == tuple(f"feature {p}" for p in TINY.concepts) and items.known.all() and len(np.unique(items.group)) == len(items.x)
    assert (items.labels.sum(0) >= 300).all() and items.labels.any(1).all()
    groups = ctx.concepts(Hierarchy())
    assert len(np.unique(groups.group)) == 8 * 4  # each root alone, and each of its three children
    own = np.where(TINY.parents[groups.group] >= 0, TINY.parents[groups.group], groups.group)
    assert groups.labels[np.arange(len(own)), own].all() and not groups.known[groups.labels].all()


def test_a_world_has_no_language_model(ctx: WorldContext) -> None:
    with pytest.raises(NoLanguageModelError):
        _ = ctx.lm
    found = Reconstruction(tokens=512).run(Canonical(good_sae(TINY)), ctx)
    assert isinstance(found, Result) and found.counts["tokens_scored_for_loss"] == 0 and not any(k.startswith("ce_") for k in found.metrics)


def test_items_are_the_same_from_another_store(ctx: WorldContext, tmp_path: Path) -> None:
    fresh = world_context(TINY, Store(tmp_path), seed=5)
    assert np.array_equal(fresh.text(200).x, ctx.text(200).x) and fresh.labelled("feature_5").texts == ctx.labelled("feature_5").texts
