"""Can a concept be read from a few latents? Logistic probes on the k latents that separate the classes best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from bench.context import Context, last_ordinary
from bench.data import labelled
from bench.data.labelled import Labelled
from bench.data.text import Rows
from bench.errors import UsageError
from bench.kernels.folds import stratified_sample, stratified_split
from bench.kernels.probes import nested_logistic, rank_by_difference, scores, standardised
from bench.kernels.statistics import mean_interval
from bench.lm.harvest import Harvest, keep_mask
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.types import Metric, NotApplicable, Result, Work

DEFAULT_SETS = (
    "105_click_bait",
    "106_hate_hate",
    "113_movie_sent",
    "114_nyc_borough_Manhattan",
    "126_art_type_book",
    "139_news_class_Politics",
    "149_twt_emotion_happiness",
    "155_athlete_sport_basketball",
    "161_agnews_0",
    "21_headline_istrump",
    "36_sciq_tf",
    "5_hist_fig_ismale",
    "61_wikidata_occupation_isactor",
    "87_glue_cola",
    "95_toxic_is",
    "96_spam_is",
)
_FEWEST = 10  # rows per class and side below which a set is left out
_TEST_SHARE = 0.3
_SCORES = ("accuracy", "f1", "auc")


@dataclass(frozen=True)
class SparseProbing:
    """Test accuracy, F1 and AUC of L2 logistic probes on the k latents with the largest class-mean difference.

    Beside it the same on k neurons of the raw activation, a probe on the whole activation, and the majority
    class. Features are standardised on the training rows. The unit is the source family: classes and sets from
    one source are averaged first.
    Source: Gurnee et al. 2023 (arXiv 2305.01610); sets and `last_token` from sae-probes (Kantamneni et al. 2025);
    `mean_pool` as in SAEBench (2025). Changes: 1: first version.

    Args:
        sets: Names of binary sets (`data list`), or `("all",)`.
        rows: Most rows taken from a set.
        ks: Numbers of latents.
        protocol: `last_token` reads each prompt's last token that counts; `mean_pool` averages codes over them.
        context: Prompts are cut to their last tokens, this many.
        c: Inverse strength of the L2 penalty.
    """

    name: ClassVar[str] = "sparse_probing"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("gurnee2023", "kantamneni2025", "karvonen2025saebench")
    caveats: ClassVar[tuple[str, ...]] = (
        "untrained dictionaries probe well at larger k: read it beside the random control and the neurons line",
        "many small sets are more reliable than few large ones; smoke uses too few to rank methods",
    )
    headline: ClassVar[tuple[str, ...]] = (
        "accuracy_k1",
        "accuracy_k5",
        "auc_k5",
        "accuracy_neurons_k1",
        "accuracy_neurons_k5",
        "accuracy_dense",
        "accuracy_majority",
    )
    sets: tuple[str, ...] = DEFAULT_SETS
    rows: int = 600
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    protocol: Literal["last_token", "mean_pool"] = "last_token"
    context: int = 128
    c: float = 1.0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or self.rows < 1 or self.context < 2:
            raise UsageError("sparse_probing needs ks ≥ 1, rows ≥ 1 and context ≥ 2", "see python -m bench tasks show sparse_probing")
        if self.protocol == "mean_pool" and self.sets == ("all",):
            raise UsageError("mean_pool reads every token of every prompt: not for all sets at once", "name the sets")

    @property
    def names(self) -> tuple[str, ...]:
        """The sets, with `all` spelled out."""
        return tuple(labelled.catalogue()) if self.sets == ("all",) else self.sets

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"sets": labelled.identity(self.names), "text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        rows = self._prompts(ctx)[2]
        picked = last_ordinary(rows)[0] if self.protocol == "last_token" else None
        cached = Harvest(ctx.lm, ctx.hook, ctx.store).cached(rows, picked)
        return Work({f"prompts {rows.sha256}": (len(rows.ids), round(cached * len(rows.ids)))})

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        if min(self.ks) > min(sae.d_sae, sae.d_in):
            return NotApplicable(f"fewer than {min(self.ks)} latents or neurons")
        samples, texts, rows = self._prompts(ctx)
        x, some = ctx.last_kept(rows) if self.protocol == "last_token" else _pooled_activations(ctx, rows)
        codes = self._codes(sae, ctx, rows, x)
        place = {t: i for i, t in enumerate(texts)}
        table: dict[str, list[object]] = {c: [] for c in ("set", "family", "features", "k", "n_train", "n_test", *_SCORES)}
        counts = dict.fromkeys(("sets", "sets_too_small", "rows", "rows_without_token"), 0) | {"texts_run_once": len(texts)}
        for sample in samples.values():
            at = np.array([place[t] for t in sample.texts])
            counts["rows_without_token"] += int((~some[at]).sum())
            usable = some[at]
            self._probe_set(sample, at[usable], sample.labels[usable].astype(np.int64), x, codes, ctx, table, counts)
        if not counts["sets"]:
            return NotApplicable("no set has enough rows on both sides of its split")
        return Result(f"accuracy_k{min(self.ks)}", _metrics(table, ctx), table, counts, _warnings(table))

    def _prompts(self, ctx: Context) -> tuple[dict[str, Labelled], list[str], Rows]:
        """Sampled sets, the texts among them without repeats, and those as token rows."""
        samples = {n: _sample(ctx.labelled(n), self.rows, ctx) for n in self.names}
        texts = list(dict.fromkeys(t for s in samples.values() for t in s.texts))
        return samples, texts, ctx.prompts(texts, self.context)

    def _codes(self, sae: Canonical, ctx: Context, rows: Rows, x: np.ndarray) -> Codes:
        if self.protocol == "last_token":
            return ctx.codes(sae, x, {"last_kept": rows.sha256, "cut": ctx.norm_cut})
        tokens = Harvest(ctx.lm, ctx.hook, ctx.store).tokens(rows)
        keep = keep_mask(rows, tokens, ctx.norm_cut)
        codes = ctx.codes(sae, tokens[keep], {"rows": rows.sha256, "cut": ctx.norm_cut})
        return codes.pooled(np.repeat(np.arange(len(rows.lengths)), rows.lengths)[keep], len(rows.lengths))

    def _probe_set(
        self,
        sample: Labelled,
        at: np.ndarray,
        y: np.ndarray,
        x: np.ndarray,
        codes: Codes,
        ctx: Context,
        table: dict[str, list[object]],
        counts: dict[str, int],
    ) -> None:
        """All probes of one set, appended to the table; a set with too few rows is counted and left out."""
        test = stratified_split(y, _TEST_SHARE, ctx.rng("probe", sample.info.name)) if len(np.unique(y)) == 2 else np.zeros(len(y), bool)
        if min(np.bincount(y[test], minlength=2).min(), np.bincount(y[~test], minlength=2).min()) < _FEWEST:
            counts["sets_too_small"] += 1
            return
        counts["sets"] += 1
        counts["rows"] += len(y)
        own, dense = codes.take(at), x[at].astype(np.float64)
        latents = rank_by_difference(own.take(~test).group_means(y[~test], 2))
        neurons = rank_by_difference(np.stack([dense[~test & (y == c)].mean(0) for c in (0, 1)]))
        add = partial(_append, table, sample.info, y, test)
        for features, f in (("latents", own.columns(latents[: max(self.ks)])), ("neurons", dense[:, neurons[: max(self.ks)]])):
            ks = tuple(k for k in self.ks if k <= f.shape[1])
            train, held = standardised(f[~test].astype(np.float64), f[test].astype(np.float64))
            w, b = nested_logistic(train, y[~test], ks, self.c)
            for i, k in enumerate(ks):
                add(features, k, held @ w[i] + b[i])
        add("dense", dense.shape[1], dense_margin(dense[~test], y[~test], dense[test], self.c))
        add("majority", 0, np.full(int(test.sum()), 1.0 if y[~test].mean() > 0.5 else -1.0))


def dense_margin(train: np.ndarray, y: np.ndarray, test: np.ndarray, c: float) -> np.ndarray:
    """Decision values on test rows of an L2 logistic probe on whole, standardised activations."""
    from sklearn.linear_model import LogisticRegression

    a, b = standardised(train, test)
    return LogisticRegression(C=c, max_iter=1000).fit(a, y).decision_function(b)


def _sample(full: Labelled, most: int, ctx: Context) -> Labelled:
    at = stratified_sample(full.labels, most, ctx.rng("sample", full.info.name))
    return Labelled(full.info, [full.texts[i] for i in at], full.labels[at], full.counts)


def _pooled_activations(ctx: Context, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean activation of each row's kept tokens, and whether it has any."""
    tokens = Harvest(ctx.lm, ctx.hook, ctx.store).tokens(rows)
    keep = keep_mask(rows, tokens, ctx.norm_cut)
    row = np.repeat(np.arange(len(rows.lengths)), rows.lengths)[keep]
    sums = np.zeros((len(rows.lengths), tokens.shape[1]))
    np.add.at(sums, row, tokens[keep])
    size = np.bincount(row, minlength=len(sums))
    return (sums / np.maximum(size, 1)[:, None]).astype(np.float32), size > 0


