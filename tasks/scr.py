"""Does removing a few latents rid a probe of a spurious correlation? Spurious correlation removal (SCR)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench import probed
from bench.context import Context
from bench.data import attributes
from bench.data.attributes import TwoWay
from bench.data.text import Rows
from bench.errors import UsageError
from bench.kernels.ablation import latent_effects, logit_shifts, raw_probes, strongest
from bench.kernels.clusters import cluster_jackknife
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import Arrays
from bench.types import Better, Metric, NotApplicable, Result, Work

DEFAULT_PAIRS = tuple(n for n, said in attributes.two_way_sets().items() if "hf:" not in said)
_VALIDATION = 0.2  # of the training texts: chooses which attribute is kept
_GATE, _ERRORS, _THEIR_GATE = 0.10, 3.0, 0.001
_SHOWN = 20
_FEWEST = 5
_A, _B = np.array([False, False, True, True]), np.array([False, True, False, True])  # attributes of the four cells
_BIASED = 2  # place of the biased probe of a pair, behind the clean ones for a and b


@dataclass(frozen=True)
class Sample:
    """One pair and the rows taken from it: [4, n] for fitting, validation and test, one line per cell 2·a + b."""

    pair: TwoWay
    fit: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class SCR:
    """Share of the accuracy a spurious correlation took from a probe that ablating N latents gives back.

    A biased probe learns from texts where attributes a and b agree. To remove b, the N latents with the largest
    |(mean f on b+ − mean f on b−)·⟨w_b, W_i⟩| are set to zero, the error term kept, and the biased probe is scored on
    a: (ablated − biased) / (clean − biased), on test texts with four equal cells. The attribute kept is the one the
    biased probe reads worse on validation texts (the mean of both where equal). Probes are L2 logistic on mean
    activations; C is 0.01 because at C = 1 a probe as wide as the activations interpolates a thousand texts. A pair
    whose clean − biased is below 0.10, or not above 3 of its paired standard errors, is left out and counted. N = 20
    is the main number: room for an attribute that several latents share, yet a small part of any dictionary.
    Source: Marks et al. 2024 (arXiv 2403.19647), Karvonen et al. 2024 (arXiv 2411.18895). Probes, validation and gate
    are ours; `saebench_scr` keeps every pair, as SAEBench does, and scores 0 where clean − biased is below 0.001.
    Changes: 1: first version.

    Args:
        pairs: Names of two-attribute sets (`data list`).
        train: Most training texts per pair, of which a fifth validates.
        test: Most test texts per pair.
        fewest: Test texts per cell below which a pair is left out.
        ns: Numbers of latents.
        context: Texts are cut to their last tokens, this many.
        c: Inverse strength of the probes' penalty.
    """

    name: ClassVar[str] = "scr"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("marks2024sparse", "karvonen2024targeted", "karvonen2025saebench")
    caveats: ClassVar[tuple[str, ...]] = (
        probed.UNRELIABLE,
        probed.NULLS,
        "pairs share their levels (movie, tweet, …): the interval allows for it and is wide with few levels",
    )
    headline: ClassVar[tuple[str, ...]] = ("scr_n20", "scr_n5", "scr_n100", "saebench_scr_n20", "accuracy_biased", "accuracy_clean")
    pairs: tuple[str, ...] = DEFAULT_PAIRS
    train: int = 800
    test: int = 400
    fewest: int = 100
    ns: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    context: int = 64
    c: float = 0.01

    def __post_init__(self) -> None:
        if _SHOWN not in self.ns or min(self.ns) < 1 or list(self.ns) != sorted(set(self.ns)):
            raise UsageError(f"scr needs ascending ns ≥ 1 with {_SHOWN} among them", "see python -m bench tasks show scr")
        if (
            not self.pairs
            or min(self.train // 4, self.test // 4, self.fewest) < _FEWEST
            or self.test // 4 < self.fewest
            or self.context < 2
            or self.c <= 0
        ):
            raise UsageError(
                "scr needs pairs, train ≥ 20, fewest ≥ 5, test ≥ 4 × fewest, context ≥ 2 and c > 0", "see python -m bench tasks show scr"
            )

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"pairs": ctx.sets_identity("two_way", self.pairs), "text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        return probed.work(ctx, self._samples(ctx)[1])

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        drawn, rows, too_small = self._samples(ctx)
        if not drawn:
            return NotApplicable(f"no pair has {self.fewest} test texts in each of its four cells")
        x, some = ctx.pooled(rows)
        samples = [s for s in (_usable(s, some) for s in drawn) if s.test.shape[1] >= _FEWEST and s.validation.shape[1] >= 1]
        if not samples:
            return NotApplicable("no pair has enough texts with a token that counts")
        found = probed.probes(ctx, rows, self.c, [s.fit for s in samples], lambda: _fit(samples, x, self.c))
        codes = ctx.pooled_codes(sae, rows)
        each = zip(samples, found["w"], found["b"], strict=True)
        table = probed.table(row for s, w, b in each for row in self._pair(s, w, x @ w.T + b, codes, sae.W_dec))
        counts = {"pairs": len(samples), "pairs_too_small": len(self.pairs) - len(samples)}
        counts |= {"texts": len(rows.lengths), "texts_without_token": int((~some).sum())}
        return _result(table, counts, too_small, self.ns, probed.notes(sae, self.ns))

    def _pair(
        self, sample: Sample, w: np.ndarray, margins: np.ndarray, codes: Codes, decoder: np.ndarray
    ) -> Iterator[Mapping[str, object]]:
        """Rows of the unit table: both directions of a pair, every N.

        Args:
            sample: The pair.
            w: [3, d] its probes.
            margins: [n_rows, 3] their logits.
            codes: Pooled codes of all rows.
            decoder: [d_sae, d] decoder rows.
        """
        read = [_correct(margins[sample.validation.ravel(), _BIASED], y).mean() for y in (_A, _B)]
        test = sample.test.ravel()
        for keep, remove, labels in ((0, 1, (_A, _B)), (1, 0, (_B, _A))):
            clean, biased = (_correct(margins[test, p], labels[0]) for p in (keep, _BIASED))
            means = codes.take(sample.fit.ravel()).group_means(np.repeat(labels[1].astype(np.int64), sample.fit.shape[1]), 2)
            ranked = strongest(np.abs(latent_effects(means[1] - means[0], w[remove], decoder)), max(self.ns))
            f, onto = codes.take(test).columns(ranked), decoder[ranked] @ w[_BIASED]
            shifts = logit_shifts(f, onto[:, None], self.ns)[:, :, 0]
            difference = clean.astype(float) - biased
            facts = {
                "pair": sample.pair.name,
                "level_1": sample.pair.levels[0],
                "level_2": sample.pair.levels[1],
                "kept": (sample.pair.a_name, sample.pair.b_name)[keep],
                "removed": (sample.pair.a_name, sample.pair.b_name)[remove],
                "used": bool(read[keep] <= read[remove]),
                "accuracy_clean": float(clean.mean()),
                "accuracy_biased": float(biased.mean()),
                "error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
                "n_test": len(test),
            }
            for n, shift in zip(self.ns, shifts, strict=True):
                ablated = float(_correct(margins[test, _BIASED] + shift, labels[0]).mean())
                yield facts | {"N": n, "latents": min(n, len(ranked)), "accuracy_ablated": ablated}

    def _samples(self, ctx: Context) -> tuple[list[Sample], Rows, dict[str, str]]:
        """Pairs that are large enough, their texts as rows, and the others with the reason."""
        taken: list[tuple[TwoWay, list[list[str]], int, int]] = []
        too_small: dict[str, str] = {}
        seen: dict[tuple[str, ...], str] = {}
        for name in self.pairs:
            pair = ctx.two_way(name)
            if (twin := seen.setdefault((*pair.levels, pair.a_name, pair.b_name), name)) != name:
                too_small[name] = f"the same pair as {twin}"
                continue
            smallest = int(np.bincount(pair.cell, minlength=4).min())
            train = min(self.train // 4, int(0.8 * smallest))
            test = min(self.test // 4, smallest - train)
            if test < self.fewest:
                too_small[name] = f"smallest cell has {smallest} texts"
                continue
            cells = [probed.shuffled(ctx, [t for t, c in zip(pair.texts, pair.cell, strict=True) if c == k]) for k in range(4)]
            taken.append((pair, [c[: test + train] for c in cells], train, test))
        rows, place = probed.distinct(ctx, (c for _, cells, _, _ in taken for c in cells), self.context)
        samples = []
        for pair, cells, train, test in taken:
            at = np.array([[place[t] for t in c] for c in cells])
            split = test + round(_VALIDATION * train)
            samples.append(Sample(pair, at[:, split:], at[:, test:split], at[:, :test]))
        return samples, rows, too_small


def _usable(sample: Sample, some: np.ndarray) -> Sample:
    """The sample without rows that have no activation, cells equal again."""

    def trimmed(cells: np.ndarray) -> np.ndarray:
        kept = [c[some[c]] for c in cells]
        return np.stack([k[: min(map(len, kept))] for k in kept])

    return Sample(sample.pair, trimmed(sample.fit), trimmed(sample.validation), trimmed(sample.test))


def _fit(samples: Sequence[Sample], x: np.ndarray, c: float) -> Arrays:
    """Probes of every pair, [pairs, 3, d] and [pairs, 3]: clean for a, clean for b, and biased (a where a and b agree)."""
    w, b = [], []
    for sample in samples:
        n = sample.fit.shape[1]
        clean = raw_probes(x[sample.fit.ravel()], np.repeat(np.stack([_A, _B], axis=1), n, axis=0), c)
        agree = _A == _B
        biased = raw_probes(x[sample.fit[agree].ravel()], np.repeat(_A[agree], n)[:, None], c)
        w.append(np.concatenate([clean[0], biased[0]]))
        b.append(np.concatenate([clean[1], biased[1]]))
    return {"w": np.stack(w), "b": np.stack(b)}


def _correct(margin: np.ndarray, of_cell: np.ndarray) -> np.ndarray:
    """[n] whether logits of texts in cell order, cells equal in size, have the sign of their cell's attribute."""
    return (margin > 0) == np.repeat(of_cell, len(margin) // 4)


def _result(
    table: Mapping[str, list[object]], counts: dict[str, int], too_small: Mapping[str, str], ns: Sequence[int], notes: tuple[str, ...]
) -> Result | NotApplicable:
    """Scores of the pairs that pass the gate, and of all of them as SAEBench counts."""
    column = {k: np.array(v) for k, v in table.items()}
    room = column["accuracy_clean"] - column["accuracy_biased"]
    column["score"] = (column["accuracy_ablated"] - column["accuracy_biased"]) / np.where(room == 0, 1, room)
    passes = (room >= _GATE - 1e-9) & (room > _ERRORS * column["error"])
    names = [n for n in dict.fromkeys(table["pair"]) if passes[column["used"] & (column["pair"] == n)].all()]
    column["saebench"] = np.where(room < _THEIR_GATE, 0.0, column["score"])
    counts["pairs_below_gate"] = counts["pairs"] - len(names)
    if not names:
        return NotApplicable(f"the correlation costs no probe enough accuracy to measure what comes back ({counts['pairs']} pairs tried)")

    def metric(value: str, n: int, pairs: Sequence[object], better: Better) -> Metric:
        at = column["used"] & (column["N"] == n)
        values = np.array([column[value][at & (column["pair"] == p)].mean() for p in pairs])
        first = [int(np.flatnonzero(column["pair"] == p)[0]) for p in pairs]
        limits = (0.0, 1.0) if value.startswith("accuracy") else (-np.inf, np.inf)
        levels = [(str(table["level_1"][i]), str(table["level_2"][i])) for i in first]
        return Metric(float(values.mean()), len(values), "attribute pair", "shared", better, cluster_jackknife(values, levels, *limits))

    metrics = {f"scr_n{n}": metric("score", n, names, "higher") for n in ns}
    metrics[f"saebench_scr_n{_SHOWN}"] = metric("saebench", _SHOWN, list(dict.fromkeys(table["pair"])), "higher")
    metrics |= {k: metric(k, _SHOWN, names, "neither") for k in ("accuracy_biased", "accuracy_clean")}
    few = (f"limited: {len(names)} attribute pairs only; do not rank methods by this",) if len(names) < 6 else ()
    units = {**table, "score": column["score"].tolist(), "passes": passes.tolist()}
    return Result(f"scr_n{_SHOWN}", metrics, units, counts, (*few, *notes), {"too_small": dict(too_small)})
