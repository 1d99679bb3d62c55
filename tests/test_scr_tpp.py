"""SCR and TPP on the tiny model with planted texts: concept latents score high, random ones low, and nothing else moves them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import probed
from bench.context import Context
from bench.data import attributes
from bench.data.attributes import Classes, TwoWay
from bench.errors import UsageError
from bench.sae.activations import ReLU
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from bench.store import Store
from bench.types import NotApplicable, Result
from tasks import scr as scr_module
from tasks.scr import SCR
from tasks.tpp import TPP
from tests.worlds import dictionary, tiny_context

D = 32
DOMAINS = {"movie": "a", "news": "b", "product": "c", "tweet": "d"}
POSITIVE, NEGATIVE = "x", "y"
LETTERS = "abcdxy"
PAIRS = tuple(f"vader_{p}_{q}" for p, q in combinations(DOMAINS, 2))  # real names, so that a record's key can be made
CLASS_SETS = {"97_news_class": "abc", "27_art_type": "bcd", "agnews": "cdx", "code": "abdy"}


def planted_pair(name: str, size: int = 48, strong: int = 5, weak: int = 5) -> TwoWay:
    """Texts that mix a letter for the domain with a letter for the sentiment, after a number."""
    p, q = name.split("_")[1:3]
    texts, a, b = [], [], []
    number = np.random.default_rng(size).permutation(4 * size)  # says nothing of the cell
    for cell in range(4):
        r = np.random.default_rng([ord(DOMAINS[p]), ord(DOMAINS[q]), cell])
        letters = DOMAINS[p if cell >= 2 else q] * strong + (POSITIVE if cell % 2 else NEGATIVE) * weak
        for i in range(size):
            texts.append(f"{number[cell * size + i]:03d}" + "".join(r.permutation(list(letters))))
            a.append(cell >= 2)
            b.append(cell % 2 == 1)
    return TwoWay(name, texts, np.array(a), np.array(b), p, "positive", (p, q), name, {})


def planted_classes(name: str, size: int = 40) -> Classes:
    """Texts that repeat the letter of their class among others."""
    letters = CLASS_SETS[name]
    texts, labels = [], []
    for k, letter in enumerate(letters):
        r = np.random.default_rng([ord(letter), len(name)])
        for i in range(size):
            texts.append(f"{i:02d}" + "".join(r.permutation(list(letter * 6 + "".join(r.choice(list("mno"), 4))))))
            labels.append(k)
    family = "158_code_C" if name in ("agnews", "code") else name
    return Classes(name, texts, np.array(labels), tuple(letters), family, name, {})


def planted(ctx: Context) -> Context:
    """The context with the planted sets in place of real ones."""
    return replace(ctx, two_way=planted_pair, classes=planted_classes)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return planted(tiny_context(Store(tmp_path_factory.mktemp("store"))))


def scr(**params: object) -> SCR:
    return SCR(**{"pairs": PAIRS, "train": 128, "test": 64, "fewest": 16, **params})


def tpp(**params: object) -> TPP:
    return TPP(**{"sets": tuple(CLASS_SETS), "docs": 36, **params})


def run(task: SCR | TPP, sae: object, ctx: Context) -> Result:
    answer = task.run(Canonical(sae), ctx)
    assert isinstance(answer, Result), answer
    return answer


def value(r: Result, name: str) -> float:
    return r.metrics[name].value


def letter_sae(ctx: Context, extra: int = 0) -> DenseSAE:
    """Two latents per letter, more of it than usual and less: both rows point where texts with more of the letter lie.

    Args:
        ctx: Context of the texts.
        extra: Random latents beside them, with small codes.
    """
    texts = [t for n in PAIRS for t in planted_pair(n).texts] + [t for n in CLASS_SETS for t in planted_classes(n).texts]
    x = ctx.pooled(ctx.prompts(texts, 64))[0].astype(np.float64)
    share = np.array([[t.count(letter) / len(t) for letter in LETTERS] for t in texts])
    mean = x.mean(0)
    x, share = x - mean, share - share.mean(0)
    reads, writes = np.linalg.lstsq(x, share, rcond=1e-6)[0].T, np.linalg.lstsq(share, x, rcond=1e-6)[0]
    encoder = torch.from_numpy(np.concatenate([reads, -reads])).float()
    decoder = torch.from_numpy(np.concatenate([writes, -writes])).float()
    encoder, decoder = (torch.cat([a, s * dictionary(extra, D, 3)]) for a, s in ((encoder, 1e-3), (decoder, 1.0)))
    bias = torch.from_numpy(mean).float()
    return DenseSAE(encoder.T.contiguous(), torch.zeros(len(decoder)), decoder, bias, bias, ReLU())


def random_sae(ctx: Context, m: int = 64) -> DenseSAE:
    mean = torch.from_numpy(ctx.text(900).kept.mean(0)).float()
    rows = dictionary(m, D, 11)
    return DenseSAE(rows.T.contiguous(), torch.full((m,), -0.01), rows, mean, mean, ReLU())


class Foreign:
    """Somebody else's SAE: nothing but the protocol."""

    def __init__(self, inner: DenseSAE) -> None:
        self.inner, self.d_in, self.d_sae, self.W_dec = inner, inner.d_in, inner.d_sae, inner.W_dec

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.encode(x)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(f)


