"""`sae check` and `sae list`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(
    name="sae",
    help="Look at checkpoints.\n\nExamples:\n\n  python -m bench sae check ./my_sae\n\n  python -m bench sae list",
    no_args_is_help=True,
)


@app.command("check")
def check(
    reference: Annotated[str, typer.Argument(help="Path, demo:NAME or hf:REPO.")],
    k: Annotated[int | None, typer.Option(help="Active latents per token, where the file lacks it.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Threshold, where the file lacks it.")] = None,
    norm_scale: Annotated[float | None, typer.Option(help="Input scale of training, where the file lacks it.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print what was understood: format, architecture, sizes, hook, model, normalisation, decoder norms, oddities."""
    from bench.adapters import Given
    from bench.references import open_sae
    from bench.sae.card import card

    facts = card(open_sae(reference, Given(k, threshold, norm_scale)).loaded)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    width = max(len(name) for name in facts)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in facts.items()))


@app.command("list")
def list_() -> None:
    """The bundled demo checkpoints."""
    from bench import registry

    for name, folder in registry.demos().items():
        facts = json.loads((folder / "sae.json").read_text())
        print(f"demo:{name:<12} {facts['lm']}  {facts['hook']}")
