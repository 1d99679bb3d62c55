"""`sae check`, `sae info`, `sae convert` and `sae list`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.verbs.run import DeviceOption, HookOption, KOption, LmOption, ScaleOption, TextOption, ThresholdOption

if TYPE_CHECKING:
    from bench.examining import Examined

EXAMPLES = """Look at checkpoints and turn one format into another.

Examples:

  python -m bench sae check ./my_sae

  python -m bench sae info ./my_sae --json

  python -m bench sae convert ./my_sae ./converted --to sae_lens
"""
app = typer.Typer(name="sae", help=EXAMPLES, no_args_is_help=True)
Reference = Annotated[str, typer.Argument(metavar="REF", help="SAE: a path, demo:NAME, hf:REPO or saelens:RELEASE/ID.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SHOWN = 4


@app.command("check")
def check(
    reference: Reference,
    lm: LmOption = None,
    hook: HookOption = None,
    text: TextOption = None,
    k: KOption = None,
    threshold: ThresholdOption = None,
    norm_scale: ScaleOption = None,
    device: DeviceOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the evaluation text to try it on.", min=16)] = 4096,
    data: Annotated[
        bool | None, typer.Option(help="Try it on activations even if the language model must be downloaded; or never.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a checkpoint is, and try it on real activations: is it at home at its hook, layer and input scale?

    The language model is used if it is on this machine already or named by --lm.

    Examples:

      python -m bench sae check demo:ortsae

      python -m bench sae check ./my_sae --lm hf:gpt2 --hook blocks.5.hook_resid_post

      python -m bench sae check ./my_sae --no-data
    """
    values = {"lm": lm, "hook": hook, "text": text, "k": k, "threshold": threshold, "norm_scale": norm_scale, "device": device}
    from bench.examining import examined
    from bench.spec import make_spec

    found = examined(make_spec({**values, "sae": (reference,)}), tokens, data)
    if as_json:
        sanity = asdict(found.sanity) if found.sanity else None
        print(json.dumps({**found.facts, "sanity": sanity, "not_tried": found.not_tried or None}, indent=1, default=str))
        return
    _print_card(found.facts)
    _print_sanity(found)
    print(f"\nnext: python -m bench run --sae {shlex.quote(reference)}{_flags(found.facts, values)} --suite smoke")


@app.command("info")
def info(
    reference: Reference,
    k: KOption = None,
    threshold: ThresholdOption = None,
    norm_scale: Annotated[float | None, typer.Option(help="Input scale of training, where the file lacks it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the facts of a checkpoint without using it.

    Examples:

      python -m bench sae info demo:ortsae

      python -m bench sae info ./my_sae --json
    """
    from bench.adapters import Given
    from bench.references import open_sae
    from bench.sae.card import facts_of

    facts = facts_of(open_sae(reference, Given(k, threshold, norm_scale)).loaded)
    if as_json:
        print(json.dumps(facts, indent=1, default=str))
        return
    _print_card(facts)


@app.command("convert")
def convert_(
    reference: Reference,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the converted checkpoint.")],
    to: Annotated[str, typer.Option(help="native, sae_lens (version 6) or dictionary_learning.")],
    lm: LmOption = None,
    hook: HookOption = None,
    text: TextOption = None,
    k: KOption = None,
    threshold: ThresholdOption = None,
    norm_scale: ScaleOption = None,
    trained_k: Annotated[
        int | None, typer.Option(help="The k that dictionary_learning stores with BatchTopK, where the file lacks it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint in another format, bit for bit: it is read back and compared before it is kept.

    What you give by --lm and --hook is written, whatever the checkpoint says. A format that cannot hold the SAE is
    an error, never an approximation.

    Examples:

      python -m bench sae convert ./my_sae ./my_sae_lens --to sae_lens

      python -m bench sae convert demo:batchtopk ./ae --to dictionary_learning
    """
    values = {"lm": lm, "hook": hook, "text": text, "k": k, "threshold": threshold, "norm_scale": norm_scale, "device": "cpu"}
    from bench.convert import convert
    from bench.spec import make_spec
    from bench.subjects import open_as_asked, setting_of

    spec = make_spec({**values, "sae": (reference,)})
    loaded = spec.placed(open_as_asked(setting_of(spec), reference)[0])
    sha256 = convert(loaded, out.expanduser(), to, trained_k)
    if as_json:
        print(json.dumps({"path": str(out), "format": to, "sha256": sha256}))
    else:
        print(f"{out}: {to}, reads back as the same SAE, sha256 {sha256[:16]}")


@app.command("list")
def list_(
    text: Annotated[str, typer.Argument(help="With --releases: only references that contain this text.")] = "",
    releases: Annotated[bool, typer.Option("--releases", help="SAELens' names of public releases instead.")] = False,
) -> None:
    """The bundled demo checkpoints, or SAELens' names of public releases.

    Examples:

      python -m bench sae list

      python -m bench sae list --releases gemma-scope-2b
    """
    if releases:
        from bench.releases import listing

        print("\n".join(listing(text)))
        return
    from bench import registry

    for name, folder in registry.demos().items():
        facts = json.loads((folder / "sae.json").read_text())
        print(f"demo:{name:<12} {facts['lm']}  {facts['hook']}")


def _flags(facts: dict[str, Any], values: dict[str, Any]) -> str:
    """The flags of `run` that were given here, and those it will ask for."""
    asked = {"lm": None if facts["model"] else "NAME", "hook": None if facts["hook"] else "HOOK"}
    flags = {n: values[n] if values[n] is not None else asked.get(n) for n in ("lm", "hook", "k", "threshold", "norm_scale")}
    return "".join(f" --{n.replace('_', '-')} {shlex.quote(str(v))}" for n, v in flags.items() if v is not None)


def _print_card(facts: dict[str, Any]) -> None:
    from bench.sae.card import card, printable

    print(printable(facts["name"]))
    for heading, lines in card(facts).items():
        _print_lines(heading, lines)


def _print_lines(heading: str, lines: dict[str, str]) -> None:
    width = max((len(n) for n in lines), default=0)
    print(f"\n{heading}")
    for name, value in lines.items():
        print(f"  {name.ljust(width)}  {value}")


def _print_sanity(examined: Examined) -> None:
    found = examined.sanity
    if not found:
        print(f"\nnot tried on activations: {examined.not_tried}")
        return
    elsewhere = ", ".join(f"{t} {t.ev:.2f}" for t in found.trials[1 : 1 + _SHOWN])
    lines = {
        "explained variance": f"{found.ev:.3f}",
        "L0": f"{found.l0:.1f} active latents per token",
        "silent latents": f"{found.silent:,} on these tokens",
        "median active code": f"{found.code:.4g} in the file's units, {found.code_canonical:.4g} with unit decoder rows",
        "elsewhere": elsewhere or "nothing else could be tried",
    }
    _print_lines(f"on {found.tokens:,} tokens {examined.place}", lines)
    for warning in found.warnings or ("it looks at home: no neighbouring layer, site or scaling does better",):
        print(f"  {'!' if found.warnings else '✓'} {warning}")