# what they are for


def test_concept_latents_give_the_accuracy_back_and_random_ones_do_not(ctx: Context) -> None:
    good, bad = run(scr(), letter_sae(ctx), ctx), run(scr(), random_sae(ctx), ctx)
    assert value(good, "accuracy_clean") > 0.95 and value(good, "accuracy_biased") < 0.65
    assert value(good, "scr_n5") > 0.85 and value(bad, "scr_n5") < 0.5
    assert value(good, "scr_n2") > value(bad, "scr_n2") + 0.2
    assert value(good, "accuracy_clean") == value(bad, "accuracy_clean") and good.counts == bad.counts  # probes are the site's


def test_concept_latents_cost_their_class_and_random_ones_do_not(ctx: Context) -> None:
    good, bad = run(tpp(), letter_sae(ctx), ctx), run(tpp(), random_sae(ctx), ctx)
    assert value(good, "accuracy") > 0.95
    assert value(good, "tpp_n2") > 0.3 and value(bad, "tpp_n2") < 0.05
    assert value(good, "own_drop_n20") > 0.4 and abs(value(good, "other_drop_n20")) < 0.1


def test_noise_in_the_dictionary_orders_both_scores(ctx: Context) -> None:
    clean = letter_sae(ctx)
    size = clean.W_dec.norm(dim=1, keepdim=True)
    found = []
    for dose in (0.0, 0.5, 1.0):
        rows = (1 - dose) * clean.W_dec + dose * size * dictionary(len(clean.W_dec), D, 5)
        sae = replace(clean, W_dec=rows)
        found.append((value(run(scr(), sae, ctx), "scr_n5"), value(run(tpp(), sae, ctx), "tpp_n5")))
    for scores in zip(*found, strict=True):
        assert scores[0] > scores[2] + 0.2 and scores[0] > scores[1] - 0.05 and scores[1] > scores[2]


# against slow references


def probe(x: np.ndarray, y: np.ndarray, c: float, balanced: bool = False) -> object:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weight = "balanced" if balanced else None
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-10, max_iter=10_000, class_weight=weight)).fit(x, y)


def in_activation_space(pipeline: object) -> np.ndarray:
    return pipeline[1].coef_[0] / pipeline[0].scale_


def per_text(ctx: Context, texts: list[str]) -> list[np.ndarray]:
    """Kept activations of each text, float64."""
    out = [np.zeros(0)] * len(texts)
    for members, tokens in ctx._shards(ctx.prompts(texts, 64)):
        for i, m in enumerate(members):
            out[m] = tokens.kept[tokens.row == i].astype(np.float64)
    return out


def encode(sae: DenseSAE, x: np.ndarray) -> np.ndarray:
    w, b, pre = (t.double().numpy() for t in (sae.W_enc, sae.b_enc, sae.b_pre))
    return np.maximum((x - pre) @ w + b, 0)


def ablated(sae: DenseSAE, x: np.ndarray, latents: list[int]) -> np.ndarray:
    """Mean over tokens of the activations after encode → zero latents → decode, plus the SAE's error."""
    f = encode(sae, x)
    w = sae.W_dec.double().numpy()
    error = x - f @ w
    f[:, latents] = 0
    return (f @ w + error).mean(0)


