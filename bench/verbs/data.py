"""`data list` and `data show NAME`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(
    name="data",
    help="Text and labelled sets.\n\nExamples:\n\n  python -m bench data list\n\n  python -m bench data show 113_movie_sent",
    no_args_is_help=True,
)


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Sources of text, and every labelled set with its rows and source family."""
    from bench.data import attributes, labelled, sources

    sets = labelled.catalogue().values()
    if as_json:
        print(json.dumps([vars(s) for s in sets], indent=1))
        return
    print("text: pypi:sae-probes (default), file:PATH (.txt or .jsonl), hf:NAME[@revision][#config/split/column],")
    print("      pypi:NAME==VERSION#PATTERN, npm:NAME@VERSION#PATTERN, deb:NAME=VERSION#PATTERN")
    print("packages, each fetched once and pinned by sha256:")
    for s in (sources.SMOLLM2, sources.SAE_PROBES, sources.VADER, sources.BBC):
        print(f"  {s!s:<32} {s.sha256[:16]}")
    print(f"{len(sets)} labelled sets in {len({s.family for s in sets})} source families:")
    for s in sets:
        print(f"  {s.name:<46} {s.rows:>5} rows  family {s.family:<34} {s.question}")
    for kind, named in (("two attributes", attributes.two_way_sets()), ("several classes", attributes.class_sets())):
        print(f"{len(named)} sets with {kind}:")
        for name, said in named.items():
            print(f"  {name:<46} {said}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A labelled set, or vader, or bbc.")],
    rows: Annotated[int, typer.Option(help="Examples shown.")] = 6,
) -> None:
    """Some rows of a set, its sizes, and what was left out (the texts stay in their package)."""
    from bench.data import labelled

    if name in ("vader", "bbc"):
        frame = labelled.vader() if name == "vader" else labelled.bbc()
        print(f"{name}: {len(frame)} rows")
        for _, row in frame.head(rows).iterrows():
            print("  " + " | ".join(_short(v) for v in row))
        return
    found = labelled.load_set(name)
    print(f"{name}: {found.info.question}; family {found.info.family}; {len(found.texts)} usable rows, {int(found.labels.sum())} positive")
    print("left out: " + ", ".join(f"{n} {reason}" for reason, n in found.counts.items()))
    for text, label in list(zip(found.texts, found.labels, strict=True))[:rows]:
        print(f"  {label}  {_short(text)}")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else text[:99] + "…"
