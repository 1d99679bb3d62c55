"""The part of an audit that reads records of SAEs of a language model: values, stages, minimum detectable difference.

Any SAE joins by being recorded: nothing here names a method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from bench.audit import statistics
from bench.audit.card import Basis, Detectable, MetricCard, Stages, Subject
from bench.audit.entries import Entry, Units
from bench.record import Record, Records, subject_task, unit_table
from bench.spec import RunSpec
from bench.store import digest

NEEDED = 2  # standard deviations of a difference that it must exceed where only reseed noise is known


@dataclass(frozen=True)
class Found:
    """Records of one task measured alike: same version, parameters, site and data.

    Args:
        records: By name of the SAE and seed.
        tables: Where each one's unit table lies.
    """

    records: Mapping[tuple[str, int], Record]
    tables: Mapping[tuple[str, int], Records]

    def units(self, name: str, seed: int, how: Units | None) -> Mapping[object, float]:
        """Value per unit of one record; empty where it cannot be had."""
        record = self.records.get((name, seed))
        if how is None or record is None or record.units is None:
            return {}
        rows = [r for r in unit_table(self.tables[name, seed], record) if all(r[k] == v for k, v in how.where.items())]
        return unit_values(rows, how)


def alike(task: str, version: int, folders: Sequence[Records], pair: tuple[str, str], sizes: Mapping[str, Any] | None = None) -> Found:
    """The records that were measured alike: the group of these sizes, with the pair in it, with most SAEs, with most units.

    Args:
        task: Task name.
        version: Its version.
        folders: Where to look; what is found in several is taken from the first. Where two SAEs have one name, the
            later one's has the beginning of its hash behind it.
        pair: Names of the SAEs that are compared.
        sizes: Parameters that are wanted, where there are such records.
    """
    groups: dict[str, dict[tuple[str, int], tuple[Record, Records]]] = {}
    for folder in folders:
        for r in folder.scan()[0]:
            if (r.task.name, r.task.version, r.outcome) != (task, version, "ok"):
                continue
            site = [r.subject.lm, r.subject.revision, r.subject.lm_dtype, r.subject.hook]
            group = groups.setdefault(digest([r.task.params, r.data, site]), {})
            held = group.get((r.subject.name, r.seed))
            other = held is not None and held[0].subject.sha256 != r.subject.sha256
            name = f"{r.subject.name} {r.subject.sha256[:8]}" if other else r.subject.name
            group.setdefault((name, r.seed), (r, folder))

    def rank(item: tuple[str, dict[tuple[str, int], tuple[Record, Records]]]) -> tuple[bool, int, int, int, str]:
        identity, group = item
        units = sum(r.units.rows for r, _ in group.values() if r.units)
        wanted = all(r.task.params == sizes for r, _ in group.values())
        return wanted, sum((name, 0) in group for name in pair), len(group), units, identity

    best = max(groups.items(), key=rank)[1] if groups else {}
    return Found({k: r for k, (r, _) in best.items()}, {k: f for k, (_, f) in best.items()})


def standard_sizes() -> Mapping[str, Mapping[str, Any]]:
    """Parameters of every task in the suite `standard`."""
    return {t.name: subject_task(t).params for t in RunSpec().built_tasks()}


def unit_values(rows: Sequence[Mapping[str, object]], how: Units) -> dict[object, float]:
    """Value per unit from rows of a unit table; of a ratio, its pseudo-values by row."""
    if not rows:
        return {}

    def column(name: str) -> np.ndarray:
        return np.array([r[name] for r in rows], dtype=np.float64)

    def difference(first: str, less: str) -> np.ndarray:
        return column(first) - (column(less) if less else 0.0)

    values = difference(how.value, how.less)
    keys = [tuple(r[k] for k in how.keys) or (i,) for i, r in enumerate(rows)]
    if how.over:
        weight = difference(how.over, how.over_less)
        held = np.flatnonzero(weight != 0)  # rows without weight were not measured: losses are on a part of the documents
        values, keys = statistics.pseudo_values(values[held], weight[held]), [keys[i] for i in held]
    return statistics.grouped(keys, values)


def with_records(card: MetricCard, entry: Entry, metric: str, found: Found, names: tuple[tuple[str, str], tuple[str, ...]]) -> MetricCard:
    """The card with values of recorded SAEs and the minimum detectable difference between the pair.

    Args:
        card: What is known so far.
        entry: What is audited.
        metric: Which metric.
        found: Records.
        names: The pair whose difference is taken, and the names of controls.
    """
    pair, controls = names
    subjects = tuple(
        Subject(name, r.subject.sha256, r.metrics[metric].value, name in controls, r.metrics[metric].interval)
        for (name, seed), r in sorted(found.records.items())
        if seed == 0 and metric in r.metrics
    )
    missing = {k: v for k, v in card.missing.items() if k != "real"}
    if not subjects:
        missing["real"] = f"no records of {entry.task}.{metric} at this version"
    detectable = _detectable(entry, metric, found, pair) or card.detectable
    if detectable is not None:
        missing.pop("detectable", None)
    return replace(card, subjects=subjects, detectable=detectable, missing=missing)


def with_stages(card: MetricCard, entry: Entry, metric: str, found: Found, runs: Mapping[str, Sequence[str]]) -> MetricCard:
    """The card with the discriminability between training stages.

    Args:
        card: What is known so far.
        entry: What is audited.
        metric: Which metric.
        found: Records of the stages.
        runs: Names of the stages of every training run, in order.
    """
    held = {run: [n for n in names if (n, 0) in found.records and metric in found.records[n, 0].metrics] for run, names in runs.items()}
    held = {run: names for run, names in held.items() if len(names) > 1}
    missing = {k: v for k, v in card.missing.items() if k != "stages"}
    if not held:
        return replace(card, missing={**missing, "stages": f"no run has two stages with {metric}"})
    decisions: list[bool] = []
    bases: list[Basis] = []
    for names in held.values():
        for a, b in combinations(names, 2):
            difference = found.records[a, 0].metrics[metric].value - found.records[b, 0].metrics[metric].value
            how = entry.units.get(metric)
            paired = statistics.told_apart(found.units(a, 0, how), found.units(b, 0, how))
            noise = card.noise.sd if card.noise else 0.0
            decisions.append(abs(difference) > NEEDED * np.sqrt(2) * noise if paired is None else paired)
            bases.append("reseed noise" if paired is None else "paired units")
    values = {run: tuple(found.records[n, 0].metrics[metric].value for n in names) for run, names in held.items()}
    basis = Counter(bases).most_common(1)[0][0]
    return replace(card, stages=Stages(values, len(decisions), sum(map(bool, decisions)), basis), missing=missing)


def _detectable(entry: Entry, metric: str, found: Found, pair: tuple[str, str]) -> Detectable | None:
    """From the paired differences of the two SAEs over common units."""
    a, b = (found.units(name, 0, entry.units.get(metric)) for name in pair)
    differences = statistics.paired(a, b)
    if len(differences) < 2:
        return None
    value = statistics.detectable(statistics.paired_error(differences), len(differences) - 1)
    return Detectable(value, len(differences), "paired units", pair)
