"""What an SAE made of a world whose truth is known: features found, missed, absorbed, composed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.context import Context
from bench.errors import UsageError
from bench.kernels.reconstruction import document_sums
from bench.kernels.statistics import spread
from bench.sae.canonical import Canonical
from bench.types import Better, Metric, NotApplicable, Result, Work
from bench.worlds import truth
from bench.worlds.context import WorldContext
from tasks.reconstruction import shape_metrics

_FEWEST = 10  # firings below which a feature's F1 or an edge's absorption is not counted
_REPRESENTED = 0.5  # cosine from which a parent has a latent that could fall silent


@dataclass(frozen=True)
class GroundTruth:
    """Recovery of the true dictionary, and the true rates of what other tasks measure from outside.

    Features and decoder rows are matched one to one so that the sum of absolute cosines is largest; MCC is the mean
    over features, 0 for those without a row (above 8,192 rows among each feature's 32 nearest).
    Absorption is the share of a child's firings on which the parent's latent is silent and the child's, active,
    carries the parent's direction; composition the share of rows nearer to a sum of two features than to one.
    Only for SAEs of a planted world (`train --lm world:small`).
    Source: Chanin & Garriga-Alonso 2026 (arXiv 2602.14687); MCC as in Song et al. 2025 (arXiv 2505.20254);
    absorption after Chanin et al. 2024 (arXiv 2409.14507). Changes: 1: first version.

    Args:
        tokens: Planted tokens.
    """

    name: ClassVar[str] = "ground_truth"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("chanin2026synth", "song2025consistency", "chanin2024")
    caveats: ClassVar[tuple[str, ...]] = (
        "a planted world is simpler than a language model: success here is necessary, not sufficient",
        "MCC has a random level above 0 that depends on the number of features, latents and dimensions",
    )
    headline: ClassVar[tuple[str, ...]] = (
        "mcc",
        "recovered_share",
        "firing_f1",
        "absorption_rate",
        "composition_rate",
        "distinct_features",
        "explained_variance",
        "l0",
    )
    tokens: int = 16_384

    def __post_init__(self) -> None:
        if self.tokens < 128:
            raise UsageError("ground_truth needs tokens ≥ 128", "see python -m bench tasks show ground_truth")

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        return Work({})

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        if not isinstance(ctx, WorldContext):
            return NotApplicable(f"trained on a language model ({ctx.site['lm']}): no true dictionary; train with --lm world:small")
        present, text, world = np.flatnonzero(sae.norms > 0), ctx.text(self.tokens), ctx.world
        if not len(present):
            return NotApplicable("no decoder row is non-zero")
        true, codes, rows = ctx.truth(text), ctx.text_codes(sae, text), sae.W_dec[present]
        at, cosine = truth.matched(world.dictionary, rows)
        latent, found = present[np.maximum(at, 0)], at >= 0
        every, firings = np.arange(world.n_features), true.firing_counts()
        f1 = np.where(found, truth.firing_f1(true, codes, every, latent), 0.0)
        pairs = world.edges
        shares, times = truth.absorbed_share(true, codes, sae.W_dec, world.dictionary, pairs, latent)
        judged = (times >= _FEWEST) & found[pairs].all(1) & (cosine[pairs[:, 0]] >= _REPRESENTED)
        values: dict[str, tuple[np.ndarray, str, Better]] = {
            "mcc": (np.where(found, cosine, 0.0), "feature", "higher"),
            "recovered_share": (cosine > truth.RECOVERED, "feature", "higher"),
            "firing_f1": (f1[firings >= _FEWEST], "feature", "higher"),
            "absorption_rate": (shares[judged], "edge", "lower"),
            "composition_rate": (truth.composed(rows, world.dictionary), "latent", "lower"),
        }
        metrics = {k: _census(*v) for k, v in values.items() if len(v[0])}
        distinct = truth.recovered(rows, world.dictionary)
        metrics["distinct_features"] = Metric(float(distinct.sum()), len(distinct), "feature", "census", "higher")
        metrics["true_l0"] = Metric(float(true.l0().mean()), len(distinct), "feature", "census")
        sums = document_sums(text.kept, sae.reconstruct(codes), text.document, text.kept.mean(0, dtype=np.float64))
        sums["active"] = np.bincount(text.document, codes.l0(), minlength=len(sums["tokens"]))
        shape = shape_metrics(sums, ctx)
        metrics |= {k: shape[k] for k in ("explained_variance", "l0")}
        table = {"feature": every, "probability": world.probabilities, "firings": firings}
        table |= {"latent": np.where(found, latent.astype(str), ""), "cosine": cosine, "f1": f1, "distinct": distinct}
        counts = {"tokens": codes.n, "features": len(every), "latents": sae.d_sae, "zero_rows": sae.d_sae - len(present)}
        counts |= {"features_unmatched": int((~found).sum()), "features_too_rare": int((firings < _FEWEST).sum())}
        counts |= {"edges": len(pairs), "edges_not_judged": int((~judged).sum())}
        notes = () if judged.any() else ("no parent has a latent and a child that fires often enough: absorption is left out",)
        return Result("mcc", metrics, table, counts, notes)


def _census(values: np.ndarray, unit: str, better: Better) -> Metric:
    return Metric(float(values.mean()), len(values), unit, "census", better, spread=spread(values))
