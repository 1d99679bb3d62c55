"""One grammar for SAEs everywhere: a path, `demo:NAME`, `hf:REPO[@revision][#folder]`, `saelens:RELEASE/ID`, or a recorded subject.

A path may be a folder of several SAEs, such as a sweep, where several make sense.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import hub, registry, releases
from bench.adapters import Given, open_checkpoint, several
from bench.errors import UsageError
from bench.record import Record, Records, SubjectFacts
from bench.sae.checkpoint import Loaded

_SHA_PREFIX = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Opened:
    """An SAE by reference.

    Args:
        reference: As the user wrote it.
        loaded: What the adapter read.
    """

    reference: str
    loaded: Loaded


def published_records() -> Records:
    """The records that come with the project; empty in an installed wheel."""
    return Records(registry.package_folder("leaderboard") / "records")


def open_sae(reference: str, given: Given | None = None, records: Iterable[Records] = ()) -> Opened:
    """The SAE behind a reference, with its weights.

    Args:
        reference: Path, `demo:NAME`, `hf:REPO[@revision][#folder-or-file]` or `saelens:RELEASE/ID`.
        given: Facts the file may lack.
        records: Where to look for recorded subjects, so that a reference to one is explained.

    Raises:
        UsageError: Unknown reference, or one that names records only.
        CheckpointError: The checkpoint is refused.
        UnavailableError: The hub refuses, cannot be reached, or has no such place.
    """
    if reference.startswith("hf:"):
        return Opened(reference, hub.open_hub(reference, given or Given()))
    if reference.startswith("saelens:"):
        return Opened(reference, releases.open_release(reference, given or Given()))
    if reference.startswith("demo:"):
        path = registry.pick("demo", reference.removeprefix("demo:"), registry.demos())
    else:
        path = Path(reference).expanduser()
        if not os.path.exists(path):  # unlike Path.exists, False for a name too long to be one
            raise _unknown(reference, records)
    return Opened(reference, open_checkpoint(path, given or Given()))


def members(reference: str) -> tuple[str, ...]:
    """References of the SAEs behind one reference: itself, or all SAEs of a folder that is none itself.

    Raises:
        CheckpointError: The folder holds too many others to look through.
    """
    path = Path(reference).expanduser()
    return tuple(map(str, several(path))) or (reference,)


def find_subject(reference: str, found: Iterable[Record]) -> SubjectFacts:
    """The recorded subject of that name or sha256 prefix (eight digits or more).

    Raises:
        UsageError: None, or several; the remedy holds the candidates.
    """
    hits, names = _hits(reference, found)
    if len(hits) > 1:
        raise _ambiguous(reference, hits)
    if not hits:
        raise UsageError(f"no recorded SAE {reference!r}", registry.did_you_mean(reference.removeprefix("demo:"), names))
    return hits[0]


def _hits(reference: str, found: Iterable[Record]) -> tuple[list[SubjectFacts], list[str]]:
    """Recorded subjects that a name or sha256 prefix fits, one per set of weights; and the names of all there are."""
    name = reference.removeprefix("demo:")
    subjects = list({r.subject.sha256: r.subject for r in found}.values())
    fits = [s for s in subjects if s.name == name or (_SHA_PREFIX.fullmatch(name) and s.sha256.startswith(name))]
    return fits, sorted({s.name for s in subjects})


def _ambiguous(reference: str, hits: list[SubjectFacts]) -> UsageError:
    return UsageError(f"{reference!r} names several recorded SAEs", "choose one: " + ", ".join(f"{s.name} {s.sha256[:12]}" for s in hits))


def _unknown(reference: str, records: Iterable[Records]) -> UsageError:
    """Why a reference that is no path, demo or hub name cannot be opened."""
    hits, _ = _hits(reference, [r for folder in records for r in folder.scan()[0]])
    if len(hits) > 1:
        return _ambiguous(reference, hits)
    if hits:
        cause = f"{reference!r} is known from records only ({hits[0].sha256[:12]}); this needs its weights"
        return UsageError(cause, "give the path of the checkpoint")
    others = ", ".join(["hf:REPO", "saelens:RELEASE/ID", *(f"demo:{n}" for n in registry.demos())])
    return UsageError(f"no checkpoint at {reference!r}", f"give a path, or one of {others}")
