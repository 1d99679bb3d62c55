"""The nouns: SAE, Task, Metric, Result, NotApplicable. Frozen; imports nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

UnitClass = Literal["shared", "own", "census"]
Better = Literal["higher", "lower", "neither"]
Column = Sequence[Any] | np.ndarray


@runtime_checkable
class SAE(Protocol):
    """What a third party implements, and nothing more.

    `W_dec` has one decoder row per latent, [d_sae, d_in]; its shape is the SAE's. `encode` maps [n, d_in] to codes
    [n, d_sae]; `decode` maps codes back to [n, d_in]. `bench.testing.check_sae` says whether an object does so.
    """

    @property
    def W_dec(self) -> Tensor: ...  # noqa: N802 — the field's name for it
    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, f: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Metric:
    """One number and how sure it is.

    Args:
        value: Finite.
        n: Number of units behind it.
        unit: What one unit is: document, source family, latent.
        unit_class: `shared` units pair two SAEs; `own` units do not; a `census` has no within-dictionary error.
        better: Which direction is better.
        interval: 95 % interval, or None where none can be had.
        spread: For a census: 5th and 95th percentile over latents; not an interval.

    Raises:
        ValueError: A number is not finite.
    """

    value: float
    n: int
    unit: str
    unit_class: UnitClass
    better: Better = "neither"
    interval: tuple[float, float] | None = None
    spread: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.value, *(self.interval or ()), *(self.spread or ()))):
            raise ValueError(f"a metric must be finite, got {self.value} {self.interval} {self.spread}")


@dataclass(frozen=True)
class Result:
    """What a task answers.

    Args:
        main: Name of the metric to look at first.
        metrics: All metrics by name.
        units: Per-unit table, column name → values; scores can be computed again from it.
        counts: What was used, dropped or failed, by name.
        warnings: Sentences printed beside the numbers.
        details: Small JSON-like extras (curves, histograms).
    """

    main: str
    metrics: Mapping[str, Metric]
    units: Mapping[str, Column] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.main not in self.metrics:
            raise ValueError(f"main metric {self.main!r} is not among {sorted(self.metrics)}")
        if len({len(c) for c in self.units.values()}) > 1:
            raise ValueError("columns of the unit table differ in length")


@dataclass(frozen=True)
class NotApplicable:
    """A task has no answer for this SAE; the reason is shown and nothing is counted as failed."""

    reason: str


@dataclass(frozen=True)
class Work:
    """What a task asks of the language model.

    Args:
        read: Name of what is read → tokens in all and tokens already stored.
        tail: Tokens that run through the layers after the hook and the unembedding.
        gflop_per_latent: Arithmetic beyond the language model and the codes that grows with the number of latents.
        calls: How many questions go to a judge, with a typical one of each kind.
    """

    read: dict[str, tuple[int, int]]
    tail: int = 0
    gflop_per_latent: float = 0.0
    calls: tuple[tuple[int, Any], ...] = ()


@runtime_checkable
class Task(Protocol):
    """One question. A frozen dataclass whose fields are its parameters.

    `name` and `version` identify it; `sources` are citations (BibTeX keys of `bench.citations`); `caveats` are
    known weaknesses, printed beside the number; `headline` are the metrics shown first.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    sources: ClassVar[tuple[str, ...]]
    caveats: ClassVar[tuple[str, ...]]
    headline: ClassVar[tuple[str, ...]]

    def data(self, ctx: Any) -> Mapping[str, str]:
        """Identities of the data read, name → hash; part of the record's key, so nothing is computed for it."""
        ...

    def work(self, ctx: Any) -> Work:
        """What it asks of the language model; for `plan`."""
        ...

    def run(self, sae: Any, ctx: Any) -> Result | NotApplicable: ...
