"""How many different directions a dictionary holds: nearest cosines, covers, spectrum, and what another lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from bench.context import ACTIVE_FIRINGS, Context
from bench.kernels import cosine
from bench.kernels.statistics import spread
from bench.sae.canonical import Canonical
from bench.types import Better, Metric, NotApplicable, Result, Work

_MOST_PAIRS = 20_000_000
_RELATIVE = 2.2  # the paper's τ = 0.2 is 2.2 × the random level of its dictionaries


@dataclass(frozen=True)
class DistinctFeatures:
    """Geometry of the decoder rows: a census over latents, so values carry a spread and no interval.

    Changes: 1: first version.

    Args:
        tokens: Evaluation tokens on which firings are counted (alive = at least 20 firings).
        taus: Cosine thresholds of the curves.
        cover_taus: Thresholds of the greedy covers; connected components are given from 0.5 on.
    """

    name: ClassVar[str] = "distinct_features"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("korznikov2025ortsae",)
    caveats: ClassVar[tuple[str, ...]] = (
        "a random dictionary scores as well as any: read it beside explained variance and the random control",
        "the random level depends on (d_sae, d_in): compare only at equal sizes",
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
        rows, alive = torch.from_numpy(sae.W_dec[present]), firings[present] >= ACTIVE_FIRINGS
        nearest = cosine.nearest_cosine(rows).numpy()
        level = cosine.random_level(len(present), sae.d_in)
        metrics = self._nearest_metrics(nearest, rows, alive, level)
        warnings = self._cover(rows, firings[present], metrics)
        metrics |= {k: _census(v, len(present), "higher") for k, v in cosine.spectrum(rows).items()}
        details: dict[str, Any] = {"random_level": level}
        if ctx.against:
            name, other = ctx.against
            found, curve = self._unique(rows[torch.from_numpy(alive)], other, ctx, level)
            metrics |= found
            details["unique_against"] = {"name": name, "sha256": other.sha256, "curve": curve}
            warnings += () if found else ("no alive latents to compare with the other dictionary",)
        units = {"latent": present, "nearest_cosine": nearest, "firings": firings[present], "alive": alive}
        counts = {"latents": sae.d_sae, "zero_rows": sae.d_sae - len(present), "alive": int(alive.sum())}
        return Result("mean_max_cosine", metrics, units, counts, warnings, details)

    def _nearest_metrics(self, nearest: np.ndarray, rows: torch.Tensor, alive: np.ndarray, level: float) -> dict[str, Metric]:
        n = len(nearest)
        metrics = {
            "mean_max_cosine": _census(float(nearest.mean()), n, "lower", spread(nearest)),
            "random_level": _census(level, n),
            "mean_max_cosine_relative": _census((float(nearest.mean()) - level) / (1 - level), n, "lower"),
            "alive_share": _census(float(alive.mean()), n, "higher"),
        }
        if alive.sum() >= 2:
            among = cosine.nearest_cosine(rows[torch.from_numpy(alive)]).numpy()
            metrics["mean_max_cosine_alive"] = _census(float(among.mean()), len(among), "lower", spread(among))
        return metrics | {f"share_above_{t}": _census(float((nearest > t).mean()), n, "lower") for t in self.taus}

    def _cover(self, rows: torch.Tensor, firings: np.ndarray, metrics: dict[str, Metric]) -> tuple[str, ...]:
        """Greedy covers and components, added to `metrics`; a graph too dense to hold is left out with a warning."""
        hashes = np.array([hashlib.sha256(r.tobytes()).hexdigest() for r in rows.numpy()])
        priority = np.empty(len(rows), dtype=np.int64)
        priority[np.lexsort((hashes, -firings))] = np.arange(len(rows))
        skipped = []
        for tau in self.cover_taus:
            graph = cosine.pairs_above(rows, tau, _MOST_PAIRS)
            if graph is None:
                skipped.append(f"limited: more than {_MOST_PAIRS:,} pairs lie above cosine {tau}, so no cover was counted there")
                continue
            metrics[f"distinct_at_{tau}"] = _census(cosine.greedy_cover(graph, priority), len(rows), "higher")
            if tau >= 0.5:
                metrics[f"components_at_{tau}"] = _census(cosine.components(graph), len(rows), "higher")
        return tuple(skipped)

    def _unique(self, rows: torch.Tensor, other: Canonical, ctx: Context, level: float) -> tuple[dict[str, Metric], dict[str, float]]:
        """Share of alive rows unlike every alive row of the other dictionary, at the paper's τ and at 2.2 × random."""
        alive = ctx.text_codes(other, ctx.text(self.tokens)).firing_counts() >= ACTIVE_FIRINGS
        if len(rows) == 0 or not alive.any():
            return {}, {}
        best = cosine.nearest_in(rows, torch.from_numpy(other.W_dec[alive])).numpy()
        curve = {f"{t:.2f}": float((best < t).mean()) for t in np.arange(0.05, 1.0, 0.05)}
        metrics = {
            f"unique_below_{k}": _census(float((best < t).mean()), len(best), "higher")
            for k, t in (("0.2", 0.2), ("relative", _RELATIVE * level))
        }
        return metrics, curve


def _census(value: float, n: int, better: Better = "neither", over: tuple[float, float] | None = None) -> Metric:
    return Metric(float(value), n, "latent", "census", better, spread=over)
