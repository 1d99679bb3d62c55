"""`rescore`: compute a record's scores again from its verdicts, and how far two judges agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.errors import VerificationError

HELP = """Compute scores again from what a record's unit table holds: no model and no judge is asked.

With another record of the same SAE and task, by another judge or in another run, also Cohen's kappa of the verdicts that both
gave on the same windows (1: full agreement, 0: what chance would give).

Examples:

  python -m bench rescore ortsae-results/autointerp@1/ortsae-0123456789ab.json

  python -m bench rescore A.json --against B.json
"""


def rescore(
    record: Annotated[Path, typer.Argument(help="A record's JSON file.")],
    against: Annotated[Path | None, typer.Option(help="Another record of the same SAE and task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    from bench import rescoring

    found = rescoring.rescored(record)
    agreement = rescoring.agreement(record, against) if against else []
    if as_json:
        print(json.dumps({"metrics": {k: [a, b] for k, (a, b) in found.items()}, "agreement": agreement}, indent=1))
    else:
        _show(found, agreement)
    wrong = [k for k, (kept, again) in found.items() if abs(kept - again) > rescoring.TOLERANCE]
    if wrong:
        raise VerificationError(f"{record}: {', '.join(wrong)} do not follow from the verdicts", "do not use this record: measure again")


rescore.__doc__ = HELP


def _show(found: dict[str, tuple[float, float]], agreement: list[dict[str, Any]]) -> None:
    print(f"{'metric':<34} {'recorded':>9} {'again':>9}")
    for name, (kept, again) in found.items():
        print(f"{name:<34} {kept:>9.4f} {again:>9.4f}")
    for a in agreement:
        kappa = "none: one of them says always the same" if a["kappa"] is None else f"{a['kappa']:.3f}"
        print(f"agreement on {a['list']} windows: kappa {kappa} ({a['verdicts']} verdicts)")
