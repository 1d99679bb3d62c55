"""A metric card: what an audit found, as plain data. Parts that were not measured are absent and named in `missing`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.audit.entries import Side
from bench.types import UnitClass

SCHEMA = 1
Interval = tuple[float, float]
Basis = Literal["paired units", "reseed noise"]


@dataclass(frozen=True)
class Planted:
    """Planted against measured, one line per seed; every seed is another world.

    Args:
        doses: Doses asked for.
        rates: [seed][dose] true rate of the defect.
        truth: [seed][dose] what the metric should follow: the rate, or the quantity it estimates.
        measured: [seed][dose] the metric.
        slope: Of the least-squares line of measured on truth over all cells.
        intercept: Of that line.
        max_error: Largest distance of a cell from that line.
        truth_error: Largest distance of a cell from the truth, where the metric estimates it.
        spearman_min: Smallest rank correlation of one seed, counted so that 1 is right.
        spearman_enough: Seeds at 0.9 or above.
        ranked_right: Seeds in which the SAE with 10 % of the defect is worse than the good one.
        l0_change: Largest relative change of L0 at 10 %.
        ev_change: Largest absolute change of explained variance at 10 %.
        left_out: Seeds in which the metric had no answer somewhere.
    """

    doses: tuple[float, ...]
    rates: tuple[tuple[float, ...], ...]
    truth: tuple[tuple[float, ...], ...]
    measured: tuple[tuple[float, ...], ...]
    slope: float
    intercept: float
    max_error: float
    spearman_min: float
    spearman_enough: int
    ranked_right: int
    l0_change: float
    ev_change: float
    left_out: int = 0
    truth_error: float | None = None


@dataclass(frozen=True)
class Absence:
    """Where the defect is absent and another one is present at 10 %.

    Args:
        defect: The other defect.
        moved: Change of the metric against the good SAE, one per seed.
        own: The same change where the metric's own defect is present, one per seed.
        allowed: Half-width of the metric's 95 % interval at 10 % of its own defect, mean over seeds; for metrics
            without an interval, what reseeding alone may change.
        basis: Which of the two.
        within: Seeds in which it moves by no more than that.
    """

    defect: str
    moved: tuple[float, ...]
    own: tuple[float, ...]
    allowed: float
    basis: Literal["interval", "reseed noise"]
    within: int


@dataclass(frozen=True)
class Noise:
    """Values of one fixed SAE under other seeds of the task.

    Args:
        values: One per seed.
        sd: Their standard deviation.
        on: Which SAE.
    """

    values: tuple[float, ...]
    sd: float
    on: str


@dataclass(frozen=True)
class Subject:
    """One SAE of a language model, from a record."""

    name: str
    sha256: str
    value: float
    control: bool
    interval: Interval | None = None


@dataclass(frozen=True)
class Stages:
    """How many pairs of training stages of one SAE the metric tells apart.

    Args:
        runs: Stage values by training run, in order of training.
        pairs: Pairs of stages of one run.
        told_apart: Pairs whose difference exceeds its noise.
        basis: What the noise is.
    """

    runs: Mapping[str, tuple[float, ...]]
    pairs: int
    told_apart: int
    basis: Basis


@dataclass(frozen=True)
class Detectable:
    """Smallest true difference found with power 0.8 at α = 0.05 (`bench.audit.statistics.detectable`).

    Args:
        value: In the units of the metric.
        n: Units, or seeds of the noise.
        basis: Where its error is from.
        between: The SAEs compared.
    """

    value: float
    n: int
    basis: Basis
    between: tuple[str, ...]


@dataclass(frozen=True)
class MetricCard:
    """All that is known of one metric.

    Args:
        worse: Direction in which it gets worse.
        unit: Its unit.
        unit_class: `shared`, `own` or `census`.
        planted: Planted against measured.
        absence: Response to another defect.
        noise: Reseed noise on a fixed SAE.
        control: Value of the random dictionary on the first world.
        subjects: SAEs of the language model, controls among them.
        stages: Discriminability between training stages.
        detectable: Minimum detectable difference.
        missing: Part → why it is not here.
        verdict: What does not hold, one sentence each; empty if all does.
    """

    worse: Side
    unit: str
    unit_class: UnitClass
    planted: Planted | None = None
    absence: Absence | None = None
    noise: Noise | None = None
    control: float | None = None
    subjects: tuple[Subject, ...] = ()
    stages: Stages | None = None
    detectable: Detectable | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    verdict: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """The card of one task.

    Args:
        task: Task name.
        version: Its version when it was audited.
        entry_sha256: Identity of the entry of `audits.toml`.
        world: World of the planted part.
        defect: Defect that was planted.
        params: Parameters of the task.
        metrics: Cards by metric, the main one first.
        note: What a reader must know.
        measured_with: Versions of what can move the numbers.
        schema_version: Of this form.
    """

    task: str
    version: int
    entry_sha256: str
    world: str
    defect: str
    params: Mapping[str, Any]
    metrics: Mapping[str, MetricCard]
    note: str = ""
    measured_with: Mapping[str, str] = field(default_factory=dict)
    schema_version: Literal[1] = SCHEMA

    @property
    def id(self) -> str:
        """`task@version`."""
        return f"{self.task}@{self.version}"
