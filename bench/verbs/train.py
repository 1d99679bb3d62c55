"""`train`: make an SAE with one of the bundled methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.verbs.run import HookOption, LmOption, TextOption

if TYPE_CHECKING:
    from baselines.activations import TrainingSet

Site = tuple[str | None, str | None, str | None, str]  # --lm, --hook, --text, --device
DEFAULT_HOOK = "blocks.7.hook_resid_post"
HELP = """Train an SAE with a bundled method or control; interrupted runs go on where they stopped.

Examples:

  python -m bench train ortsae --d-sae 4608 --k 32 --out my_ortsae

  python -m bench train batchtopk --tokens 200000 --steps 300 --d-sae 1024 --out quick

  python -m bench train random --d-sae 4608 --k 32 --out control

  python -m bench train batchtopk --lm world:small --d-sae 1024 --k 5 --tokens 300000 --out planted
"""


def train(
    method: Annotated[str, typer.Argument(help="Method or control: see the error for an unknown name to list them.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    d_sae: Annotated[int, typer.Option(help="Number of latents.", min=2)] = 4608,
    k: Annotated[int, typer.Option(help="Mean active latents per token.", min=1)] = 32,
    lm: LmOption = None,
    hook: HookOption = None,
    text: TextOption = None,
    tokens: Annotated[int, typer.Option(help="Distinct tokens to harvest.", min=1000)] = 2_300_000,
    steps: Annotated[int, typer.Option(help="Training steps; 0: two passes over the tokens.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Tokens per step.", min=1)] = 512,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Initialisation, data order, the method's own draws.")] = 0,
    param: Annotated[
        list[str] | None, typer.Option(help="Parameter of the method, such as gamma=0.25; may be given several times.")
    ] = None,
    checkpoint_at: Annotated[str, typer.Option(help="Fractions of the run kept as stages, such as 0.1,0.3,1.0.")] = "1.0",
    dtype: Annotated[str, typer.Option(help="Weights on disk: float16 or float32.")] = "float16",
    device: Annotated[str, typer.Option(help="Where the language model runs: auto, cpu, cuda.")] = "auto",
) -> None:
    from bench import interrupts
    from bench.errors import UsageError

    built = _method(method, {"d_sae": d_sae, "k": k, **_params(param or [])})
    if dtype not in ("float16", "float32"):
        raise UsageError(f"--dtype {dtype} is not a type of weights", "use float16 or float32")
    if (out / "sae.json").exists():
        raise UsageError(f"{out} already holds a finished SAE", "choose another --out")
    recipe = {"steps": steps, "batch": batch, "lr": lr, "seed": seed, "checkpoint_at": _fractions(checkpoint_at), "dtype": dtype}
    with interrupts.polite():
        log = _fit(built, out, (lm, hook, text, device), tokens, recipe)
    print(f"wrote {out}: {method}, {d_sae} latents" + "".join(f", {n} {log[n]}" for n in ("ev", "l0", "dead") if n in log))
    print(f"evaluate it with: python -m bench run --sae {out}")


train.__doc__ = HELP


def _fit(method: Any, out: Path, site: Site, tokens: int, recipe: dict[str, Any]) -> Mapping[str, Any]:
    """Harvest and train; returns the last log line."""
    from baselines.trainer import FitConfig, fit
    from bench import progress

    data, place = _training_set(site, tokens, recipe["seed"])
    config = FitConfig(**{**recipe, "steps": recipe["steps"] or 2 * data.n // recipe["batch"]})
    progress.note("training set", kept_tokens=data.n, dropped=round(data.dropped, 4), steps=config.steps)
    return fit(method, data, config, out, place).log


def _training_set(site: Site, tokens: int, seed: int) -> tuple[TrainingSet, dict[str, str]]:
    """Activations of a language model or of a planted world, and where they are from."""
    from baselines.activations import harvested, planted
    from bench.data.text import DEFAULT_TEXT, open_corpus
    from bench.errors import UsageError
    from bench.lm import embedded, open_lm
    from bench.lm.hooks import parse_hook
    from bench.runner import pick_device
    from bench.store import Store
    from bench.worlds.context import world_site
    from bench.worlds.names import is_world, open_world

    lm, hook, text, device = site
    if lm and is_world(lm):
        world = open_world(lm)
        place = world_site(world)
        if text or (hook and str(parse_hook(hook)) != place["hook"]):
            raise UsageError(f"{lm} is a planted world: it has no text and one place only", "leave out --text and --hook")
        return planted(world, tokens, Store.default(), seed), {k: place[k] for k in ("lm", "revision", "hook")}
    model, where = open_lm(lm or embedded.NAME, pick_device(device)), parse_hook(hook or DEFAULT_HOOK)
    data = harvested(model, where, open_corpus(text or DEFAULT_TEXT), tokens, Store.default(), seed)
    return data, {"lm": model.name, "revision": model.revision, "hook": str(where)}


def _method(name: str, params: dict[str, Any]) -> Any:
    """A method by name; sizes go to the innermost base of a wrapper, other parameters to the wrapper itself."""
    from dataclasses import fields

    from bench import registry

    cls = registry.pick("method", name, registry.methods())
    own = {f.name for f in fields(cls)}
    if "base" not in own:
        return registry.build(cls, params)
    base = str(params.pop("base", "batchtopk"))
    inner = {k: params.pop(k) for k in list(params) if k not in own}
    return cls(base=_method(base, inner), **{k: v for k, v in vars(registry.build(cls, params)).items() if k != "base"})


def _params(pairs: list[str]) -> dict[str, Any]:
    import tomllib

    from bench.errors import UsageError

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--param {pair!r} is not name=value", "write --param gamma=0.25")
        try:
            found[name] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


def _fractions(text: str) -> tuple[float, ...]:
    from bench.errors import UsageError

    try:
        found = tuple(float(p) for p in text.split(",") if p)
    except ValueError:
        found = ()
    if not found or not all(0 < f <= 1 for f in found):
        raise UsageError(f"--checkpoint-at {text!r} is not a list of fractions in (0, 1]", "write --checkpoint-at 0.1,0.3,1.0")
    return found
