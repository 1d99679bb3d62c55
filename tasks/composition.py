"""How far are latents combinations of fewer directions? A meta-SAE tries to rebuild the decoder rows from four each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from baselines import meta_sae
from baselines.meta_sae import Explained, MetaSAE
from bench import progress
from bench.context import ACTIVE_FIRINGS, Context
from bench.errors import UsageError
from bench.kernels.cosine import unit
from bench.kernels.statistics import spread
from bench.rng import seed_of, torch_rng
from bench.sae.canonical import Canonical
from bench.types import Better, Metric, NotApplicable, Result, Work

CONVERGED = 0.01
_SAEBENCH_STEPS = 1_500
_FLAT = 1e-6  # mean squared distance from the mean below which unit rows are all the same
_NARROWEST = 32  # below, a quarter of the rows has too few positive pre-activations for 4 codes a row
_SHOWN = 20


@dataclass(frozen=True)
class Composition:
    """Share of the decoder rows' variance that a meta-SAE of a quarter of their number explains with 4 codes a row.

    BatchTopK with the auxiliary loss on the centred unit rows of the alive latents; one batch top-k over all rows
    selects exactly 4 × alive codes. Lower is more atomic. If the score moved by more than 0.01 in the second half,
    training goes on to twice the steps, once. Beside it the same on random rows, which are kept in the store.
    Permuting latents changes nothing; rescaling them, or another number of threads, moves a long run as much as
    another rounding does, well within the dispersion over meta-seeds.
    Source: Korznikov et al. 2025 (arXiv 2509.22033); meta-SAEs: Bussmann et al. 2024, Leask et al. 2025
    (arXiv 2502.04878); `saebench` as in SAEBench (2025). Changes: 1: first version.

    Args:
        tokens: Evaluation tokens on which firings are counted (alive = at least 20 firings).
        steps: Training steps T.
        seeds: Meta-SAEs trained; the score is their mean.
        protocol: `saebench` takes all rows, drawn with replacement, without auxiliary loss or doubling; it is
            comparable at 1,500 steps.
        min_alive: Fewest latents for which there is an answer.
    """

    name: ClassVar[str] = "composition"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("korznikov2025ortsae", "leask2025metasae", "bussmann2024batchtopk")
    caveats: ClassVar[tuple[str, ...]] = (
        "compare only at equal d_in and numbers of alive latents within 2 %, with equal steps",
        "the score is that of a meta-SAE a quarter as wide with 4 codes a row, not a property of the dictionary alone",
        "a random dictionary is the most atomic of all: read it beside the random control and explained variance",
    )
    headline: ClassVar[tuple[str, ...]] = ("composition", "composition_random", "composition_minus_random")
    tokens: int = 16_384
    steps: int = 6_000
    seeds: int = 3
    protocol: Literal["ours", "saebench"] = "ours"
    min_alive: int = 64

    def __post_init__(self) -> None:
        if min(self.tokens, self.seeds) < 1 or self.steps < 2 or self.min_alive < _NARROWEST:
            raise UsageError(
                "composition needs tokens ≥ 1, steps ≥ 2, seeds ≥ 1 and min_alive ≥ 32", "see python -m bench tasks show composition"
            )

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        step = 4 * meta_sae.BATCH * ctx.lm.d_model / meta_sae.ROWS_PER_META_LATENT  # encoder product, doubled for the rest
        runs = 2 * 2 * self.steps * self.seeds  # the control too, and both may be doubled
        return Work({f"text {self.tokens}": ctx.text_cached(self.tokens)}, gflop_per_latent=runs * step / 1e9)

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        firings = ctx.text_codes(sae, ctx.text(self.tokens)).firing_counts()
        latents = np.flatnonzero((sae.norms > 0) & ((firings >= ACTIVE_FIRINGS) | (self.protocol == "saebench")))
        if len(latents) < self.min_alive:
            return NotApplicable(f"{len(latents)} latents are left to train a meta-SAE on; it needs {self.min_alive}")
        latents = latents[np.lexsort(sae.W_dec[latents].T[::-1])]  # an order that permuting the latents leaves as it is
        rows = torch.from_numpy(sae.W_dec[latents]).to(ctx.device)
        if float((rows - rows.mean(0)).square().sum(1).mean()) < _FLAT:
            return NotApplicable("all decoder rows point the same way")
        first = self._fit(lambda _: rows, self.steps, ctx)
        fit = self._fit(lambda _: rows, 2 * self.steps, ctx, first) if self.protocol == "ours" and first.drift > CONVERGED else first
        control = self._control(len(rows), sae.d_in, fit.steps, ctx)
        return self._result(latents, firings[latents], fit, control)

    def _fit(self, rows: Callable[[int], Tensor], steps: int, ctx: Context, earlier: _Fit | None = None) -> _Fit:
        """One meta-SAE per seed, measured half-way and at the end; `earlier` went half of the steps."""
        metas, halves, ends = [], [], []
        new = steps - (earlier.steps if earlier else 0)
        with progress.track("meta-SAEs", self.seeds * new, "steps") as advance:
            for s in range(self.seeds):
                if earlier is None:
                    seed = seed_of(ctx.seed, "composition", "meta", s)
                    meta = meta_sae.start(rows(s), seed, auxiliary=self.protocol == "ours", replacement=self.protocol == "saebench")
                    meta = meta_sae.train(meta, steps // 2, advance)
                    halves.append(meta_sae.explain(meta).score)
                else:
                    meta = earlier.metas[s]
                    halves.append(earlier.ends[s].score)
                metas.append(meta_sae.train(meta, steps, advance))
                ends.append(meta_sae.explain(metas[-1]))
        return _Fit(steps, tuple(metas), tuple(halves), tuple(ends))

    def _control(self, m: int, d: int, steps: int, ctx: Context) -> Mapping[str, np.ndarray]:
        """Scores on random rows, one dictionary per meta-seed; shared by SAEs with nearly as many latents."""
        m = nearly(m)

        def rows(s: int) -> Tensor:
            return unit(torch.randn(m, d, generator=torch_rng(ctx.seed, "composition", "random", s))).to(ctx.device)

        def compute() -> dict[str, np.ndarray]:
            fit = self._fit(rows, steps, ctx)
            return {"scores": np.array(fit.scores), "drift": np.array(fit.drift), "m": np.array(m)}

        own = {"task": f"{self.name}@{self.version}", "m": m, "d": d, "steps": steps, "seeds": self.seeds}
        return ctx.store.get("random_composition", {**own, "protocol": self.protocol, "seed": ctx.seed}, compute)

    def _result(self, latents: np.ndarray, firings: np.ndarray, fit: _Fit, control: Mapping[str, np.ndarray]) -> Result:
        n, score, level = len(latents), float(np.mean(fit.scores)), float(np.mean(control["scores"]))
        variance = fit.ends[0].variance.cpu().numpy()
        error = np.mean([e.error.cpu().numpy() for e in fit.ends], axis=0)
        explained = 1 - error / variance
        name = "composition" if self.protocol == "ours" else "saebench_composition"
        metrics = {
            name: _census(score, n, "lower", spread(explained)),
            f"{name}_random": _census(level, int(control["m"])),
            f"{name}_minus_random": _census(score - level, n, "lower"),
        }
        table, served = _members(fit.ends[0], latents)
        columns = {"latent": latents, "firings": firings, "variance": variance, "error": error, "explained": explained}
        by_index = np.argsort(latents)
        units = {k: v[by_index] for k, v in {**columns, "meta_latents": table}.items()}
        codes, m = fit.ends[0].codes, fit.metas[0].method.d_sae
        counts = {"latents": n, "meta_latents": m, "meta_latents_unused": m - len(codes.cols.unique()), "codes": len(codes.values)}
        details: dict[str, Any] = {"steps": fit.steps, "per_seed": list(fit.scores), "half_way": list(fit.halves)}
        if self.seeds > 1:
            details["sd_over_seeds"] = float(np.std(fit.scores, ddof=1))
        details |= {"random_per_seed": control["scores"].tolist(), "random_drift": float(control["drift"]), "largest_meta_latents": served}
        return Result(name, metrics, units, counts, self._warnings(fit, float(control["drift"])), details)

    def _warnings(self, fit: _Fit, random_drift: float) -> tuple[str, ...]:
        if self.protocol == "saebench":
            off = "" if self.steps == _SAEBENCH_STEPS else f"limited: SAEBench trains {_SAEBENCH_STEPS:,} steps, this ran {self.steps:,}"
            return (off,) if off else ()
        longer = (f"trained twice as long, {fit.steps:,} steps, because the score still moved",) if fit.steps != self.steps else ()
        moved = {"the score": fit.drift, "the random control": random_drift}
        said = "limited: {} still moved by {:.3f} from step {:,} to step {:,}"
        return longer + tuple(said.format(what, by, fit.steps // 2, fit.steps) for what, by in moved.items() if by > CONVERGED)


@dataclass(frozen=True)
class _Fit:
    """Meta-SAEs of all seeds after `steps` steps, their scores half-way, and how they decompose the rows at the end."""

    steps: int
    metas: tuple[MetaSAE, ...]
    halves: tuple[float, ...]
    ends: tuple[Explained, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(e.score for e in self.ends)

    @property
    def drift(self) -> float:
        return abs(float(np.mean(self.scores) - np.mean(self.halves)))


def nearly(m: int) -> int:
    """The nearest multiple of a power of two, within 1 % of m.

    Example:
        >>> nearly(3317), nearly(16380), nearly(48)
        (3328, 16384, 48)
    """
    grid = 2 ** max(0, int(np.log2(max(m / 50, 1))))
    return round(m / grid) * grid


def _members(e: Explained, latents: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Each latent's meta-latents as `index:code`, largest first; and the meta-latents that serve most latents."""
    rows, cols, values = (t.cpu().numpy() for t in (e.codes.rows, e.codes.cols, e.codes.values))
    best = np.argsort(-values, kind="stable")
    texts: list[list[str]] = [[] for _ in latents]
    for i in best:
        texts[rows[i]].append(f"{cols[i]}:{values[i]:.3f}")
    serves = np.bincount(cols)
    largest = np.argsort(-serves, kind="stable")[:_SHOWN]
    served = [
        {"meta_latent": int(j), "serves": int(serves[j]), "latents": latents[rows[best[cols[best] == j]]][:_SHOWN].tolist()}
        for j in largest
    ]
    return np.array([" ".join(t) for t in texts]), served


def _census(value: float, n: int, better: Better = "neither", over: tuple[float, float] | None = None) -> Metric:
    return Metric(float(value), n, "latent", "census", better, spread=over)
