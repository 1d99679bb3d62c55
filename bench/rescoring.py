"""Scores from a record's verdicts alone, and the agreement of two records' verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import registry
from bench.errors import UsageError
from bench.kernels.detection import cohens_kappa
from bench.record import Record, read_record, unit_rows

TOLERANCE = 1e-9
_SAME = ("latent", "list", "kind", "token")


def rescored(path: Path) -> dict[str, tuple[float, float]]:
    """Recorded and recomputed value of every metric that follows from the verdicts.

    Raises:
        UsageError: There is no such file, or the task keeps no verdicts.
        VerificationError: The record is damaged.
    """
    record, table = _opened(path)
    task = registry.pick("task", record.task.name, registry.tasks())
    if not hasattr(task, "rescored"):
        raise UsageError(f"{record.id} keeps no verdicts to score again", "rescore records of autointerp")
    again = task.rescored({k: [row[k] for row in table] for k in table[0]}, record.seed)
    return {k: (record.metrics[k].value, m.value) for k, m in again.items() if k in record.metrics}


def agreement(path: Path, other: Path) -> list[dict[str, Any]]:
    """Cohen's κ of two records' verdicts by list, on the windows of latents that both judged.

    Raises:
        UsageError: The records are of different SAEs or tasks, or share no verdict.
    """
    (a, mine), (b, theirs) = _opened(path), _opened(other)
    if _asked(a) != _asked(b):
        remedy = "give two records of one SAE at one site, with the same parameters, text and seed"
        raise UsageError(f"{path.name} and {other.name} are not about the same windows", remedy)
    said, also = _said(mine), _said(theirs)
    found: list[dict[str, Any]] = []
    for name in sorted({k[1] for k in said}):
        both = [k for k in said if k in also and k[1] == name]
        if both:
            x, y = (np.array([table[k] for k in both], dtype=bool) for table in (said, also))
            found.append({"list": name, "verdicts": len(both), "kappa": cohens_kappa(x, y)})
    if not found:
        raise UsageError(f"{path.name} and {other.name} share no verdict", "give records with the same tokens, protocol and seed")
    return found


def _asked(record: Record) -> tuple[Any, ...]:
    """All but the judge: what decides which windows are shown."""
    s = record.subject
    data = {k: v for k, v in record.data.items() if k != "judge"}
    return s.sha256, s.lm, s.revision, s.lm_dtype, s.hook, record.id, record.task.params, data, record.seed


def _said(table: list[dict[str, Any]]) -> Mapping[tuple[Any, ...], bool]:
    return {tuple(row[k] for k in _SAME): row["said"] for row in table if row.get("by") == "judge" and row["said"] is not None}


def _opened(path: Path) -> tuple[Record, list[dict[str, Any]]]:
    if not path.is_file():
        raise UsageError(f"no record at {path}", "give a record's .json file")
    record = read_record(path)
    table = unit_rows(path.parent, record)
    if not table:
        raise UsageError(f"{path} has no unit table", "give a record of a task with verdicts, such as autointerp")
    return record, table
