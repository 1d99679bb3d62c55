"""Feature absorption on first letters: does the latent of a letter fall silent where a more special latent fires?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bench.context import Context
from bench.data.concepts import Concepts
from bench.errors import UsageError
from bench.kernels.absorption import Measured, concept_probes, measure
from bench.kernels.folds import three_parts
from bench.kernels.statistics import mean_interval
from bench.lm.concepts import Spelling
from bench.sae.canonical import Canonical
from bench.store import array_sha256
from bench.types import Better, Metric, NotApplicable, Result, Work

GATE = 0.6  # test F1 of the ground-truth probe
_ENOUGH, _FEWEST = 20, 5
_WEAK = 0.3  # F1 of the best latent below which a concept has no latent of its own


@dataclass(frozen=True)
class Absorption:
    """Share of a letter's projection that other latents carry on words where the letter's own latents fail.

    Words of one token are read after ten examples ("cat has the first letter: C"). Logistic probes give each
    letter's direction; its main latents are those that predict it; absorbers are other latents along the
    direction. `absorption_fraction` weighs what absorbers carry, `absorption_full` counts words where one other
    latent alone carries it and the main ones are silent.
    Source: Chanin et al. 2024 (arXiv 2409.14507); formulas as in SAEBench (2025), with latents split on validation
    words, a zero projection scoring 0, and letters judged on test words. Changes: 1: first version.

    Args:
        words: Most words per letter; 0 takes all.
        fewest: Letters with fewer one-token words are left out.
        prefixes: Number of fixed prompts.
        protocol: `fixed` reuses the prompts; `saebench` draws ten examples anew for every word, and its metrics are
            named `saebench_…`.
    """

    name: ClassVar[str] = "absorption"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("chanin2024", "karvonen2025saebench")
    caveats: ClassVar[tuple[str, ...]] = (
        "an untrained dictionary scores low because it has no letter latents: read it beside k1_f1 and the random control",
        "the task was meant for language models of 1B parameters and more and dictionaries of 16k latents and more",
    )
    headline: ClassVar[tuple[str, ...]] = ("absorption_fraction", "absorption_full", "k1_f1", "split_latents", "probe_f1")
    words: int = 0
    fewest: int = 250
    prefixes: int = 20
    protocol: Literal["fixed", "saebench"] = "fixed"

    def __post_init__(self) -> None:
        if self.words < 0 or self.fewest < 20 or self.prefixes < 2 or 0 < self.words < 20:
            raise UsageError("absorption needs prefixes ≥ 2, fewest ≥ 20, and words 0 or ≥ 20", "see python -m bench tasks show absorption")

    @property
    def request(self) -> Spelling:
        """The words to run."""
        return Spelling(self.words, self.fewest, 0 if self.protocol == "saebench" else self.prefixes)

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"words": self.request.sha256, "text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        return Work({f"words {self.request.sha256}": ctx.concepts_planned(self.request)})

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        items = ctx.concepts(self.request)
        if len(items.names) < 2:
            return NotApplicable(
                f"{len(items.names)} letters have {self.fewest} words of one token: the tokenizer spells too few words whole"
            )
        part = three_parts(items.labels.argmax(1), ctx.rng("absorption", "split")) if items.part is None else items.part
        codes = ctx.codes(sae, items.x, dict(items.identity))
        found = measure(items.x, items.labels, items.known, part, stored_probes(ctx, items, part), codes.matrix, sae.W_dec)
        return summary(found, items, ctx, "letter", "saebench_" if self.protocol == "saebench" else "")


def stored_probes(ctx: Context, items: Concepts, part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground-truth probes of the concepts; they do not depend on the SAE and are kept in the store."""
    identity = {**ctx.site, **items.identity, "split": array_sha256(items.labels, items.known, part), "rule": 1}
    found = ctx.store.get(
        "probes", identity, lambda: dict(zip("wbf", concept_probes(items.x, items.labels, items.known, part), strict=True))
    )
    return np.asarray(found["w"]), np.asarray(found["b"]), np.asarray(found["f"])


