"""The only evaluation loop: SAEs × tasks → records; what is already recorded is not measured again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from bench import interrupts, progress, provenance
from bench.adapters import Given
from bench.context import Context, site_facts
from bench.data.text import open_corpus
from bench.errors import BenchError, CheckpointError, ResourceError, UsageError
from bench.judge import open_judge
from bench.lm import identity, lm_reference, open_lm
from bench.lm.harvest import out_of_memory
from bench.lm.hf import LanguageModel
from bench.lm.hooks import parse_hook
from bench.record import Record, Records, SubjectFacts, TaskFacts, make_record, record_key, subject_task
from bench.references import open_sae, published_records
from bench.sae.canonical import Canonical
from bench.sae.checkpoint import Loaded
from bench.spec import RunSpec
from bench.store import Store
from bench.testing import check_sae
from bench.types import SAE, NotApplicable
from bench.worlds.context import NoLanguageModelError, WorldContext, world_context, world_site
from bench.worlds.names import is_world, open_world

_NO_MEMORY = ResourceError("out of memory", "use --limit, a smaller suite, or another --device")


@dataclass(frozen=True)
class Job:
    """One measurement to make: a task on an SAE.

    Args:
        subject: Facts of the SAE and its site.
        sae: The SAE, canonical.
        task: Task object.
        facts: Its name, version, parameters.
        data: Identities of the data it reads.
        key: Record key.
        context: What the task is given.
        notes: Warnings about the subject that go into the record.
    """

    subject: SubjectFacts
    sae: Canonical
    task: Any
    facts: TaskFacts
    data: Mapping[str, str]
    key: str
    context: Context
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a record, measured now or found; or an error."""

    job: Job
    record: Record | None
    found: bool = False
    error: BenchError | None = None