def _append(
    table: dict[str, list[object]], info: labelled.SetInfo, y: np.ndarray, test: np.ndarray, features: str, k: int, margin: np.ndarray
) -> None:
    row = {"set": info.name, "family": info.family, "features": features, "k": k, "n_train": int((~test).sum()), "n_test": int(test.sum())}
    for name, value in {**row, **scores(y[test], margin)}.items():
        table[name].append(value)


def _metrics(table: Mapping[str, list[object]], ctx: Context) -> dict[str, Metric]:
    """Mean over families of each score, for every kind of features and k."""
    kind, k, family = np.array(table["features"]), np.array(table["k"]), np.array(table["family"])
    out: dict[str, Metric] = {}
    for score in _SCORES:
        values = np.array(table[score], dtype=np.float64)
        for features, size in sorted(set(zip(kind.tolist(), k.tolist(), strict=True))):
            at = (kind == features) & (k == size)
            means = np.array([values[at & (family == f)].mean() for f in np.unique(family[at])])
            suffix = {"latents": f"_k{size}", "neurons": f"_neurons_k{size}"}.get(features, f"_{features}")
            interval = mean_interval(means, ctx.rng("interval", score, features, size), 0.0, 1.0)
            out[score + suffix] = Metric(float(means.mean()), len(means), "source family", "shared", "higher", interval)
    return out


def _warnings(table: Mapping[str, list[object]]) -> tuple[str, ...]:
    families = len(set(table["family"]))
    return (f"limited: {families} source families only; do not rank methods by this",) if families < 8 else ()
