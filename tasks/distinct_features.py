"""How many different directions a dictionary holds: nearest cosines, covers, clustering, spectrum, and what another lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from bench.context import ACTIVE_FIRINGS, Context
from bench.errors import UsageError
from bench.kernels import cosine, graphs
from bench.kernels.matching import match
from bench.kernels.statistics import spread
from bench.sae.canonical import Canonical
from bench.types import Better, Metric, NotApplicable, Result, Work

_MOST_PAIRS = 24_000_000  # 10⁻² of all pairs of 65,536 latents are 21 million
_RELATIVE = 2.2  # the paper's τ = 0.2 is 2.2 × the random level of its dictionaries
_CURVE = tuple(round(0.3 + 0.05 * i, 2) for i in range(14))
_DENSITIES = tuple(float(f"{10 ** (-5 + i / 3):.2e}") for i in range(10))


@dataclass(frozen=True)
class DistinctFeatures:
    """Geometry of the decoder rows: a census over latents, so values carry a spread and no interval.

    With `--against` also how the alive rows are found among the alive rows of another dictionary. Where that is the
    same method with another seed, `matched_cosine` and `best_cosine` are the seed stability, and `unique_below_…` is
    what two seeds differ by: the null for the comparison with another method. `…_random` puts as many random rows in
    the place of the evaluated ones.
    Changes: 1: first version. 2: clustering coefficients, one-to-one matching, random null of the comparison with
    another dictionary, threshold curve; the pairs of all thresholds come from one pass.

    Args:
        tokens: Evaluation tokens on which firings are counted (alive = at least 20 firings).
        taus: Cosine thresholds of the shares of latents with a close neighbour.
        cover_taus: Thresholds of the greedy covers; connected components are given from 0.5 on.
        densities: Shares of all pairs, the closest ones, that make the graphs for the clustering coefficient.
    """

    name: ClassVar[str] = "distinct_features"
    version: ClassVar[int] = 2
    sources: ClassVar[tuple[str, ...]] = ("korznikov2025ortsae",)
    caveats: ClassVar[tuple[str, ...]] = (
        "a random dictionary scores as well as any: read it beside explained variance and the random control",
        "the random level depends on (d_sae, d_in): compare only at equal sizes",
        "random rows are unlike any other dictionary's: read unique_below beside its random null and a second seed",
    )
    headline: ClassVar[tuple[str, ...]] = (
        "mean_max_cosine",
        "random_level",
        "share_above_0.5",
        "distinct_at_0.3",
        "effective_rank",
        "alive_share",
        "unique_below_relative",
    )
    tokens: int = 16_384
    taus: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    cover_taus: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    densities: tuple[float, ...] = _DENSITIES

    def __post_init__(self) -> None:
        taus, shares = (*self.taus, *self.cover_taus), self.densities
        if self.tokens < 1 or not all(0 <= t < 1 for t in taus) or not all(0 < s <= 1 for s in shares) or len(shares) > 254:
            raise UsageError(
                "distinct_features needs tokens ≥ 1, thresholds in [0, 1) and at most 254 densities in (0, 1]",
                "see python -m bench tasks show distinct_features",
            )

    def data(self, ctx: Context) -> Mapping[str, str]:
        other = {"against": ctx.against[1].sha256} if ctx.against else {}
        return {"text": ctx.corpus.sha256, **other}

    def work(self, ctx: Context) -> Work:
        return Work({f"text {self.tokens}": ctx.text_cached(self.tokens)})

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        firings = ctx.text_codes(sae, ctx.text(self.tokens)).firing_counts()
        present = np.flatnonzero(sae.norms > 0)
        if len(present) < 2:
            return NotApplicable("fewer than two decoder rows are non-zero")
        rows, firings = torch.from_numpy(sae.W_dec[present]), firings[present]
        alive = firings >= ACTIVE_FIRINGS
        edges = {s: round(s * len(rows) * (len(rows) - 1) / 2) for s in sorted(self.densities)}
        found = graphs.survey(rows, alive, min((*self.cover_taus, *_CURVE)), min(max(edges.values(), default=0), _MOST_PAIRS), _MOST_PAIRS)
        level = cosine.random_level(len(rows), sae.d_in)
        metrics = self._nearest(found, alive, level)
        metrics |= {k: _census(v, len(rows), "higher") for k, v in cosine.spectrum(rows).items()}
        curve, warnings = self._cover(found, _priority(rows, firings), metrics)
        warnings += _clustering(found.pairs, edges, metrics)
        details: dict[str, Any] = {"random_level": level, "threshold_curve": curve}
        counts = {"latents": sae.d_sae, "zero_rows": sae.d_sae - len(rows), "alive": int(alive.sum())}
        if ctx.against:
            warnings += self._compare(rows[torch.from_numpy(alive)], level, ctx, metrics, counts, details)
        units = {"latent": present, "nearest_cosine": found.nearest, "firings": firings, "alive": alive}
        return Result("mean_max_cosine", metrics, units, counts, warnings, details)

    def _nearest(self, found: graphs.Survey, alive: np.ndarray, level: float) -> dict[str, Metric]:
        nearest, n = found.nearest, len(alive)
        metrics = {
            "mean_max_cosine": _census(float(nearest.mean()), n, "lower", nearest),
            "random_level": _census(level, n),
            "mean_max_cosine_relative": _census((float(nearest.mean()) - level) / (1 - level), n, "lower"),
            "alive_share": _census(float(alive.mean()), n, "higher"),
        }
        if alive.sum() >= 2:
            among = found.nearest_inner
            metrics["mean_max_cosine_alive"] = _census(float(among.mean()), len(among), "lower", among)
        return metrics | {f"share_above_{t}": _census(float((nearest > t).mean()), n, "lower") for t in self.taus}

    def _cover(
        self, found: graphs.Survey, priority: np.ndarray, metrics: dict[str, Metric]
    ) -> tuple[list[dict[str, float]], tuple[str, ...]]:
        """Greedy covers and components, added to `metrics`; the curve over τ. What is too dense to hold gets a warning."""
        curve: list[dict[str, float]] = []
        skipped: list[str] = []
        for tau in sorted({*self.cover_taus, *_CURVE}):
            point = {"tau": tau, "share_above": float((found.nearest > tau).mean())}
            graph = found.pairs.above(tau)
            if graph is not None:
                point["distinct"] = graphs.greedy_cover(graph, priority)
            curve.append(point)
            if tau not in self.cover_taus:
                continue
            if graph is None:
                skipped.append(f"limited: more than {_MOST_PAIRS:,} pairs lie above cosine {tau}, so no cover was counted there")
                continue
            metrics[f"distinct_at_{tau}"] = _census(point["distinct"], len(priority), "higher")
            if tau >= 0.5:
                metrics[f"components_at_{tau}"] = _census(graphs.components(graph), len(priority), "higher")
        return curve, tuple(skipped)

    def _compare(
        self,
        rows: torch.Tensor,
        level: float,
        ctx: Context,
        metrics: dict[str, Metric],
        counts: dict[str, int],
        details: dict[str, Any],
    ) -> tuple[str, ...]:
        """Alive rows, and as many random ones, found among the alive rows of the other dictionary."""
        assert ctx.against
        name, other = ctx.against
        alive = ctx.text_codes(other, ctx.text(self.tokens)).firing_counts() >= ACTIVE_FIRINGS
        counts["alive_against"] = int(alive.sum())
        if len(rows) == 0 or not alive.any():
            return ("no alive latents to compare with the other dictionary",)
        theirs = torch.from_numpy(other.W_dec[alive])
        noise = ctx.rng("distinct_features", "random rows", *rows.shape).standard_normal(tuple(rows.shape), dtype=np.float32)
        for suffix, ours in (("", rows), ("_random", torch.from_numpy(noise))):
            found = match(ours, theirs)
            for k, t in (("0.2", 0.2), ("relative", _RELATIVE * level)):
                metrics[f"unique_below_{k}{suffix}"] = _census(float((found.best < t).mean()), len(rows), "neither" if suffix else "higher")
            for k, v in (("best_cosine", found.best), ("matched_cosine", found.matched)):
                metrics[f"{k}{suffix}"] = _census(float(v.mean()), len(rows), over=v)
            counts[f"unmatched{suffix}"] = int((found.matched == 0).sum())
            curve = {f"{t:.2f}": float((found.best < t).mean()) for t in np.arange(0.05, 1.0, 0.05)}
            details[f"unique_against{suffix}"] = {"name": name, "sha256": other.sha256, "curve": curve}
        return ()


def _priority(rows: torch.Tensor, firings: np.ndarray) -> np.ndarray:
    """[m] rank of each row where covers tie: by firings, then by the hash of the row."""
    hashes = np.array([hashlib.sha256(r.tobytes()).hexdigest() for r in rows.numpy()])
    priority = np.empty(len(rows), dtype=np.int64)
    priority[np.lexsort((hashes, -firings))] = np.arange(len(rows))
    return priority


def _clustering(pairs: graphs.Pairs, edges: Mapping[float, int], metrics: dict[str, Metric]) -> tuple[str, ...]:
    """Clustering coefficients by density, added to `metrics`; a density without one is named in a warning."""
    found = graphs.clustering(pairs, tuple(edges.values()))
    values = {s: c.coefficient for s, c in zip(edges, found, strict=False)}
    metrics |= {f"clustering_at_{s:g}": _census(v, pairs.m) for s, v in values.items() if v is not None}
    apart, over = [f"{s:g}" for s, v in values.items() if v is None], [f"{s:g}" for s in list(edges)[len(found) :]]
    warnings = (f"no two of the closest pairs share a latent: no clustering coefficient at density {', '.join(apart)}",) if apart else ()
    limit = f"limited: more than {_MOST_PAIRS:,} pairs: no clustering coefficient at density {', '.join(over)}"
    return (*warnings, limit) if over else warnings


def _census(value: float, n: int, better: Better = "neither", over: np.ndarray | None = None) -> Metric:
    return Metric(float(value), n, "latent", "census", better, spread=None if over is None else spread(over))
