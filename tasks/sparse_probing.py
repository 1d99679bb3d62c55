"""Can a concept be read from a few latents? Logistic probes on the k latents that separate the classes best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import scipy.sparse as sp

from bench import probed
from bench.context import Context, last_ordinary
from bench.data import labelled
from bench.data.labelled import Labelled
from bench.data.text import Rows
from bench.errors import UsageError
from bench.kernels.folds import stratified_sample, stratified_split
from bench.kernels.probes import nested_logistic, scores, standardised
from bench.kernels.rankings import ranked, width
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import array_sha256
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
    """Test accuracy, F1 and AUC of L2 logistic probes on the k latents that separate the classes best.

    Beside it the same on k neurons of the raw activation, a probe on the whole activation, and the majority
    class. Features are standardised on the training rows. The unit is the source family: classes and sets from
    one source are averaged first.
    Source: Gurnee et al. 2023 (arXiv 2305.01610); sets and `last_token` from sae-probes (Kantamneni et al. 2025);
    `mean_pool` as in SAEBench (2025). Changes: 1: first version.

    Args:
        sets: Names of binary sets (`data list`), or `("all",)`.
        rows: Most rows taken from a set.
        ks: Numbers of latents.
        ranking: How latents (and neurons) are ranked on the training rows: `difference` of class means (default),
            `f_statistic`, `mutual_information`, `l1` weight, or `adaptive` thresholding.
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
    ranking: Literal["difference", "f_statistic", "mutual_information", "l1", "adaptive"] = "difference"
    protocol: Literal["last_token", "mean_pool"] = "last_token"
    context: int = 128
    c: float = 1.0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or self.rows < 1 or self.context < 2 or self.c <= 0 or not self.sets:
            raise UsageError(
                "sparse_probing needs sets, ks ≥ 1, rows ≥ 1, context ≥ 2 and c > 0", "see python -m bench tasks show sparse_probing"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The sets, with `all` spelled out."""
        return tuple(labelled.catalogue()) if self.sets == ("all",) else self.sets

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"sets": ctx.sets_identity("labelled", self.names), "text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        rows = self._prompts(ctx)[1]
        return probed.work(ctx, rows, last_ordinary(rows)[0] if self.protocol == "last_token" else None)

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        if min(self.ks) > min(sae.d_sae, sae.d_in):
            return NotApplicable(f"fewer than {min(self.ks)} latents or neurons")
        samples, rows, place = self._prompts(ctx)
        x, some = ctx.last_kept(rows) if self.protocol == "last_token" else ctx.pooled(rows)
        codes = self._codes(sae, ctx, rows, x)
        table: dict[str, list[object]] = {c: [] for c in ("set", "family", "features", "k", "n_train", "n_test", *_SCORES)}
        counts = dict.fromkeys(("sets", "sets_too_small", "rows", "rows_without_token"), 0) | {"texts_run_once": len(place)}
        for sample in samples.values():
            at = np.array([place[t] for t in sample.texts])
            counts["rows_without_token"] += int((~some[at]).sum())
            at, y = at[some[at]], sample.labels[some[at]].astype(np.int64)
            test = (
                stratified_split(y, _TEST_SHARE, ctx.rng("probe", sample.info.name)) if len(np.unique(y)) == 2 else np.zeros(len(y), bool)
            )
            if min(np.bincount(y[test], minlength=2).min(), np.bincount(y[~test], minlength=2).min()) < _FEWEST:
                counts["sets_too_small"] += 1
                continue
            counts["sets"] += 1
            counts["rows"] += len(y)
            for features, k, margin in self._margins(codes.take(at).matrix, x[at].astype(np.float64), y, test, ctx):
                _append(table, sample.info, y, test, features, k, margin)
        if not counts["sets"]:
            return NotApplicable("no set has enough rows on both sides of its split")
        return Result(f"accuracy_k{min(self.ks)}", _metrics(table, ctx), table, counts, probed.few_families(table["family"]))

    def _prompts(self, ctx: Context) -> tuple[dict[str, Labelled], Rows, dict[str, int]]:
        """Sampled sets, the texts among them without repeats as token rows, and the row of each text."""
        samples = {n: _sample(ctx.labelled(n), self.rows, ctx) for n in self.names}
        return samples, *probed.distinct(ctx, (s.texts for s in samples.values()), self.context)

    def _codes(self, sae: Canonical, ctx: Context, rows: Rows, x: np.ndarray) -> Codes:
        if self.protocol == "last_token":
            return ctx.codes(sae, x, {"last_kept": rows.sha256, "cut": ctx.norm_cut})
        return ctx.pooled_codes(sae, rows)

    def _margins(
        self, f: sp.csr_matrix, x: np.ndarray, y: np.ndarray, test: np.ndarray, ctx: Context
    ) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield (features, k, decision values on the test rows); what does not depend on the SAE is kept in the store."""
        ks, found = self._sparse(f, y, test)
        yield from (("latents", k, margin) for k, margin in zip(ks, found, strict=True))
        ks = tuple(k for k in self.ks if k <= x.shape[1])
        parts = {"x": array_sha256(x, y, test), "ks": ks, "c": self.c, "ranking": self.ranking, "rule": 1}

        def lines() -> dict[str, np.ndarray]:
            neurons = self._sparse(sp.csr_matrix(x), y, test)[1]
            return {"neurons": neurons, "dense": dense_margin(x[~test], y[~test], x[test], self.c)}

        kept = ctx.store.get("probes", parts, lines)
        yield from (("neurons", k, margin) for k, margin in zip(ks, np.asarray(kept["neurons"]), strict=True))
        yield "dense", x.shape[1], np.asarray(kept["dense"])
        yield "majority", 0, np.full(int(test.sum()), 1.0 if y[~test].mean() > 0.5 else -1.0)

    def _sparse(self, f: sp.csr_matrix, y: np.ndarray, test: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        """Numbers of columns k, and decision values [k, n_test] of probes on the k best columns."""
        ks = tuple(k for k in self.ks if k <= width(f))
        best = ranked(self.ranking, f[~test], y[~test] == 1, max(ks))
        chosen = f[:, best].toarray().astype(np.float64)
        train, held = standardised(chosen[~test], chosen[test])
        w, b = nested_logistic(train, y[~test], ks, self.c)
        return ks, w @ held.T + b[:, None]


def dense_margin(train: np.ndarray, y: np.ndarray, test: np.ndarray, c: float) -> np.ndarray:
    """Decision values on test rows of an L2 logistic probe on whole, standardised activations."""
    from sklearn.linear_model import LogisticRegression

    a, b = standardised(train, test)
    return LogisticRegression(C=c, max_iter=1000).fit(a, y).decision_function(b)


def _sample(full: Labelled, most: int, ctx: Context) -> Labelled:
    at = stratified_sample(full.labels, most, ctx.rng("sample", full.info.name))
    return Labelled(full.info, [full.texts[i] for i in at], full.labels[at], full.counts)


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
            suffix = {"latents": f"_k{size}", "neurons": f"_neurons_k{size}"}.get(features, f"_{features}")
            out[score + suffix] = probed.over_families(values[at], family[at], ctx.rng("interval", score, features, size), "higher")
    return out
