"""`cite`: BibTeX of the suite, of the tasks' sources, and of an SAE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.verbs.run import RecordsOption

HELP = """Print BibTeX of the suite and its sources; with a record or a recorded SAE, of exactly what it used.

Examples:

  python -m bench cite

  python -m bench cite ortsae-results/reconstruction@1/ortsae-0123456789ab.json

  python -m bench cite ortsae
"""


def cite(
    record: Annotated[str, typer.Argument(help="A record file, or the name or sha256 prefix of a recorded SAE.")] = "",
    records: RecordsOption = None,
) -> None:
    from bench import citations, registry

    if not record:
        print("\n\n".join(citations.bibtex(k) for k in citations.known()))
        return
    found = _records(record, records)
    subject = found[0].subject
    known = registry.tasks()
    keys = ["ortsaebench", *(k for r in found for k in (known[r.task.name].sources if r.task.name in known else ()))]
    facts = {"model": subject.lm, "revision": subject.revision, "hook": subject.hook}
    print("\n\n".join([*(citations.bibtex(k) for k in dict.fromkeys(keys)), citations.of_sae(subject.name, subject.sha256, facts)]))


cite.__doc__ = HELP


def _records(reference: str, folder: str | None) -> list:
    from bench.record import Records, read_record
    from bench.references import find_subject, published_records
    from bench.spec import RunSpec

    if reference.endswith(".json") or Path(reference).is_file():
        return [read_record(Path(reference))]
    found = [r for source in (Records(RunSpec(records=folder or "").records_folder), published_records()) for r in source.scan()[0]]
    subject = find_subject(reference, found)
    return [r for r in found if r.subject.sha256 == subject.sha256]