def pick_device(name: str) -> str:
    """A torch device; `auto` takes a GPU when there is one.

    Raises:
        UsageError: No such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {name!r}", "use auto, cpu or cuda")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        raise UsageError(f"no GPU for --device {name}", "use --device cpu")
    return name


@dataclass(frozen=True)
class Subject:
    """An SAE at its site, ready to be measured.

    Args:
        facts: Of the SAE and its site.
        sae: The SAE, canonical.
        context: What a task is given.
        notes: Warnings about how it was opened.
    """

    facts: SubjectFacts
    sae: Canonical
    context: Context
    notes: tuple[str, ...] = ()


def jobs(spec: RunSpec, objects: Mapping[str, SAE] | None = None) -> list[Job]:
    """Every measurement of a run, in order. Opens checkpoints, and a language model only if its identity needs it.

    Args:
        spec: The run.
        objects: SAEs given as Python objects, by name.

    Raises:
        BenchError: A reference, checkpoint, model or parameter is unusable.
    """
    tasks = spec.built_tasks()
    return [_job(s, t) for s in subjects(spec, objects) for t in tasks]


def subjects(spec: RunSpec, objects: Mapping[str, SAE] | None = None) -> list[Subject]:
    """The SAEs of a run; arguments and errors as of `jobs`."""
    given = Given(spec.k, spec.threshold, spec.norm_scale)
    records = (Records(spec.records_folder), published_records())
    opened = [open_sae(r, given, records).loaded for r in spec.sae]
    opened += [_as_loaded(name, sae) for name, sae in (objects or {}).items()]
    if not opened:
        raise UsageError("no SAE to evaluate", "give --sae PATH, for example --sae demo:ortsae")
    against = open_sae(spec.against, given, records).loaded if spec.against else None
    device, store, corpus = pick_device(spec.device), Store.default(), open_corpus(spec.text)
    shared = cache(lambda reference: open_lm(reference, device, spec.dtype))
    judge = open_judge(spec)
    made: list[Subject] = []
    for loaded in opened:
        site, notes = _site(spec, loaded, shared)
        subject = _subject(loaded, site)
        other, doubts = _other(spec, against, loaded, site, device)
        if is_world(notes[0]):
            context = _planted(notes[0], subject, store, spec.seed, other)
        else:
            opener = partial(_fitting, partial(shared, notes[0]), subject)
            context = Context(opener, site, corpus, store, spec.seed, other, judge=judge)
        made.append(Subject(subject, Canonical(_on_device(loaded.sae, device)), context, (*notes[1], *doubts)))
    return made


def run(spec: RunSpec, objects: Mapping[str, SAE] | None = None) -> Iterator[Outcome]:
    """Measure what is not recorded yet, one outcome at a time, as soon as it is ready."""
    if spec.records_folder.resolve() == published_records().folder.resolve():
        raise UsageError("the published records are read-only", "choose another --records folder")
    yield from measure(jobs(spec, objects), Records(spec.records_folder))


def measure(todo: list[Job], records: Records) -> Iterator[Outcome]:
    """Outcomes of jobs; each record is on disk before its outcome is yielded."""
    for job in todo:
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
    return Job(subject.facts, subject.sae, task, facts, data, key, subject.context, subject.notes)


def _other(
    spec: RunSpec, against: Loaded | None, loaded: Loaded, site: Mapping[str, str], device: str
) -> tuple[tuple[str, Canonical] | None, tuple[str, ...]]:
    """The SAE to compare dictionaries with, and what speaks against the comparison."""
    if against is None:
        return None, ()
    if against.sae.d_in != loaded.sae.d_in:
        raise CheckpointError(
            f"{spec.against} has d_in {against.sae.d_in}, {loaded.name} has {loaded.sae.d_in}", "compare SAEs of one site"
        )
    elsewhere = against.hook and str(parse_hook(against.hook)) != site["hook"]
    doubts = (f"{spec.against} was trained at {against.hook}, not at {site['hook']}",) if elsewhere else ()
    return (spec.against, Canonical(_on_device(against.sae, device))), doubts


def _site(spec: RunSpec, loaded: Loaded, shared: Any) -> tuple[dict[str, str], tuple[str, tuple[str, ...]]]:
    """The site's facts; and the model's reference with warnings about how it was chosen."""
    if not (spec.lm or loaded.lm):
        raise UsageError(
            f"{loaded.name}: the checkpoint does not say which language model it belongs to", "give --lm, such as --lm hf:gpt2"
        )
    if is_world(spec.lm or loaded.lm):
        return _planted_site(spec.lm or loaded.lm, loaded)
    if not (spec.hook or loaded.hook):
        raise UsageError(
            f"{loaded.name}: the checkpoint does not say which hook it belongs to", "give --hook, such as --hook blocks.7.hook_resid_post"
        )
    own = lm_reference(loaded.lm) if loaded.lm else ""
    if own.startswith("hf:") and "@" not in own and loaded.facts.get("revision"):
        own = f"{own}@{loaded.facts['revision']}"
    reference, hook = spec.lm or own, parse_hook(spec.hook or loaded.hook)
    notes = (
        [f"the checkpoint names {loaded.lm}; measured on {reference}"]
        if own and own.partition("@")[0] != reference.partition("@")[0]
        else []
    )
    if spec.hook and loaded.hook and parse_hook(loaded.hook) != hook:
        notes.append(f"the checkpoint names {loaded.hook}; measured at {hook}")
    name, revision = identity(reference, partial(shared, reference))
    return site_facts(name, revision, spec.dtype, hook), (reference, (*notes, *loaded.oddities))


def _fitting(opener: Any, subject: SubjectFacts) -> LanguageModel:
    lm = opener()
    lm.check(parse_hook(subject.hook))
    if lm.d_model != subject.d_in:
        raise CheckpointError(
            f"{subject.name} takes {subject.d_in} numbers, {lm.name} gives {lm.d_model} at {subject.hook}",
            "choose the model and hook the SAE was trained on",
        )
    return lm


def _planted_site(reference: str, loaded: Loaded) -> tuple[dict[str, str], tuple[str, tuple[str, ...]]]:
    world, notes = open_world(reference), list[str]()
    if loaded.lm and loaded.lm != world.name:
        notes.append(f"the checkpoint names {loaded.lm}; measured on {world.name}")
    elif loaded.lm and loaded.facts.get("revision", world.spec.sha256) != world.spec.sha256:
        notes.append(f"{world.name} is not what it was when this SAE was trained on it")
    return world_site(world), (reference, (*notes, *loaded.oddities))


def _planted(reference: str, subject: SubjectFacts, store: Store, seed: int, other: tuple[str, Canonical] | None) -> WorldContext:
    world = open_world(reference)
    if world.d != subject.d_in:
        raise CheckpointError(
            f"{subject.name} takes {subject.d_in} numbers, {reference} gives {world.d}", "choose the world it was trained on"
        )
    return world_context(world, store, seed, other)


def _subject(loaded: Loaded, site: Mapping[str, str]) -> SubjectFacts:
    sae = Canonical(loaded.sae)
    return SubjectFacts(
        name=loaded.name, sha256=sae.sha256, format=loaded.format, architecture=loaded.architecture, d_in=sae.d_in, d_sae=sae.d_sae, **site
    )


def _as_loaded(name: str, sae: Any) -> Loaded:
    check_sae(sae)
    return Loaded(sae, format="python object", architecture=type(sae).__name__, name=name)


def _on_device(sae: Any, device: str) -> Any:
    return sae.to(device) if hasattr(sae, "act") and device != "cpu" else sae
