"""How much of the activation the SAE gives back, and what the language model loses when it gets the rest only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.context import Context, Tokens
from bench.errors import UsageError
from bench.kernels.reconstruction import Sums, document_sums
from bench.kernels.statistics import mean_interval, ratio_interval
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.types import Metric, NotApplicable, Result, Work

_UNIT = "document"
_FULL_DEAD = 1_000_000
_HISTOGRAM = tuple(10.0**e for e in np.arange(-6, 0.01, 0.5))


@dataclass(frozen=True)
class Reconstruction:
    """Explained variance, sparsity, firing frequencies, and the loss of the spliced language model.

    Changes: 1: first version.

    Args:
        tokens: Evaluation tokens harvested; the unit is the document.
        loss_tokens: The language model's losses are measured on the first documents, as many as hold this many tokens.
    """

    name: ClassVar[str] = "reconstruction"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("gao2024", "karvonen2025saebench")
    caveats: ClassVar[tuple[str, ...]] = (
        "explained variance rises with L0: compare at equal L0 or along the curve",
        "loss recovered is measured in contexts of at most 128 tokens",
    )
    headline: ClassVar[tuple[str, ...]] = (
        "explained_variance",
        "l0",
        "ce_recovered_zero",
        "kl_score_zero",
        "ce_sae",
        "cosine",
        "shrinkage_slope",
    )
    tokens: int = 16_384
    loss_tokens: int = 8_192

    def __post_init__(self) -> None:
        if min(self.tokens, self.loss_tokens) < 1:
            raise UsageError("reconstruction needs tokens ≥ 1 and loss_tokens ≥ 1", "see python -m bench tasks show reconstruction")

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        total, cached = ctx.text_cached(self.tokens)
        tail = min(self.loss_tokens, total)
        return Work({f"text {self.tokens}": (total, cached)}, tail=tail * (1 if cached == total else 4))

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        text = ctx.text(self.tokens)
        if not text.keep.any():
            return NotApplicable("no token passes the mask: are the activations finite?")
        codes = ctx.text_codes(sae, text)
        xhat = sae.reconstruct(codes)
        mean = text.kept.mean(0, dtype=np.float64)
        sums = document_sums(text.kept, xhat, text.document, mean)
        sums["active"] = np.bincount(text.document, codes.l0(), minlength=len(sums["tokens"]))
        if ctx.has_lm:
            sums |= _losses(ctx, text, xhat, self.loss_tokens)
        metrics = {**shape_metrics(sums, ctx), **(loss_metrics(sums) if ctx.has_lm else {}), **_firing_metrics(codes)}
        counts = {"tokens": int(text.keep.sum()), "tokens_masked": text.dropped, "documents": len(sums["tokens"])}
        counts["tokens_scored_for_loss"] = int(sums["scored"].sum()) if ctx.has_lm else 0
        details = {"mean_activation_norm": float(np.linalg.norm(mean)), "firing_histogram": _histogram(codes)}
        return Result("explained_variance", metrics, sums, counts, _warnings(sums), details)


def shape_metrics(sums: Sums, ctx: Context) -> dict[str, Metric]:
    """Scores that need activations only; every ratio is one global ratio of sums."""
    n = sums["tokens"]
    ratios = {
        "fvu": (sums["error"], sums["total"], "lower", 0.0, np.inf),
        "explained_variance": (sums["total"] - sums["error"], sums["total"], "higher", -np.inf, 1.0),
        "mse": (sums["error"], n, "lower", 0.0, np.inf),
        "cosine": (sums["cosine"], n, "higher", -1.0, 1.0),
        "relative_norm": (sums["norm_ratio"], n, "neither", 0.0, np.inf),
        "shrinkage_slope": (sums["cross"], sums["total"], "neither", -np.inf, np.inf),
        "l0": (sums["active"], n, "neither", 0.0, np.inf),
    }
    metrics = {k: _ratio(*v) for k, v in ratios.items()}
    per_document = sums["error"] / np.where(sums["total"] == 0, 1, sums["total"])
    interval = mean_interval(per_document, ctx.rng("reconstruction", "fvu_per_document"), 0.0)
    metrics["fvu_per_document"] = Metric(float(per_document.mean()), len(n), _UNIT, "shared", "lower", interval)
    return metrics


def loss_metrics(sums: Sums) -> dict[str, Metric]:
    """Scores of the spliced language model: raw losses, share recovered against two ablations, KL scores."""
    sums = {k: v[sums["scored"] > 0] for k, v in sums.items()}
    n = sums["scored"]
    metrics = {f"ce_{k}": _ratio(sums[f"ce_{k}"], n, "lower", 0.0, np.inf) for k in ("clean", "sae", "zero", "mean")}
    metrics |= {f"{k}_sae": _ratio(sums[f"{k}_sae"], n, "lower", 0.0, np.inf) for k in ("kl", "kl_reverse")}
    for kind in ("zero", "mean"):
        gap, recovered = sums[f"ce_{kind}"] - sums["ce_clean"], sums[f"ce_{kind}"] - sums["ce_sae"]
        if gap.sum() > 0:
            metrics[f"ce_recovered_{kind}"] = _ratio(recovered, gap, "higher", -np.inf, np.inf)
        for kl in ("kl", "kl_reverse"):
            if sums[f"{kl}_{kind}"].sum() > 0:
                saved = sums[f"{kl}_{kind}"] - sums[f"{kl}_sae"]
                metrics[f"{kl}_score_{kind}"] = _ratio(saved, sums[f"{kl}_{kind}"], "higher", -np.inf, 1.0)
    return metrics


def _ratio(a: np.ndarray, b: np.ndarray, better: Any, low: float, high: float) -> Metric:
    return Metric(float(a.sum() / b.sum()), len(a), _UNIT, "shared", better, ratio_interval(a, b, low, high))


def _losses(ctx: Context, text: Tokens, xhat: np.ndarray, tokens: int) -> Sums:
    """Sums per document of every loss, over kept tokens that have a next token; 0 in the documents left out."""
    part = text.first(tokens)
    kept = len(part.kept)
    splicer = ctx.splicer(part)
    scored = splicer.scored
    document = text.document[:kept][scored[part.keep]]
    size = int(text.document.max()) + 1
    spliced = splicer.spliced(xhat[:kept], "the SAE")
    per_token = {"ce_clean": splicer.clean()["ce"], **{f"{k}_sae": v for k, v in spliced.items()}}
    for kind in ("zero", "mean"):
        per_token |= {f"{k}_{kind}": v for k, v in splicer.ablated(kind).items()}
    sums = {k: np.bincount(document, np.asarray(v, np.float64), minlength=size) for k, v in per_token.items()}
    return {"scored": np.bincount(document, minlength=size).astype(float), **sums}


def _firing_metrics(codes: Codes) -> dict[str, Metric]:
    share = codes.firing_counts() / max(codes.n, 1)
    found = {
        f"dead_at_{codes.n}": float((share == 0).mean()),
        "share_firing_above_1pct": float((share > 0.01).mean()),
        "share_firing_above_10pct": float((share > 0.1).mean()),
    }
    if codes.n >= _FULL_DEAD:
        found["dead"] = found[f"dead_at_{codes.n}"]
    return {k: Metric(v, codes.d_sae, "latent", "census", "lower") for k, v in found.items()}


def _histogram(codes: Codes) -> dict[str, list[float]]:
    counts = codes.firing_counts()
    inside, edges = np.histogram(counts[counts > 0] / max(codes.n, 1), bins=_HISTOGRAM)
    return {"edges": [float(e) for e in edges], "latents": [int(c) for c in inside], "never": [int((counts == 0).sum())]}


def _warnings(sums: Sums) -> tuple[str, ...]:
    notes = []
    if sums["error"].sum() > sums["total"].sum():
        notes.append("worse than predicting the mean: wrong layer, wrong model or unscaled input?")
    if "ce_zero" in sums and (sums["ce_zero"].sum() <= sums["ce_clean"].sum() or sums["ce_mean"].sum() <= sums["ce_clean"].sum()):
        notes.append("an ablation does not raise the loss here, so the loss recovered against it is left out")
    return tuple(notes)
