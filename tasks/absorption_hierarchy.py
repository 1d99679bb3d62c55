"""Absorption in the hierarchy of nouns: does a child's latent (dog) swallow its parent's (animal)?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bench.context import Context
from bench.data.concepts import Concepts
from bench.data.hierarchy import BEGINNINGS
from bench.errors import UsageError
from bench.kernels.absorption import measure, pooled
from bench.kernels.folds import by_group, group_folds
from bench.kernels.hierarchy import hierarchy_cosines
from bench.kernels.statistics import mean_interval
from bench.lm.concepts import Hierarchy
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.types import Metric, NotApplicable, Result, Work
from tasks.absorption import stored_probes, summary

_FOLDS = 4
_FEWEST = 3  # groups outside a parent and inside it that its geometry needs


@dataclass(frozen=True)
class AbsorptionHierarchy:
    """The absorption scores with parents of WordNet as concepts and their children in sentences as items.

    Parents are probed on some children and judged on others (four folds by child), so a child's own word cannot
    carry the parent's score. Beside it the hierarchy's geometry in what the SAE gives back: cos(child − parent,
    parent), near 0 where a child's own part is orthogonal to its parent, against the same with a random parent.
    Source: our extension of Chanin et al. 2024; geometry after Park et al. 2024 (arXiv 2406.01506); WordNet
    (Miller 1995). Changes: 1: first version.

    Args:
        sentences: Beginnings of sentences that each child is read after.
        fewest: Parents with fewer one-token children are left out.
        parents: Most parents, those with most children; 0 takes all.
    """

    name: ClassVar[str] = "absorption_hierarchy"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("chanin2024", "park2024hierarchy", "miller1995wordnet")
    caveats: ClassVar[tuple[str, ...]] = (
        "no other suite has this task, so there are no published numbers to compare with",
        "a parent has few children, and a quarter of them choose its latents: on planted worlds the score is up to a third too high",
        "an untrained dictionary scores low because it has no parent latents: read it beside k1_f1 and the random control",
        "the geometry is that of the reconstruction: a language model without the hierarchy gives no orthogonality to find",
    )
    headline: ClassVar[tuple[str, ...]] = ("absorption_parent_fraction", "absorption_parent_full", "k1_f1", "hierarchy_cosine")
    sentences: int = 4
    fewest: int = 16
    parents: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.sentences <= len(BEGINNINGS) or self.fewest < 8 or self.parents < 0:
            raise UsageError(
                f"absorption_hierarchy needs 1 to {len(BEGINNINGS)} sentences and fewest ≥ 8",
                "see python -m bench tasks show absorption_hierarchy",
            )

    @property
    def request(self) -> Hierarchy:
        """The sentences to run."""
        return Hierarchy(self.sentences, self.fewest, self.parents)

    def data(self, ctx: Context) -> Mapping[str, str]:
        return {"sentences": self.request.sha256, "text": ctx.corpus.sha256}

    def work(self, ctx: Context) -> Work:
        return Work({f"sentences {self.request.sha256}": ctx.concepts_planned(self.request)})

    def run(self, sae: Canonical, ctx: Context) -> Result | NotApplicable:
        items = ctx.concepts(self.request)
        if len(items.names) < 2:
            return NotApplicable(f"{len(items.names)} parents have {self.fewest} children of one token")
        codes = ctx.codes(sae, items.x, dict(items.identity))
        fold = group_folds(items.group, items.labels & items.known, 2 * _FOLDS, ctx.rng("absorption_hierarchy", "folds"))
        parts = [_part(fold, k) for k in range(_FOLDS)]
        found = pooled(
            [measure(items.x, items.labels, items.known, p, stored_probes(ctx, items, p), codes.matrix, sae.W_dec) for p in parts]
        )
        result = summary(found, items, ctx, "parent")
        if isinstance(result, NotApplicable):
            return result
        return replace(result, metrics={**result.metrics, **_geometry(sae, codes, items, ctx)})


def _part(fold: np.ndarray, k: int) -> np.ndarray:
    """Of eight folds two are for testing and the next two for validation: a parent has few children."""
    return np.select([fold // 2 == k, fold // 2 == (k + 1) % _FOLDS], [2, 1], 0).astype(np.int8)


def _geometry(sae: Canonical, codes: Codes, items: Concepts, ctx: Context) -> dict[str, Metric]:
    """Mean over parents of the hierarchy cosine, with the own parent and with a random one."""
    names, child = np.unique(items.group, return_inverse=True)
    member = by_group(child, items.labels & items.known)
    outside = ~by_group(child, items.labels | ~items.known)
    usable = (member.sum(0) >= _FEWEST) & (outside.sum(0) >= _FEWEST)
    if not usable.any():
        return {}
    means = codes.pooled(child, len(names)).matrix.astype(np.float64) @ sae.W_dec.astype(np.float64)
    values = hierarchy_cosines(means, member[:, usable], outside[:, usable], ctx.rng("absorption_hierarchy", "geometry"))
    out: dict[str, Metric] = {}
    for name, value in zip(("hierarchy_cosine", "hierarchy_cosine_random_parent"), values, strict=True):
        interval = mean_interval(value, ctx.rng("absorption_hierarchy", name), -1.0, 1.0)
        out[name] = Metric(float(value.mean()), len(value), "parent", "shared", "neither", interval)
    return out
