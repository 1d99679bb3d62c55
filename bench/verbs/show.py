"""`show`: pages about single latents of an SAE."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from bench.verbs.run import (
    DeviceOption,
    DtypeOption,
    HookOption,
    KOption,
    LmOption,
    RecordsOption,
    ScaleOption,
    SeedOption,
    TextOption,
    ThresholdOption,
)

HELP = """Write a page about each of some latents, and an index of them: windows of text, strengths, neighbours, explanation, logits.

Without --latent, latents are drawn from all tenths of the firing rates; those that a record of autointerp explains come first.
Every page is one HTML file without scripts, beside a JSON file with its numbers. Pages that the folder holds already stay in
the index. Nothing is opened.

Examples:

  python -m bench show demo:ortsae --latents 8 --tokens 16384

  python -m bench show demo:ortsae --latent 1884 --latent 610

  python -m bench show ./my_sae --lm hf:gpt2 --hook blocks.5.hook_resid_post --out pages
"""
DEFAULT_TOKENS, DEFAULT_LATENTS = 65_536, 24


def show(
    reference: Annotated[str, typer.Argument(metavar="REF", help="SAE: a path, demo:NAME or hf:REPO.")],
    latent: Annotated[list[int] | None, typer.Option(help="Number of a latent; may be given several times.")] = None,
    latents: Annotated[int, typer.Option(help="How many latents to draw, where none is named.")] = DEFAULT_LATENTS,
    out: Annotated[Path | None, typer.Option(help="Folder of the pages [<records>/latents/<name of the SAE>].")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the evaluation text that are read.")] = DEFAULT_TOKENS,
    lm: LmOption = None,
    hook: HookOption = None,
    text: TextOption = None,
    records: RecordsOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    k: KOption = None,
    threshold: ThresholdOption = None,
    norm_scale: ScaleOption = None,
) -> None:
    values = {n: v for n, v in locals().items() if n not in ("reference", "latent", "latents", "out", "tokens")}
    from bench import interrupts, latent_facts
    from bench.latents import Measuring, subject_part
    from bench.record import Records
    from bench.references import published_records
    from bench.spec import make_spec
    from bench.subjects import single
    from leaderboard.site import latent_page

    spec = make_spec({**values, "sae": (reference,)})
    subject = single(spec)
    folder = out or spec.records_folder / "latents" / _slug(subject.facts.name)
    latent_page.check_folder(folder, subject_part(subject.facts))
    measuring = Measuring.of(subject.facts, subject.sae, subject.context, tokens, (Records(spec.records_folder), published_records()))
    with interrupts.polite():
        for facts in measuring.measure(latent or measuring.sample(latents)):
            latent_facts.write(folder, facts)
    for note in subject.notes:
        print(f"! {note}")
    for path in latent_page.draw_folder(folder):
        print(path)


show.__doc__ = HELP


def _slug(name: str) -> str:
    """A folder's name for an SAE, whatever it is called."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", name).strip("._")[:60] or "sae"
