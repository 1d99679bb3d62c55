"""Texts of several sets run once, and linear probes on their activations, kept in the store.

Pooled activations and probes depend on the site and the texts alone, so a second SAE costs its codes and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bench.context import Context
from bench.data.text import Rows
from bench.kernels.statistics import mean_interval
from bench.lm.harvest import Harvest
from bench.sae.canonical import Canonical
from bench.sae.dense import DenseSAE
from bench.store import Arrays, array_sha256, digest
from bench.types import Better, Metric, Work

UNRELIABLE = (
    "an audit (arXiv 2605.18229) finds SCR and TPP unreliable at their usual settings; they are here because the field reports them"
)
_ENOUGH_FAMILIES = 8
_CHARS = 32  # characters a token may stand for
NULLS = "ablating random latents can score: read it beside the random and frozen-decoder controls"


def distinct(ctx: Context, lists: Iterable[Sequence[str]], context: int) -> tuple[Rows, dict[str, int]]:
    """Every text of the lists once, as rows of its last `context` tokens, and the row of each."""
    texts = list(dict.fromkeys(t for texts in lists for t in texts))
    tails = [t[-_CHARS * context :] for t in texts]  # a long file is not tokenised for the sake of its end
    return ctx.prompts(tails, context), {t: i for i, t in enumerate(texts)}


def probes(ctx: Context, rows: Rows, c: float, uses: Sequence[np.ndarray], fit: Callable[[], Arrays]) -> Arrays:
    """Probes on pooled activations of the rows, kept in the store.

    Args:
        ctx: Context.
        rows: One row per text.
        c: Inverse strength of the penalty.
        uses: Which rows they are fitted on and their labels, all of it.
        fit: Fits them.
    """
    parts = {**ctx.site, "rows": rows.sha256, "cut": ctx.norm_cut, "c": c, "uses": array_sha256(*uses)}
    return ctx.store.get("probes", parts, fit)


def work(ctx: Context, rows: Rows, wanted: np.ndarray | None = None) -> Work:
    """What running the rows asks of the language model; of each row one token where `wanted` names it."""
    cached = Harvest(ctx.lm, ctx.hook, ctx.store).cached(rows, wanted)
    return Work({f"prompts {rows.sha256}": (len(rows.ids), round(cached * len(rows.ids)))})


def shuffled(ctx: Context, texts: list[str]) -> list[str]:
    """Texts in random order, the same whatever set they are found in, so that sets share what is run."""
    order = ctx.rng("texts", digest(texts)).permutation(len(texts))
    return [texts[i] for i in order]


def over_families(values: np.ndarray, family: np.ndarray, rng: np.random.Generator, better: Better, low: float = 0.0) -> Metric:
    """Mean over source families of the mean of each one's rows; the interval is over families, as their sets share texts.

    Args:
        values: [n] scores, at most 1.
        family: [n] source family of each.
        rng: Draws the interval.
        better: Which direction is better.
        low: Smallest possible score.
    """
    means = np.array([values[family == f].mean() for f in np.unique(family)])
    return Metric(float(means.mean()), len(means), "source family", "shared", better, mean_interval(means, rng, low, 1.0))


def few_families(family: Sequence[object]) -> tuple[str, ...]:
    """The warning of a score over few source families."""
    n = len(set(family))
    return (f"limited: {n} source families only; do not rank methods by this",) if n < _ENOUGH_FAMILIES else ()


def table(rows: Iterable[Mapping[str, object]]) -> dict[str, list[object]]:
    """Rows of equal keys as columns."""
    held = list(rows)
    return {name: [r[name] for r in held] for name in held[0]}


def notes(sae: Canonical, ns: Sequence[int]) -> tuple[str, ...]:
    """What must be said of ablating N latents of this SAE."""
    said: list[str] = []
    if sae.d_sae < max(ns):
        said.append(f"limited: there are {sae.d_sae} latents, so a larger N takes all of them")
    if not isinstance(sae.inner, DenseSAE):
        said.append("selection frozen: codes are not computed again without the ablated latents, as a matching pursuit would")
    return tuple(said)
