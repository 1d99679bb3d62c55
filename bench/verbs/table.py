"""`table`: what is recorded, as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.verbs.run import RecordsOption, SuiteOption

HELP = """Show recorded results of a suite, one row per SAE.

Examples:

  python -m bench table

  python -m bench table --suite smoke --published

  python -m bench table --csv > results.csv
"""


def table(
    suite: SuiteOption = None,
    records: RecordsOption = None,
    published: Annotated[bool, typer.Option(help="Show the records that come with the project.")] = False,
    csv: Annotated[bool, typer.Option(help="Every metric, one line each, as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every record as JSON.")] = False,
) -> None:
    from bench.record import Records, subject_task
    from bench.references import published_records
    from bench.spec import make_spec
    from leaderboard import table as tables

    spec = make_spec({"suite": suite, "records": records})
    source = published_records() if published else Records(Path(spec.records_folder))
    good, bad = source.scan()
    for line in bad:
        print(f"left out: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps([r.model_dump(mode="json") for r in good], indent=1))
    elif csv:
        from bench.api import Results

        Results(tuple(good), source.folder, {}).to_dataframe().to_csv(sys.stdout, index=False)
    else:
        chosen = spec.suite_of()
        rows = tables.rows(good, [subject_task(t) for t in spec.built_tasks()], chosen.columns)
        rows.sort(key=lambda r: (r.subject.lm, r.subject.hook, r.subject.name))
        empty = f"no records of suite {chosen.name} in {source.folder}; try: python -m bench run --sae demo:ortsae --suite {chosen.name}"
        print(tables.text(rows, chosen.columns, f"suite {chosen.name}: {chosen.description}") if rows else empty)


table.__doc__ = HELP
