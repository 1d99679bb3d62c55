"""Are there features of more than one dimension? Clusters of similar latents, and how irreducible their planes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from bench.context import Context
from bench.errors import UsageError
from bench.kernels import circles
from bench.kernels.statistics import mean_interval
from bench.sae.canonical import Canonical
from bench.types import Metric, NotApplicable, Result, Work

_COMPONENTS, _FEWEST_CLUSTERS, _SHOWN = 5, 5, 5
_COLUMNS = ("score", "separability", "mixture", "first_plane", "planes", "active", "size", "latents")


@dataclass(frozen=True)
class Multidimensional:
    """Mean and best (1 − mixture) · separability over clusters of similar decoder rows.

    Rows are joined to their nearest rows where the cosine exceeds a cutoff; what is connected is a cluster. Tokens on
    which it is active are rebuilt from its latents alone and projected on at most five principal components; its
    score is the mean over consecutive planes (1-2, 2-3, …) of (1 − M) · S. Two independent coordinates have S near 0;
    two features that never occur together have M near one half or above. `first_plane` of the unit table is the
    share of variance in the first plane: 1 for a circle, 2 / (size − 1) for unrelated latents that fire one at a time.
    Source: Engels et al. 2024 (arXiv 2405.14860). Here S is corrected for the bias of few points and all clusters use
    equally many; the paper's spectral clustering needs d_sae² numbers and is left out. Changes: 1: first version.

    Args:
        tokens: Evaluation tokens.
        clustering: `mutual` joins two rows that are both among the other's nearest, with a cosine above the `quantile` of
            all pairs; `nearest` where one is among the other's (most of a dictionary is then one component);
            `threshold` the same above a fixed cosine.
        neighbours: Nearest rows looked at.
        quantile: For `mutual` and `nearest`.
        threshold: For `threshold`.
        largest: Clusters of more latents are left out.
        fewest_active: Clusters active on fewer tokens are left out; of others this many are used, evenly spaced.
    """

    name: ClassVar[str] = "multidimensional"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("engels2024",)
    caveats: ClassVar[tuple[str, ...]] = (
        "three or more latents that fire one at a time score like a circle, so a random dictionary scores high: "
        "read `first_plane`, the random control and the tokens of the best clusters",
        "the clusters are those active on many tokens: what is measured depends on the text and on fewest_active",
    )
    headline: ClassVar[tuple[str, ...]] = ("score_mean", "score_top", "clusters", "dropped_share")
    tokens: int = 16_384
    clustering: Literal["mutual", "nearest", "threshold"] = "mutual"
    neighbours: int = 2
    quantile: float = 0.999
    threshold: float = 0.5
    largest: int = 1_000
    fewest_active: int = 2_000

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1 or not -1 <= self.threshold < 1:
            raise UsageError("needs 0 < quantile < 1 and −1 ≤ threshold < 1", "change these")
        if min(self.neighbours, self.tokens) < 1 or min(self.largest, self.fewest_active) < 2:
            raise UsageError("needs tokens ≥ 1, neighbours ≥ 1, largest ≥ 2 and fewest_active ≥ 2", "change these")

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        return Work({f"text {self.tokens}": ctx.text_cached(self.tokens)})

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        present = np.flatnonzero(sae.norms > 0)
        if len(present) <= self.neighbours:
            return NotApplicable(f"only {len(present)} decoder rows are non-zero")
        cosines, rows, histogram = circles.neighbours(torch.from_numpy(sae.W_dec[present]), self.neighbours)
        cutoff = self.threshold if self.clustering == "threshold" else circles.cosine_quantile(histogram, self.quantile)
        found = [present[c] for c in circles.linked(cosines, rows, cutoff, self.clustering == "mutual")]
        small = [c for c in found if len(c) <= self.largest]
        table = self._table(small, sae, ctx)
        scores = np.array(table["score"])
        counts = {
            "latents": sae.d_sae,
            "latents_in_no_cluster": sae.d_sae - sum(map(len, found)),
            "clusters": len(found),
            "clusters_too_large": len(found) - len(small),
            "clusters_with_few_tokens": len(small) - len(scores),
            "clusters_on_a_line": table["planes"].count(0),
        }
        if len(scores) < _FEWEST_CLUSTERS:
            why = ", ".join(f"{k} {v}" for k, v in counts.items())
            return NotApplicable(f"{len(scores)} clusters are active on {self.fewest_active} tokens, {_FEWEST_CLUSTERS} are needed: {why}")
        interval = mean_interval(scores, ctx.rng("multidimensional", "interval"), 0.0)
        metrics = {
            "score_mean": Metric(float(scores.mean()), len(scores), "cluster", "own", "neither", interval),
            "score_top": Metric(float(scores.max()), 1, "cluster", "own", "neither"),
            "clusters": Metric(float(len(scores)), len(found), "cluster", "census"),
            "dropped_share": Metric(1 - len(scores) / len(found), len(found), "cluster", "census"),
        }
        best = [{c: table[c][i] for c in _COLUMNS} for i in range(_SHOWN)]
        return Result("score_mean", metrics, {"cluster": list(range(len(scores))), **table}, counts, (), {"cutoff": cutoff, "best": best})

    def _table(self, clusters: list[np.ndarray], sae: Canonical, ctx: Context) -> dict[str, list[object]]:
        """Clusters with enough active tokens, best first: means over planes (of no plane, M = 1), and what they are made of."""
        codes, rows = ctx.text_codes(sae, ctx.text(self.tokens)).matrix.tocsc(), []
        for latents in clusters:
            f = codes[:, latents].tocsr()
            active = np.flatnonzero(np.diff(f.indptr))
            if len(active) < self.fewest_active:
                continue
            used = active[np.arange(self.fewest_active) * len(active) // self.fewest_active]
            points, share = circles.principal(f[used], sae.W_dec[latents], _COMPONENTS)
            planes = [points[:, i : i + 2] for i in range(points.shape[1] - 1)]
            # every plane has the same draws, so that they do not depend on the order of latents or clusters
            s = np.array([circles.separability(p, ctx.rng("multidimensional", "shuffle"))[0] for p in planes] or [0.0])
            m = np.array([circles.mixture(p) for p in planes] or [1.0])
            means = (float(v.mean()) for v in ((1 - m) * s, s, m))
            rows.append((*means, float(share[:2].sum()), len(planes), len(active), len(latents), " ".join(map(str, latents))))
        rows.sort(key=lambda r: (-r[0], -r[5], r[-1]))
        return {c: [r[i] for r in rows] for i, c in enumerate(_COLUMNS)}