def test_scr_equals_a_slow_reference(ctx: Context) -> None:
    sae, name = random_sae(ctx), "vader_movie_news"
    r = run(scr(pairs=(name,)), sae, ctx)
    pair = planted_pair(name)
    labels = {t: (a, b) for t, a, b in zip(pair.texts, pair.a.tolist(), pair.b.tolist(), strict=True)}
    drawn = scr(pairs=(name,))._samples(ctx)
    assert len(drawn[1].lengths) == 4 * 48
    parts: dict[str, list[str]] = {"fit": [], "validation": [], "test": []}
    for k in range(4):  # of the 48 of a cell 16 test and 32 train, of which the first 6 validate
        cell = probed.shuffled(ctx, [t for t, c in zip(pair.texts, pair.cell, strict=True) if c == k])
        parts["test"] += cell[:16]
        parts["validation"] += cell[16:22]
        parts["fit"] += cell[22:48]
    tokens = {p: per_text(ctx, t) for p, t in parts.items()}
    x = {p: np.stack([t.mean(0) for t in v]) for p, v in tokens.items()}
    y = {p: np.array([labels[t] for t in v]) for p, v in parts.items()}
    agree = y["fit"][:, 0] == y["fit"][:, 1]
    biased = probe(x["fit"][agree], y["fit"][agree, 0], 0.01)
    reads = [biased.score(x["validation"], y["validation"][:, k]) for k in (0, 1)]
    norms = sae.W_dec.norm(dim=1).double().numpy()
    for keep, removed in ((0, 1), (1, 0)):
        clean = [probe(x["fit"], y["fit"][:, k], 0.01) for k in (0, 1)]
        codes = np.stack([encode(sae, t).mean(0) for t in tokens["fit"]]) * norms
        w = in_activation_space(clean[removed])
        b = y["fit"][:, removed]
        effect = np.abs((codes[b].mean(0) - codes[~b].mean(0)) * (sae.W_dec.double().numpy() / norms[:, None] @ w))
        order = np.argsort(-effect).tolist()
        for n in (2, 20):
            moved = np.stack([ablated(sae, t, order[:n]) for t in tokens["test"]])
            row = next(i for i, k in enumerate(r.units["kept"]) if (k == pair.a_name) == (keep == 0) and r.units["N"][i] == n)
            assert r.units["accuracy_ablated"][row] == pytest.approx(biased.score(moved, y["test"][:, keep]))
            assert r.units["accuracy_biased"][row] == pytest.approx(biased.score(x["test"], y["test"][:, keep]))
            assert r.units["accuracy_clean"][row] == pytest.approx(clean[keep].score(x["test"], y["test"][:, keep]))
            assert r.units["used"][row] == (reads[keep] <= reads[removed])


def test_tpp_equals_a_slow_reference(ctx: Context) -> None:
    sae, name = random_sae(ctx), "27_art_type"
    r = run(tpp(sets=(name,)), sae, ctx)
    found = planted_classes(name)
    fit, test, y_fit, y_test = [], [], [], []
    for k in range(3):
        texts = probed.shuffled(ctx, [t for t, c in zip(found.texts, found.labels, strict=True) if c == k])[:36]
        test, fit = test + per_text(ctx, texts[:12]), fit + per_text(ctx, texts[12:])
        y_test, y_fit = y_test + [k] * 12, y_fit + [k] * 24
    y_fit, y_test = np.array(y_fit), np.array(y_test)
    x = np.stack([t.mean(0) for t in fit])
    probes = [probe(x, y_fit == k, 0.01, balanced=True) for k in range(3)]
    codes = np.stack([encode(sae, t).mean(0) for t in fit])

    def accuracy(moved: np.ndarray, k: int) -> float:
        said = probes[k].predict(moved)
        return (said[y_test == k].mean() + (~said[y_test != k]).mean()) / 2

    whole = np.stack([t.mean(0) for t in test])
    for k in range(3):
        difference = np.maximum(codes[y_fit == k].mean(0) - codes[y_fit != k].mean(0), 0)
        effect = difference * (sae.W_dec.double().numpy() @ in_activation_space(probes[k]))
        order = [i for i in np.argsort(-effect).tolist() if effect[i] != 0]
        for n in (5, 20):
            moved = np.stack([ablated(sae, t, order[:n]) for t in test])
            drop = [accuracy(whole, c) - accuracy(moved, c) for c in range(3)]
            row = next(i for i in range(len(r.units["N"])) if r.units["class"][i] == found.class_names[k] and r.units["N"][i] == n)
            assert r.units["own_drop"][row] == pytest.approx(drop[k])
            assert r.units["other_drop"][row] == pytest.approx((sum(drop) - drop[k]) / 2)
            assert r.units["accuracy"][row] == pytest.approx(accuracy(whole, k))


