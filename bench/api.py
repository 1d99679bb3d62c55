"""`bench.evaluate`: the command line's path, from Python."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.record import Record, Records
from bench.runner import measure, workload
from bench.spec import make_spec
from bench.types import SAE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """Records of one call.

    Args:
        records: One per SAE and task, in order.
        folder: Where they are stored.
        errors: `sae task` → error, for what failed; path → error, for SAEs of a folder that cannot be read.
    """

    records: tuple[Record, ...]
    folder: Path
    errors: Mapping[str, BenchError]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per SAE, task and metric."""
        import pandas as pd

        rows = [
            {
                "sae": r.subject.name,
                "sha256": r.subject.sha256,
                "task": r.id,
                "metric": name,
                **m.model_dump(exclude={"interval", "spread"}),
                **_ends(m.interval),
            }
            for r in self.records
            for name, m in r.metrics.items()
        ]
        return pd.DataFrame(rows)

    def save(self, folder: str | Path) -> Path:
        """Copy the records, with their unit tables, into another folder."""
        source, target = Records(self.folder), Records(Path(folder).expanduser())
        if source.folder.resolve() == target.folder.resolve():
            return target.folder
        for r in self.records:
            here, there = source.path(r.subject, r.task, r.key), target.path(r.subject, r.task, r.key)
            there.parent.mkdir(parents=True, exist_ok=True)
            for name in ([r.units.file] if r.units else []) + [here.name]:  # the record last: it is whole once it is there
                shutil.copy2(here.with_name(name), there.with_name(name))
        return target.folder


def evaluate(sae: SAE | str | Path | Sequence[str], tasks: Sequence[str] = (), *, name: str = "", **settings: Any) -> Results:
    """Evaluate an SAE; what is already recorded is not measured again.

    Args:
        sae: An object with `encode`, `decode` and `W_dec` (`bench.testing.check_sae` says whether it will do); or references
            as for `--sae`.
        tasks: Task names; none means the suite's.
        name: Name of an object in tables; its class name by default.
        settings: Fields of `RunSpec`: suite, lm, hook, text, against, records, seed, limit, device, dtype, params.

    Returns:
        Records, with errors of tasks that failed.

    Raises:
        BenchError: The SAE, model or settings cannot be used at all.
    """
    references = (str(sae),) if isinstance(sae, str | Path) else tuple(sae) if isinstance(sae, list | tuple) else ()
    objects: dict[str, Any] = {} if references else {name or type(sae).__name__: sae}
    spec = make_spec({"sae": references, "tasks": tasks if isinstance(tasks, str) else tuple(tasks), **settings})
    todo = workload(spec, objects)
    done = list(measure(todo))
    errors = {f"{o.job.subject.name} {o.job.facts.name}": o.error for o in done if o.error}
    return Results(tuple(o.record for o in done if o.record), spec.records_folder, {**todo.refused, **errors})


def _ends(interval: tuple[float, float] | None) -> dict[str, float | None]:
    return {"low": interval[0] if interval else None, "high": interval[1] if interval else None}
