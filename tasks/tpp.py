"""Do a few latents carry one class and no other? Targeted probe perturbation (TPP)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench import probed
from bench.context import Context
from bench.data.attributes import Classes
from bench.data.text import Rows
from bench.errors import UsageError
from bench.kernels.ablation import latent_effects, logit_shifts, raw_probes, strongest
from bench.kernels.logistic import class_weights
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import Arrays
from bench.types import Better, Metric, NotApplicable, Result, Work

DEFAULT_SETS = (
    "103_it_tick",
    "13_us_state",
    "17_world_country",
    "27_art_type",
    "46_context_type",
    "97_news_class",
    "99_sci_cat",
    "bbc_topic",
    "code",
    "vader_domain",
)
_TEST_SHARE = 1 / 3
_SHOWN = 20
_FEWEST = 10


@dataclass(frozen=True)
class Sample:
    """One set and the rows taken from it, with the class of each row."""

    source: Classes
    names: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray
    train_class: np.ndarray
    test_class: np.ndarray

    @property
    def smallest(self) -> int:
        """Texts of the smallest class in the smaller part."""
        return min(int(np.bincount(part, minlength=len(self.names)).min()) for part in (self.train_class, self.test_class))


@dataclass(frozen=True)
class TPP:
    """Drop of a class's own probe when its N latents are ablated, less the mean drop of the other classes' probes.

    One-vs-rest probes, L2 logistic with balanced classes on mean activations. The N latents of a class have the
    largest max(0, mean f on the class − mean f on the rest)·⟨w, W_i⟩ on training texts, among those that are not 0;
    they are set to zero and the error term is kept. Accuracy is the mean of the true positive and true negative
    rates on test texts, which is what a balanced draw has in expectation. Scores are averaged over classes, then over
    the sets of a source family, which is the unit. N = 20 is the main number, as in `scr`.
    Source: Karvonen et al. 2024 (arXiv 2411.18895), Karvonen et al. 2025 (SAEBench). Changes: 1: first version.

    Args:
        sets: Names of sets with several classes (`data list`).
        classes: Most classes taken from a set, in the order of their names.
        docs: Most texts per class; a third of them tests.
        ns: Numbers of latents.
        context: Texts are cut to their last tokens, this many.
        c: Inverse strength of the probes' penalty.
    """

    name: ClassVar[str] = "tpp"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("karvonen2024targeted", "karvonen2025saebench")
    caveats: ClassVar[tuple[str, ...]] = (probed.UNRELIABLE, probed.NULLS)
    headline: ClassVar[tuple[str, ...]] = ("tpp_n20", "tpp_n5", "tpp_n100", "own_drop_n20", "other_drop_n20", "accuracy")
    sets: tuple[str, ...] = DEFAULT_SETS
    classes: int = 4
    docs: int = 60
    ns: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    context: int = 64
    c: float = 0.01

    def __post_init__(self) -> None:
        if _SHOWN not in self.ns or min(self.ns) < 1 or list(self.ns) != sorted(set(self.ns)):
            raise UsageError(f"tpp needs ascending ns ≥ 1 with {_SHOWN} among them", "see python -m bench tasks show tpp")
        if not self.sets or self.classes < 2 or self.docs < 3 * _FEWEST or self.context < 2 or self.c <= 0:
            raise UsageError("tpp needs sets, classes ≥ 2, docs ≥ 30, context ≥ 2 and c > 0", "see python -m bench tasks show tpp")

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"sets": ctx.sets_identity("classes", self.sets), "text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        return probed.work(ctx, self._samples(ctx)[1])

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        drawn, rows, too_small = self._samples(ctx)
        if not drawn:
            return NotApplicable(f"no set has two classes with {3 * _FEWEST} texts")
        x, some = ctx.pooled(rows)
        samples = [s for s in (_usable(s, some) for s in drawn) if s.smallest >= _FEWEST / 2]
        if not samples:
            return NotApplicable("no set has enough texts with a token that counts")
        uses = [a for s in samples for a in (s.train, s.train_class)]
        found = probed.probes(ctx, rows, self.c, uses, lambda: _fit(samples, x, self.c))
        codes = ctx.pooled_codes(sae, rows)
        table = probed.table(
            row for i, s in enumerate(samples) for row in self._set(s, found[f"w{i}"], found[f"b{i}"], x[s.test], codes, sae.W_dec)
        )
        counts = {"sets": len(samples), "sets_too_small": len(self.sets) - len(samples), "classes": sum(len(s.names) for s in samples)}
        counts |= {"texts": len(rows.lengths), "texts_without_token": int((~some).sum())}
        metrics = _metrics(table, self.ns, ctx)
        few = probed.few_families(table["family"])
        return Result(f"tpp_n{_SHOWN}", metrics, table, counts, (*few, *probed.notes(sae, self.ns)), {"too_small": too_small})

    def _samples(self, ctx: Context) -> tuple[list[Sample], Rows, dict[str, str]]:
        """Sets that are large enough, their texts as rows, and the others with the reason."""
        taken: list[tuple[Classes, list[int], list[list[str]]]] = []
        too_small: dict[str, str] = {}
        for name in self.sets:
            found = ctx.classes(name)
            sizes = np.bincount(found.labels, minlength=len(found.class_names))
            large = np.flatnonzero(sizes >= 3 * _FEWEST)[: self.classes].tolist()
            if len(large) < 2:
                too_small[name] = f"fewer than two classes have {3 * _FEWEST} texts"
                continue
            docs = min(self.docs, int(sizes[large].min()))
            texts = [[t for t, c in zip(found.texts, found.labels, strict=True) if c == k] for k in large]
            taken.append((found, large, [probed.shuffled(ctx, t)[:docs] for t in texts]))
        rows, place = probed.distinct(ctx, (c for _, _, texts in taken for c in texts), self.context)
        samples = []
        for found, large, texts in taken:
            at = np.array([[place[t] for t in c] for c in texts])
            test = round(_TEST_SHARE * at.shape[1])
            label = np.repeat(np.arange(len(large))[:, None], at.shape[1], axis=1)
            names = tuple(found.class_names[k] for k in large)
            parts = (at[:, test:], at[:, :test], label[:, test:], label[:, :test])
            samples.append(Sample(found, names, *(p.ravel() for p in parts)))
        return samples, rows, too_small

    def _set(
        self, sample: Sample, w: np.ndarray, b: np.ndarray, x: np.ndarray, codes: Codes, decoder: np.ndarray
    ) -> Iterator[Mapping[str, object]]:
        """Rows of the unit table: every class of a set, every N.

        Args:
            sample: The set.
            w: [c, d] probes of its classes.
            b: [c] their intercepts.
            x: [n_test, d] pooled activations of its test texts.
            codes: Pooled codes of all rows.
            decoder: [d_sae, d] decoder rows.
        """
        train, test = codes.take(sample.train), codes.take(sample.test)
        margins, y = x @ w.T + b, sample.test_class[:, None] == np.arange(len(w))
        before = _balanced(margins, y)
        for k, name in enumerate(sample.names):
            means = train.group_means((sample.train_class == k).astype(np.int64), 2)
            ranked = strongest(latent_effects(np.maximum(means[1] - means[0], 0), w[k], decoder), max(self.ns))
            shifts = logit_shifts(test.columns(ranked), decoder[ranked] @ w.T, self.ns)
            for n, shift in zip(self.ns, shifts, strict=True):
                drop = before - _balanced(margins + shift, y)
                facts = {"set": sample.source.name, "family": sample.source.family, "class": name, "N": n, "latents": min(n, len(ranked))}
                drops = {"own_drop": float(drop[k]), "other_drop": float(drop.sum() - drop[k]) / (len(drop) - 1)}
                yield facts | drops | {"accuracy": float(before[k]), "n_test": len(y)}


def _usable(sample: Sample, some: np.ndarray) -> Sample:
    """The sample without rows that have no activation."""
    train, test = some[sample.train], some[sample.test]
    return Sample(sample.source, sample.names, sample.train[train], sample.test[test], sample.train_class[train], sample.test_class[test])


def _fit(samples: Sequence[Sample], x: np.ndarray, c: float) -> Arrays:
    """One-vs-rest probes of every set: `w{i}` [c, d] and `b{i}` [c]."""
    out: Arrays = {}
    for i, s in enumerate(samples):
        y = s.train_class[:, None] == np.arange(len(s.names))
        out[f"w{i}"], out[f"b{i}"] = raw_probes(x[s.train], y, c, class_weights(y, np.ones_like(y)))
    return out


def _balanced(margin: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[c] mean of the true positive and the true negative rate of each column of logits [n, c]."""
    said = margin > 0
    return ((said & y).sum(0) / y.sum(0) + (~said & ~y).sum(0) / (~y).sum(0)) / 2


def _metrics(table: Mapping[str, list[object]], ns: Sequence[int], ctx: Context) -> dict[str, Metric]:
    """Means over source families of means over their sets of means over classes."""
    column = {k: np.array(v) for k, v in table.items()}
    column["tpp"] = column["own_drop"] - column["other_drop"]

    sets, first = np.unique(column["set"], return_index=True)

    def metric(value: str, n: int, better: Better) -> Metric:
        of_set = np.array([column[value][(column["N"] == n) & (column["set"] == s)].mean() for s in sets])
        low = 0.0 if value == "accuracy" else -1.0
        return probed.over_families(of_set, column["family"][first], ctx.rng("interval", value, n), better, low)

    metrics = {f"tpp_n{n}": metric("tpp", n, "higher") for n in ns}
    metrics[f"own_drop_n{_SHOWN}"] = metric("own_drop", _SHOWN, "higher")
    metrics[f"other_drop_n{_SHOWN}"] = metric("other_drop", _SHOWN, "neither")
    return metrics | {"accuracy": metric("accuracy", _SHOWN, "neither")}
