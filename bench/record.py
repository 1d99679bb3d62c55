"""One measurement, one immutable file: `<records>/<task>@<version>/<subject>-<key12>.json` and its unit table.

The key hashes what was measured (weights, site, task, version, parameters, data, seed); the checksum hashes the
whole record. The unit table is a Parquet file beside it, written first, whose SHA-256 the record holds. Files are
written to a temporary name, synced and renamed, so a reader sees a whole record or none.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from bench.errors import ResourceError, VerificationError
from bench.store import digest, file_sha256
from bench.types import Metric, NotApplicable, Result

SCHEMA = 1
_LOCK = ".lock"
Outcome = Literal["ok", "not_applicable"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")  # so that NaN is refused, not null


class SubjectFacts(_Strict):
    """Which SAE, at which place of which model."""

    name: str
    sha256: str
    format: str
    architecture: str
    d_in: int
    d_sae: int
    lm: str
    revision: str
    lm_dtype: str
    hook: str


class TaskFacts(_Strict):
    """Which question, with which parameters."""

    name: str
    version: int
    params: dict[str, Any]


class MetricFacts(_Strict):
    """One number."""

    value: FiniteFloat
    n: int
    unit: str
    unit_class: Literal["shared", "own", "census"]
    better: Literal["higher", "lower", "neither"]
    interval: tuple[FiniteFloat, FiniteFloat] | None = None
    spread: tuple[FiniteFloat, FiniteFloat] | None = None


class UnitsFacts(_Strict):
    """The per-unit table beside the record."""

    file: str
    sha256: str
    rows: int
    columns: list[str]


class Record(_Strict):
    """One measurement; see the module's docstring."""

    schema_version: Literal[1] = SCHEMA
    key: str
    subject: SubjectFacts
    task: TaskFacts
    data: dict[str, str]
    seed: int
    outcome: Outcome
    reason: str = ""
    main: str = ""
    metrics: dict[str, MetricFacts] = {}
    counts: dict[str, int] = {}
    warnings: list[str] = []
    details: dict[str, Any] = {}
    units: UnitsFacts | None = None
    provenance: dict[str, Any] = {}
    checksum: str = ""

    @property
    def id(self) -> str:
        """`task@version`."""
        return f"{self.task.name}@{self.task.version}"


def record_key(subject: SubjectFacts, task: TaskFacts, data: Mapping[str, str], seed: int) -> str:
    """SHA-256 of what is measured; names and file formats do not enter."""
    what = subject.model_dump(include={"sha256", "lm", "revision", "lm_dtype", "hook"})
    return digest([SCHEMA, what, task.model_dump(mode="json"), dict(data), seed])


@dataclass(frozen=True)
class Records:
    """A folder of records.

    Args:
        folder: Made when the first record is written.
    """

    folder: Path

    def find(self, subject: SubjectFacts, task: TaskFacts, key: str) -> Record | None:
        """The record of that key, verified, or None; a damaged one counts as absent and is reported by `scan`."""
        path = self.path(subject, task, key)
        try:
            return read_record(path) if path.exists() else None
        except VerificationError:
            return None

    def scan(self) -> tuple[list[Record], list[str]]:
        """Every readable record, and one line about each that is not."""
        good: list[Record] = []
        bad: list[str] = []
        for path in sorted(self.folder.glob("*@*/*.json")):
            try:
                good.append(read_record(path))
            except VerificationError as e:
                bad.append(e.cause)
        return good, bad

    def write(self, record: Record, units: Mapping[str, Any]) -> Record:
        """Store a record and its unit table; returns the record as stored.

        Raises:
            ResourceError: The folder cannot be written.
        """
        path = self.path(record.subject, record.task, record.key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / _LOCK):  # the two files of a record must be from one writer
                if units:
                    record = record.model_copy(update={"units": _write_units(path.with_suffix(".parquet"), units)})
                record = record.model_copy(update={"checksum": _checksum(record.model_dump(mode="json"))})
                text = json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
                _atomic(path, (text + "\n").encode())
        except OSError as e:
            full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ResourceError(
                f"cannot write {path}: {e.strerror}", "free space and run again" if full else "choose another --records folder"
            ) from e
        return record

    def path(self, subject: SubjectFacts, task: TaskFacts, key: str) -> Path:
        """Where a record of that key lies."""
        slug = re.sub(r"[^A-Za-z0-9._]+", "_", subject.name).strip("._")[:60] or "sae"
        return self.folder / f"{task.name.replace('/', '_')}@{task.version}" / f"{slug}-{key[:12]}.json"