def summary(found: Measured, items: Concepts, ctx: Context, unit: str, prefix: str = "") -> Result | NotApplicable:
    """Scores over the concepts whose probe is good enough, with a row per concept."""
    size = np.bincount(found.concept, minlength=len(items.names))
    readable = found.probe_f1 > GATE
    scored = np.flatnonzero(readable & (size > 0) & (found.split > 0))
    counts = {**items.counts, f"{unit}s_scored": len(scored), f"{unit}s_below_gate": int((~readable).sum())}
    counts[f"{unit}s_without_true_positives"] = int((readable & (size == 0)).sum())
    counts[f"{unit}s_without_any_main_latent"] = int((readable & (size > 0) & (found.split == 0)).sum())
    if len(scored) < _FEWEST:
        return NotApplicable(
            f"only {len(scored)} {unit}s have a probe with test F1 above {GATE} and a latent; at least {_FEWEST} are needed"
        )
    kept = np.isin(found.concept, scored)
    counts |= {"true_positives": int(kept.sum()), "scored_one_without_main": int(found.absorbed.without_main[kept].sum())}
    counts["zero_projection"] = int(found.absorbed.zero_projection[kept].sum())
    table = _table(found, items, scored, ctx, unit)
    metrics = {
        f"{prefix}{unit_name(unit)}_fraction": _metric(table["fraction"], unit, "lower", ctx),
        f"{prefix}{unit_name(unit)}_full": _metric(table["full"].astype(float), unit, "lower", ctx),
        "k1_f1": _metric(table["k1_f1"], unit, "higher", ctx),
        "probe_f1": _metric(table["probe_f1"], unit, "neither", ctx),
        "split_latents": _metric(table["split_latents"], unit, "lower", ctx, high=np.inf),
    }
    left_out = {items.names[c]: round(float(found.probe_f1[c]), 3) for c in range(len(items.names)) if c not in set(scored.tolist())}
    details: dict[str, Any] = {"probe_f1_of_those_left_out": left_out}
    return Result(next(iter(metrics)), metrics, table, counts, _warnings(table, unit), details)


def unit_name(unit: str) -> str:
    """What the scores are called for a kind of concept."""
    return "absorption" if unit == "letter" else f"absorption_{unit}"


def _table(found: Measured, items: Concepts, scored: np.ndarray, ctx: Context, unit: str) -> dict[str, Any]:
    """One row per concept; the interval of a concept's own score is over its items."""
    rows: dict[str, list[Any]] = {}
    for c in scored:
        mine = found.concept == c
        fraction = found.absorbed.fraction[mine]
        low, high = mean_interval(fraction, ctx.rng("absorption", unit, "items", items.names[c]), 0.0, 1.0) or (0.0, 1.0)
        row = {unit: items.names[c], "items": int(items.labels[:, c].sum()), "true_positives": int(mine.sum())}
        row |= {"fraction": float(fraction.mean()), "fraction_low": low, "fraction_high": high}
        row |= {"full": float(found.absorbed.full[mine].mean()), "without_main": float(found.absorbed.without_main[mine].mean())}
        row |= {"k1_f1": float(found.k1_f1[c]), "probe_f1": float(found.probe_f1[c]), "split_latents": float(found.split[c])}
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in rows.items()}


def _metric(values: np.ndarray, unit: str, better: Better, ctx: Context, high: float = 1.0) -> Metric:
    interval = mean_interval(values, ctx.rng("absorption", unit, "interval"), 0.0, high)
    return Metric(float(values.mean()), len(values), unit, "shared", better, interval)


def _warnings(table: Mapping[str, np.ndarray], unit: str) -> tuple[str, ...]:
    notes = []
    if len(table[unit]) < _ENOUGH:
        notes.append(f"limited: {len(table[unit])} {unit}s only; {_ENOUGH} are wanted")
    if (table["k1_f1"] < _WEAK).mean() > 0.5:
        notes.append(f"limited: no main latent: the best latent has F1 below {_WEAK} for most {unit}s, so there is little to absorb")
    return tuple(notes)
