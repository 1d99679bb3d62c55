"""Which SAEs a run measures, and where: references and objects → subjects at their sites.

Every checkpoint is opened once to learn what it is, and again when it is measured, so that a sweep of a hundred
SAEs takes the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench import scaling
from bench.adapters import SINGLE, Given
from bench.context import Context
from bench.data.text import Corpus, open_corpus
from bench.device import pick_device
from bench.errors import BenchError, CheckpointError, UsageError
from bench.judge import open_judge
from bench.judge.questions import Judge
from bench.lm import open_lm
from bench.lm.hooks import known_hook, parse_hook
from bench.record import Records, SubjectFacts
from bench.references import members, open_sae, published_records
from bench.sae.canonical import Canonical
from bench.sae.checkpoint import Loaded
from bench.sites import Shared, check_fit, fitting, planted, site_of
from bench.spec import RunSpec
from bench.store import Store
from bench.testing import check_sae
from bench.types import SAE
from bench.worlds.names import is_world

_UNSCALED = "the object says expected_average_only_in, which its own encode does not apply: fold the factor into its weights first"


@dataclass(frozen=True)
class Subject:
    """An SAE at its site, ready to be measured.

    Args:
        facts: Of the SAE and its site.
        opener: Opens the SAE, canonical; the one opened last is held.
        context: What a task is given.
        notes: Warnings about how it was opened.
    """

    facts: SubjectFacts
    opener: Callable[[], Canonical]
    context: Context
    notes: tuple[str, ...] = ()

    @property
    def sae(self) -> Canonical:
        """The SAE, canonical."""
        return self.opener()


@dataclass(frozen=True)
class Lineup:
    """The SAEs of a run.

    Args:
        subjects: Those to measure.
        refused: Path → why, of SAEs of a folder of several that cannot be read or do not fit.
    """

    subjects: tuple[Subject, ...]
    refused: Mapping[str, BenchError] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """One SAE as it was found: what is known of it without its weights, how to have them, and its path in a folder of several."""

    loaded: Loaded
    sha256: str
    shape: tuple[int, int]
    opener: Callable[[], Canonical]
    swept: str = ""


@dataclass(frozen=True)
class Setting:
    """What all SAEs of a run share."""

    spec: RunSpec
    device: str
    store: Store
    corpus: Corpus
    shared: Shared
    judge: Judge


def setting_of(spec: RunSpec) -> Setting:
    """Device, text, store and judge of a run, and language models that are opened once.

    Raises:
        BenchError: One of them cannot be had.
    """
    device = pick_device(spec.device)
    shared = cache(lambda reference: open_lm(reference, device, spec.dtype))
    return Setting(spec, device, Store.default(), open_corpus(spec.text), shared, open_judge(spec))


def lineup(spec: RunSpec, objects: Mapping[str, SAE] | None = None) -> Lineup:
    """The SAEs of a run. Opens a language model only if its identity or `--norm-scale estimate` needs it.

    Args:
        spec: The run.
        objects: SAEs given as Python objects, by name.

    Raises:
        BenchError: A reference, checkpoint, model or parameter is unusable. A checkpoint inside a folder of several
            does not raise; it is in `refused`.
    """
    if objects and not spec.sae and any(v is not None for v in (spec.k, spec.threshold, spec.norm_scale)):
        raise UsageError("k, threshold and norm_scale are facts of checkpoints; an SAE given as an object has its own", "leave them out")
    setting = setting_of(spec)
    entries, refused = _entries(setting)
    entries += [_of_object(name, sae) for name, sae in (objects or {}).items()]
    if not entries and not refused:
        raise UsageError("no SAE to evaluate", "give --sae PATH, for example --sae demo:ortsae")
    against = open_as_asked(setting, spec.against) if spec.against else None
    subjects: list[Subject] = []
    for e in entries:
        try:
            subjects.append(_subject(setting, e, against))
        except (CheckpointError, UsageError) as error:  # of a site: one that cannot be read here costs the others nothing
            if not e.swept:
                raise
            refused[e.swept] = error
    return Lineup(tuple(subjects), refused)


def single(spec: RunSpec) -> Subject:
    """The one SAE of a run.

    Raises:
        BenchError: As of `lineup`; or the reference is a folder of several SAEs.
    """
    found = lineup(spec)
    if len(found.subjects) + len(found.refused) != 1:
        names = ", ".join([*(s.facts.name for s in found.subjects), *found.refused][:5])
        raise UsageError(f"{', '.join(spec.sae)} holds several SAEs: {names}", "give one of them")
    for error in found.refused.values():
        raise error
    return found.subjects[0]


def _entries(setting: Setting) -> tuple[list[_Entry], dict[str, BenchError]]:
    """Every SAE the references name; and those of folders of several that cannot be read."""
    held = _holding_one(setting)
    found: list[_Entry] = []
    refused: dict[str, BenchError] = {}
    for reference in setting.spec.sae:
        several, swept = members(reference), dict[str, _Entry]()
        for one in several:
            try:
                swept[one] = _entry(held, one, _given(setting, one))
            except CheckpointError as e:
                if several == (reference,):
                    raise
                refused[one] = e
        found += _told_apart(swept, reference)
    return found, refused


_Held = Callable[[str, Given], tuple[Loaded, Canonical]]


def _holding_one(setting: Setting) -> _Held:
    """`_open`, which keeps what it opened last, and lets it go before it opens another: there are never two in memory."""
    held: dict[tuple[str, Given], tuple[Loaded, Canonical]] = {}

    def opener(reference: str, given: Given) -> tuple[Loaded, Canonical]:
        if (reference, given) not in held:
            held.clear()
            held[reference, given] = _open(setting, reference, given)
        return held[reference, given]

    return opener


def _entry(held: _Held, reference: str, given: Given) -> _Entry:
    loaded, sae = held(reference, given)
    return _Entry(replace(loaded, sae=None), sae.sha256, (sae.d_in, sae.d_sae), partial(_again, held, reference, given, sae.sha256))


def _again(held: _Held, reference: str, given: Given, sha256: str) -> Canonical:
    """The SAE once more, which must be what it was."""
    sae = held(reference, given)[1]
    if sae.sha256 != sha256:
        raise CheckpointError(f"{reference} was changed while the run was going on", "run again once it is written")
    return sae


def open_as_asked(setting: Setting, reference: str) -> tuple[Loaded, Canonical]:
    """One SAE with the facts that the run gives by flag; errors as of `lineup`."""
    return _open(setting, reference, _given(setting, reference))


def _open(setting: Setting, reference: str, given: Given) -> tuple[Loaded, Canonical]:
    records = (Records(setting.spec.records_folder), published_records())
    loaded = open_sae(reference, given, records).loaded
    odd = (f"input scale {given.norm_scale:.6g} {given.scale_source}; the checkpoint does not hold it",) if given.norm_scale else ()
    return replace(loaded, oddities=(*loaded.oddities, *odd)), Canonical(_on_device(loaded.sae, setting.device))


def _given(setting: Setting, reference: str) -> Given:
    """The facts given by flag, with the input scale estimated where that is asked for."""
    spec = setting.spec
    given = Given(spec.k, spec.threshold)
    if spec.norm_scale != scaling.ESTIMATE:
        return replace(given, norm_scale=spec.norm_scale)
    loaded, sae = _open(setting, reference, replace(given, norm_scale=1.0))
    site, (name, _) = site_of(spec, loaded, setting.shared)
    if is_world(name):
        raise UsageError("--norm-scale estimate needs a language model", "give the factor itself")
    lm, hook = setting.shared(name), parse_hook(site["hook"])
    check_fit(lm, loaded.name, sae.d_in, site["hook"])
    return scaling.estimated(given, lm, hook, setting.corpus, setting.store)


def _told_apart(swept: Mapping[str, _Entry], folder: str) -> list[_Entry]:
    """SAEs of a folder of several, called by their place in it, which no two share; one given by itself keeps its name."""
    if (folder,) == tuple(swept):
        return list(swept.values())

    def place(path: str) -> str:
        inside = Path(path).relative_to(Path(folder).expanduser())
        return "-".join(inside.with_suffix("").parts if inside.suffix in SINGLE else inside.parts)

    return [replace(e, loaded=replace(e.loaded, name=place(p)), swept=p) for p, e in swept.items()]


def _of_object(name: str, sae: Any) -> _Entry:
    check_sae(sae)
    odd = (_UNSCALED,) if getattr(getattr(sae, "cfg", None), "normalize_activations", None) == "expected_average_only_in" else ()
    loaded, canonical = Loaded(None, "python object", type(sae).__name__, name, oddities=odd), Canonical(sae)
    return _Entry(loaded, canonical.sha256, (canonical.d_in, canonical.d_sae), lambda: canonical)


def _subject(setting: Setting, entry: _Entry, against: tuple[Loaded, Canonical] | None) -> Subject:
    spec, loaded, (d_in, d_sae) = setting.spec, entry.loaded, entry.shape
    site, (reference, notes) = site_of(spec, loaded, setting.shared)
    facts = SubjectFacts(
        name=loaded.name, sha256=entry.sha256, format=loaded.format, architecture=loaded.architecture, d_in=d_in, d_sae=d_sae, **site
    )
    other, doubts = _other(spec, against, facts)
    if is_world(reference):
        context = planted(reference, facts, setting.store, spec.seed, other)
    else:
        opener = partial(fitting, partial(setting.shared, reference), facts)
        context = Context(opener, site, setting.corpus, setting.store, spec.seed, other, judge=setting.judge)
    return Subject(facts, entry.opener, context, (*notes, *doubts))


def _other(
    spec: RunSpec, against: tuple[Loaded, Canonical] | None, facts: SubjectFacts
) -> tuple[tuple[str, Canonical] | None, tuple[str, ...]]:
    """The SAE to compare dictionaries with, and what speaks against the comparison."""
    if against is None:
        return None, ()
    loaded, sae = against
    if sae.d_in != facts.d_in:
        raise CheckpointError(f"{spec.against} has d_in {sae.d_in}, {facts.name} has {facts.d_in}", "compare SAEs of one site")
    elsewhere = loaded.hook and str(known_hook(loaded.hook)) != facts.hook
    doubts = (f"{spec.against} was trained at {loaded.hook}, not at {facts.hook}",) if elsewhere else ()
    return (spec.against, sae), doubts


def _on_device(sae: Any, device: str) -> Any:
    return sae.to(device) if hasattr(sae, "act") and device != "cpu" else sae