def read_record(path: Path) -> Record:
    """One record, checked: schema, key, and the unit table's hash.

    Raises:
        VerificationError: It is damaged, forged, or from a newer version.
    """
    remedy = "remove the file and run again"
    try:
        raw = json.loads(path.read_text(encoding="utf8"))
        newer = isinstance(raw, dict) and isinstance(raw.get("schema_version"), int) and raw["schema_version"] > SCHEMA
        if newer:
            raise VerificationError(f"{path} has schema {raw['schema_version']}, this version reads up to {SCHEMA}", "update ortsae-bench")
        record = Record.model_validate(raw)
        whole = record.checksum == _checksum(raw)
    except (OSError, ValueError, ValidationError, RecursionError) as e:
        reason = f"{e.errors()[0]['loc']} {e.errors()[0]['msg']}" if isinstance(e, ValidationError) else str(e).splitlines()[0]
        raise VerificationError(f"{path} is not a record: {reason}", remedy) from e
    if record.key != record_key(record.subject, record.task, record.data, record.seed):
        raise VerificationError(f"{path}: its key does not follow from its contents", remedy)
    if not whole:
        raise VerificationError(f"{path}: its contents do not match its checksum", remedy)
    if record.units is not None:
        table = path.parent / Path(record.units.file).name
        try:
            whole = file_sha256(table) == record.units.sha256
        except OSError:
            whole = False
        if not whole:
            raise VerificationError(f"{path}: its unit table is missing or damaged", remedy)
    return record


def subject_task(task: Any) -> TaskFacts:
    """Name, version and parameters of a task object."""
    return TaskFacts(name=task.name, version=task.version, params=json.loads(json.dumps(asdict(task))))


def make_record(
    subject: SubjectFacts,
    task: TaskFacts,
    data: Mapping[str, str],
    seed: int,
    answer: Result | NotApplicable,
    provenance: Mapping[str, Any],
) -> Record:
    """A record of an answer, unit table not yet written."""
    base: dict[str, Any] = {
        "key": record_key(subject, task, data, seed),
        "subject": subject,
        "task": task,
        "data": dict(data),
        "seed": seed,
    }
    if isinstance(answer, NotApplicable):
        return Record(**base, outcome="not_applicable", reason=answer.reason, provenance=dict(provenance))
    return Record(
        **base,
        outcome="ok",
        main=answer.main,
        metrics={k: _metric_facts(m) for k, m in answer.metrics.items()},
        counts={k: int(v) for k, v in answer.counts.items()},
        warnings=list(answer.warnings),
        details=dict(answer.details),
        provenance=dict(provenance),
    )


def unit_table(
    records: Records, record: Record, columns: Sequence[str] | None = None, latents: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a record's unit table.

    Args:
        records: Where the record lies.
        record: Which.
        columns: Only these.
        latents: Only rows about these latents.
    """
    yield from unit_rows(records.path(record.subject, record.task, record.key).parent, record, columns, latents)


def unit_rows(
    folder: Path, record: Record, columns: Sequence[str] | None = None, latents: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The same, of a record that lies in the given folder."""
    import pyarrow.parquet as pq

    if record.units is None:
        return []
    only = None if latents is None else [("latent", "in", list(latents))]
    path = folder / Path(record.units.file).name
    return pq.read_table(path, columns=None if columns is None else list(columns), filters=only).to_pylist()


def _checksum(raw: Mapping[str, Any]) -> str:
    """Detects damage, not forgery: whoever edits a record can compute it again."""
    return digest({k: v for k, v in raw.items() if k != "checksum"})


def _metric_facts(m: Metric) -> MetricFacts:
    return MetricFacts(value=m.value, n=m.n, unit=m.unit, unit_class=m.unit_class, better=m.better, interval=m.interval, spread=m.spread)


def _write_units(path: Path, units: Mapping[str, Any]) -> UnitsFacts:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({k: np.asarray(v) if not isinstance(v, list) else pa.array(v) for k, v in units.items()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    _atomic(path, buffer.getvalue().to_pybytes())
    return UnitsFacts(file=path.name, sha256=file_sha256(path), rows=table.num_rows, columns=table.column_names)


def _atomic(path: Path, content: bytes) -> None:
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with work.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        work.replace(path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
