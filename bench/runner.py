"""The only evaluation loop: SAEs × tasks → records; what is already recorded is not measured again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench import interrupts, progress, provenance
from bench.context import Context
from bench.errors import BenchError, ResourceError, UsageError
from bench.lm.harvest import out_of_memory
from bench.record import Record, Records, SubjectFacts, TaskFacts, make_record, record_key, subject_task
from bench.references import published_records
from bench.sae.canonical import Canonical
from bench.spec import RunSpec
from bench.subjects import Subject, lineup
from bench.types import SAE, NotApplicable
from bench.worlds.context import NoLanguageModelError

_NO_MEMORY = ResourceError("out of memory", "use --limit, a smaller suite, or another --device")


@dataclass(frozen=True)
class Job:
    """One measurement to make: a task on an SAE.

    Args:
        subject: Facts of the SAE and its site.
        opener: Opens the SAE, canonical.
        task: Task object.
        facts: Its name, version, parameters.
        data: Identities of the data it reads.
        key: Record key.
        context: What the task is given.
        notes: Warnings about the subject that go into the record.
    """

    subject: SubjectFacts
    opener: Callable[[], Canonical]
    task: Any
    facts: TaskFacts
    data: Mapping[str, str]
    key: str
    context: Context
    notes: tuple[str, ...] = ()

    @property
    def sae(self) -> Canonical:
        """The SAE, canonical."""
        return self.opener()


@dataclass(frozen=True)
class Workload:
    """Everything a run has to do.

    Args:
        jobs: Measurements, in order.
        refused: Path → why, of SAEs in a folder of several that cannot be read.
        records: Where results are and go.
    """

    jobs: tuple[Job, ...]
    refused: Mapping[str, BenchError]
    records: Records


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a record, measured now or found; or an error."""

    job: Job
    record: Record | None
    found: bool = False
    error: BenchError | None = None


def workload(spec: RunSpec, objects: Mapping[str, SAE] | None = None) -> Workload:
    """What a run has to do; arguments and errors as of `bench.subjects.lineup`, and UsageError for an unknown task."""
    tasks = spec.built_tasks()
    found = lineup(spec, objects)
    return Workload(tuple(_job(s, t) for s in found.subjects for t in tasks), found.refused, Records(spec.records_folder))


def measure(todo: Workload) -> Iterator[Outcome]:
    """Measure what is not recorded yet, one outcome at a time; each record is on disk before its outcome is yielded.

    Raises:
        UsageError: The records would go among the published ones.
    """
    records = todo.records
    if records.folder.resolve() == published_records().folder.resolve():
        raise UsageError("the published records are read-only", "choose another --records folder")
    for job in todo.jobs:
        interrupts.check()
        if (found := records.find(job.subject, job.facts, job.key)) is not None:
            yield Outcome(job, found, found=True)
            continue
        progress.note("measuring", sae=job.subject.name, task=f"{job.facts.name}@{job.facts.version}")
        try:
            yield Outcome(job, _measure(job, records))
        except BenchError as e:
            yield Outcome(job, None, error=e)
        except Exception as e:  # a defect in one task must not cost the others their results
            if os.environ.get("ORTSAE_DEBUG"):
                raise
            if out_of_memory(e):
                yield Outcome(job, None, error=_NO_MEMORY)
                continue
            yield Outcome(
                job, None, error=BenchError(f"{type(e).__name__}: {e}", "run with ORTSAE_DEBUG=1 for the traceback and report it")
            )


def _measure(job: Job, records: Records) -> Record:
    start, spent = time.perf_counter(), job.context.judge.spending
    try:
        answer = job.task.run(job.sae, job.context)
    except NoLanguageModelError as e:
        answer = NotApplicable(e.cause)
    facts = {
        "code": provenance.code_version(),
        "environment": provenance.environment(job.context.device),
        "seconds": round(time.perf_counter() - start, 3),
        "peak_memory_mib": provenance.peak_memory_mb(),
        "measured_at": provenance.now(),
        **provenance.judge(job.context.judge.spending, spent),
    }
    record = make_record(job.subject, job.facts, job.data, job.context.seed, answer, facts)
    record = record.model_copy(update={"warnings": [*job.notes, *record.warnings]})
    return records.write(record, getattr(answer, "units", {}))


def _job(subject: Subject, task: Any) -> Job:
    facts, data = subject_task(task), task.data(subject.context)
    key = record_key(subject.facts, facts, data, subject.context.seed)
    return Job(subject.facts, subject.opener, task, facts, data, key, subject.context, subject.notes)
