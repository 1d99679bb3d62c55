"""`tasks list` and `tasks show NAME`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(
    name="tasks",
    help="What can be measured.\n\nExamples:\n\n  python -m bench tasks list\n\n  python -m bench tasks show reconstruction",
    no_args_is_help=True,
)


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Name, version and first line of every task, and the suites it is in."""
    from bench import registry

    suites = registry.suites()
    rows = [
        {"name": n, "version": c.version, "about": _first(c), "suites": [s for s, v in suites.items() if n in v.tasks]}
        for n, c in registry.tasks().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for r in rows:
        print(f"{r['name']}@{r['version']:<3} [{', '.join(r['suites'])}]\n    {r['about']}")
    for name, suite in suites.items():
        print(f"suite {name}: {suite.description}")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Task name.")]) -> None:
    """A task's definition, parameters with defaults, sources, known weaknesses, and the card of its metrics."""
    import inspect
    from dataclasses import fields

    from bench import registry
    from bench.audit.entries import audits
    from leaderboard import cards

    cls = registry.pick("task", name, registry.tasks())
    print(f"{name}@{cls.version}\n\n{inspect.getdoc(cls)}\n\nParameters:")
    for f in fields(cls):
        print(f"  {f.name} = {registry.default_of(f)!r}")
    print("\nShown first: " + ", ".join(cls.headline))
    print("Known weaknesses:\n" + "\n".join(f"  - {c}" for c in cls.caveats))
    print("Sources: " + ", ".join(cls.sources) + "  (python -m bench cite)")
    card, why = cards.read(name, cls.version), audits().without.get(name)
    none = f"No metric card: {why or 'not audited yet'}" + ("" if why else f"; run python -m bench audit {name}")
    print("\n".join(["", *(cards.lines(card) if card else [none])]))


def _first(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