def test_scores_can_be_computed_again_from_the_unit_table(ctx: Context) -> None:
    r = run(scr(), random_sae(ctx), ctx)
    u = {k: np.array(v) for k, v in r.units.items()}
    u = {k: v[u["used"] & u["passes"] & (u["N"] == 20)] for k, v in u.items()}
    score = (u["accuracy_ablated"] - u["accuracy_biased"]) / (u["accuracy_clean"] - u["accuracy_biased"])
    assert value(r, "scr_n20") == pytest.approx(np.mean([score[u["pair"] == p].mean() for p in np.unique(u["pair"])]))
    r = run(tpp(), random_sae(ctx), ctx)
    u = {k: np.array(v) for k, v in r.units.items()}
    at = u["N"] == 20
    own = {s: (u["own_drop"] - u["other_drop"])[at & (u["set"] == s)].mean() for s in CLASS_SETS}
    families = [own["97_news_class"], own["27_art_type"], (own["agnews"] + own["code"]) / 2]  # the last two are one family
    assert value(r, "tpp_n20") == pytest.approx(np.mean(families)) and r.metrics["tpp_n20"].n == 3


# gates, sizes and what is left out


def test_pairs_that_are_too_small_are_counted_with_the_reason(ctx: Context) -> None:
    mixed = replace(ctx, two_way=lambda n: planted_pair(n, size=24 if n.endswith("news") else 48))
    r = run(scr(), random_sae(ctx), mixed)
    assert (r.counts["pairs"], r.counts["pairs_too_small"]) == (5, 1)
    assert r.details["too_small"] == {"vader_movie_news": "smallest cell has 24 texts"}
    assert isinstance(scr(fewest=49, test=196).run(Canonical(random_sae(ctx)), ctx), NotApplicable)
    assert scr(fewest=49, test=196).work(ctx).read and isinstance(
        tpp(sets=("code",)).run(Canonical(random_sae(ctx)), few_classes(ctx)), NotApplicable
    )
    one = replace(ctx, classes=lambda n: planted_classes(n, size=20 if n == "code" else 40))
    r = run(tpp(), random_sae(ctx), one)
    assert (r.counts["sets"], r.counts["sets_too_small"]) == (3, 1) and "code" in r.details["too_small"]


def few_classes(ctx: Context) -> Context:
    return replace(ctx, classes=lambda n: planted_classes(n, size=20))


def test_a_correlation_that_costs_nothing_is_not_measured(ctx: Context) -> None:
    unreadable = replace(ctx, two_way=lambda n: planted_pair(n, weak=0))  # nothing tells b, so the probe for b has nothing to lose
    answer = scr().run(Canonical(random_sae(ctx)), unreadable)
    assert isinstance(answer, NotApplicable) and "6 pairs" in answer.reason
    mixed = replace(ctx, two_way=lambda n: planted_pair(n, weak=0 if n.endswith("tweet") else 5))
    r = run(scr(), random_sae(ctx), mixed)
    assert (r.counts["pairs"], r.counts["pairs_below_gate"], r.metrics["scr_n20"].n) == (6, 3, 3)
    assert any(w.startswith("limited: 3 attribute pairs") for w in r.warnings)


def result_of(rows: list[tuple[str, bool, float, float, float, float]]) -> Result | NotApplicable:
    """A result from (pair, used, clean, biased, error, ablated), at every N the same."""
    names = ("pair", "used", "accuracy_clean", "accuracy_biased", "error", "accuracy_ablated")
    table = [dict(zip(names, r, strict=True)) | {"N": n, "level_1": r[0], "level_2": r[0] + "'"} for r in rows for n in scr().ns]
    return scr_module._result(probed.table(table), {"pairs": len({r[0] for r in rows})}, {}, scr().ns, ())


_NOTHING_LOST = [("s", True, 0.5, 0.5, 0.001, 0.6)]


def test_the_gate_by_hand() -> None:
    r = result_of([("p", True, 0.9, 0.5, 0.05, 0.7), ("p", False, 0.9, 0.8, 0.01, 0.0), ("q", True, 0.6, 0.51, 0.001, 0.6), *_NOTHING_LOST])
    assert value(r, "scr_n20") == pytest.approx(0.5) and r.metrics["scr_n20"].n == 1 and r.counts["pairs_below_gate"] == 2
    assert value(r, "saebench_scr_n20") == pytest.approx((0.5 + 1 + 0) / 3)  # they keep 0.09, and score 0 where nothing was lost
    noisy = result_of([("p", True, 0.9, 0.5, 0.14, 0.7)])
    assert isinstance(noisy, NotApplicable)  # 0.4 is not more than 3 errors of 0.14
    both = result_of([("p", True, 0.9, 0.5, 0.01, 0.7), ("p", True, 0.8, 0.5, 0.01, 0.8)])
    assert value(both, "scr_n20") == pytest.approx(0.75)  # equal on validation: the mean of both directions


