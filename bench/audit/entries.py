"""Which metric is audited on which planted world with which defect: `leaderboard/audits.toml`, data only."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bench import registry
from bench.errors import UsageError
from bench.store import digest

Side = Literal["higher", "lower"]
Truth = Literal["rate", "kept", "distinct"]


@dataclass(frozen=True)
class Units:
    """How a metric's value per unit follows from a record's unit table.

    Rows that fit `where` have the value `value` (less the column `less`, where given). The mean is taken over rows of
    equal keys, from the last key to the first; the first key is the unit. With `over` the metric is the ratio
    Σ value / Σ over, and each row is a unit.

    Args:
        value: Column of the value.
        keys: Columns that name a unit, the unit first; empty: every row is one.
        less: Column that is subtracted.
        over: Column of the denominator of a ratio of sums.
        over_less: Column that is subtracted from that.
        where: Column → value that rows must have.
    """

    value: str
    keys: tuple[str, ...] = ()
    less: str = ""
    over: str = ""
    over_less: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """The audit of one task.

    Args:
        task: Its name.
        metrics: Metrics audited, the main one first.
        world: Reference of a planted world; its seed is set by the protocol.
        defect: The defect that the metrics should see.
        absent: A defect that they should not see.
        params: Parameters of the task that fit the world.
        worse: Direction in which a metric without one gets worse.
        truth: What a metric estimates: the `rate` of the defect, `kept` (1 − rate), or the number of `distinct` features.
        units: Unit tables, by metric.
        note: What a reader of the card must know.
    """

    task: str
    metrics: tuple[str, ...]
    world: str
    defect: str
    absent: str
    params: Mapping[str, Any] = field(default_factory=dict)
    worse: Mapping[str, Side] = field(default_factory=dict)
    truth: Mapping[str, Truth] = field(default_factory=dict)
    units: Mapping[str, Units] = field(default_factory=dict)
    note: str = ""

    @cached_property
    def sha256(self) -> str:
        """Identity of what the entry gives; a card holds it. What is left at its default does not enter."""
        return digest(_given(asdict(self)))


@dataclass(frozen=True)
class Audits:
    """All of `audits.toml`.

    Args:
        controls: Names of SAEs that are null controls.
        pair: The two SAEs whose difference gives the minimum detectable difference.
        tasks: Entries by task.
        without: Tasks without an entry, and why.
    """

    controls: tuple[str, ...]
    pair: tuple[str, str]
    tasks: Mapping[str, Entry]
    without: Mapping[str, str] = field(default_factory=dict)


def audits(path: Path | None = None) -> Audits:
    """Every entry.

    Args:
        path: A file other than the suite's own.

    Raises:
        UsageError: The file cannot be used.
    """
    from pydantic import TypeAdapter, ValidationError

    path = path or registry.package_folder("leaderboard") / "audits.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf8"))
        entries = {name: {"task": name, **entry} for name, entry in raw.pop("tasks").items()}
        _known(raw, "audits", {"controls", "pair", "without"})
        for name, entry in entries.items():
            _known(entry, name, set(Entry.__dataclass_fields__))
            for metric, units in entry.get("units", {}).items():
                _known(units, f"{name}.units.{metric}", set(Units.__dataclass_fields__))
        found = TypeAdapter(Audits).validate_python({**raw, "tasks": entries})
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ValidationError) as e:
        raise UsageError(f"{path} holds no audits: {str(e).splitlines()[0]}", "see leaderboard/audits.toml of the suite") from e
    return found


def chosen(metric: str, known: Audits) -> tuple[Entry, tuple[str, ...]]:
    """The entry of `task` or `task.metric`, and the metrics asked for.

    Raises:
        UsageError: No such task, or it has no audit.
    """
    name, _, own = metric.partition(".")
    if name in known.without:
        raise UsageError(f"{name} has no audit: {known.without[name]}", f"audited: {', '.join(known.tasks)}")
    entry = registry.pick("audit", name, known.tasks)
    return entry, (own,) if own else entry.metrics


def _given(value: Any) -> Any:
    """Plain data without empty parts."""
    if isinstance(value, dict):
        return {k: _given(v) for k, v in value.items() if v not in ("", (), {})}
    return value


def _known(given: Mapping[str, Any], where: str, names: set[str]) -> None:
    if wrong := set(given) - names:
        raise ValueError(f"{where} has no {', '.join(sorted(wrong))}")