def test_a_silent_dictionary_changes_nothing(ctx: Context) -> None:
    silent = replace(random_sae(ctx), b_enc=torch.full((64,), -1e6))
    assert value(run(scr(), silent, ctx), "scr_n500") == 0 == value(run(tpp(), silent, ctx), "tpp_n500")


def test_texts_without_a_token_that_counts_are_counted_and_cells_stay_equal(ctx: Context) -> None:
    def short(name: str) -> TwoWay:
        full = planted_pair(name)
        cut = {7: "J", 55: "K", 56: "L"}  # one character is one token, and a row's first token never counts
        return replace(full, texts=[cut.get(i, t) for i, t in enumerate(full.texts)])

    wide = scr(pairs=("vader_movie_news",))
    r = run(wide, random_sae(ctx), replace(ctx, two_way=short))
    assert r.counts["texts_without_token"] == 3 and set(r.units["n_test"]) <= {64, 60, 56} and r.counts["pairs"] == 1


def test_texts_of_one_token_are_not_applicable(ctx: Context) -> None:
    single = [chr(32 + i) for i in range(96)]
    bare = replace(
        ctx,
        two_way=lambda n: replace(planted_pair(n, size=24), texts=single),
        classes=lambda n: replace(
            planted_classes("code", size=32), texts=single[:96], labels=np.arange(96) % 3, class_names=("a", "b", "c")
        ),
    )
    for task in (scr(pairs=("vader_movie_news",), train=20, test=20, fewest=5), tpp(sets=("code",), docs=30)):
        answer = task.run(Canonical(random_sae(ctx)), bare)
        assert isinstance(answer, NotApplicable) and "token" in answer.reason


def test_a_foreign_sae_is_told_that_its_selection_is_frozen(ctx: Context) -> None:
    sae = random_sae(ctx)
    for task in (scr(), tpp()):
        ours, theirs = run(task, sae, ctx), run(task, Foreign(sae), ctx)
        assert not any("frozen" in w for w in ours.warnings) and any("frozen" in w for w in theirs.warnings)
        for name, m in ours.metrics.items():
            assert m.value == pytest.approx(value(theirs, name), abs=1e-6)


def test_bad_parameters_are_refused() -> None:
    for bad in ({"ns": (2, 5)}, {"ns": (20, 5)}, {"ns": (0, 20)}, {"pairs": ()}, {"train": 16}, {"fewest": 4}, {"context": 1}, {"c": 0.0}):
        with pytest.raises(UsageError):
            scr(**bad)
    for bad in ({"ns": (2,)}, {"ns": (20, 20)}, {"sets": ()}, {"classes": 1}, {"docs": 29}, {"context": 1}, {"c": -1.0}):
        with pytest.raises(UsageError):
            tpp(**bad)


# what must not matter


@pytest.mark.parametrize("task", [scr(), tpp()], ids=lambda t: t.name)
def test_a_second_sae_costs_its_codes_only(task: SCR | TPP, tmp_path: Path) -> None:
    fresh = planted(tiny_context(Store(tmp_path)))
    before = next(iter(task.work(fresh).read.values()))
    first = run(task, random_sae(fresh), fresh)
    tokens = next(iter(task.work(fresh).read.values()))
    assert before == (tokens[0], 0) and tokens[0] == tokens[1]
    kinds = [e.kind for e in fresh.store.entries()]
    assert kinds.count("probes") == kinds.count("pooled") == 1
    run(task, random_sae(fresh, 40), fresh)
    assert sorted([*kinds, "codes"]) == sorted(e.kind for e in fresh.store.entries())
    again = run(task, random_sae(fresh), fresh)
    assert again.metrics == first.metrics and again.units == first.units and again.counts == first.counts


def test_data_identities_name_the_sets() -> None:
    assert attributes.identity(PAIRS) != attributes.identity(PAIRS[:3])
    assert attributes.identity(("97_news_class",)) != attributes.identity(("27_art_type",))
