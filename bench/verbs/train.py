"""`train`: make SAEs with the bundled methods."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.verbs.run import HookOption, LmOption, TextOption

if TYPE_CHECKING:
    from baselines.activations import Source
    from baselines.shards import Shards
    from baselines.sweep import Member, Settings

Site = tuple[str | None, str | None, str | None, str]  # --lm, --hook, --text, --device
DEFAULT_HOOK = "blocks.7.hook_resid_post"
HELP = """Train an SAE with a bundled method or control, or several at once; interrupted runs go on where they stopped.

Examples:

  python -m bench train ortsae --d-sae 4608 --k 32 --out my_ortsae

  python -m bench train batchtopk --tokens 200000 --steps 300 --d-sae 1024 --out quick

  python -m bench train random --d-sae 4608 --k 32 --out control

  python -m bench train batchtopk --lm world:small --d-sae 1024 --k 5 --tokens 300000 --out planted

  python -m bench train batchtopk --tokens 20000000 --stream --out streamed

  python -m bench train --sweep methods.toml --out sweep

Several processes divide the latents among them, 2 here, or the batch with
--data-parallel:

  torchrun --nproc-per-node 2 -m bench train ortsae --out shared

A sweep reads every batch once and gives it to all its SAEs; each ends as if it were trained alone with the same --seed
and --data-seed. A flag overrides the file. methods.toml:

\b
  tokens = 2300000
  steps = 4000
  d_sae = 4608
  k = 32
\b
  [[sae]]
  method = "batchtopk"
\b
  [[sae]]
  method = "ortsae"
  name = "ortsae_weak"
  gamma = 0.1
\b
  [[sae]]
  method = "ortsae"
  name = "ortsae_matryoshka"
  base = "matryoshka"
  seed = 1
"""


def train(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint, or of the folders of a sweep.")],
    method: Annotated[str | None, typer.Argument(help="Method or control: see the error for an unknown name to list them.")] = None,
    sweep: Annotated[Path | None, typer.Option(help="TOML file of several SAEs, instead of a method.")] = None,
    d_sae: Annotated[int | None, typer.Option(help="Number of latents [4608].")] = None,
    k: Annotated[int | None, typer.Option(help="Mean active latents per token [32].")] = None,
    lm: LmOption = None,
    hook: HookOption = None,
    text: TextOption = None,
    tokens: Annotated[int | None, typer.Option(help="Distinct tokens to harvest [2300000].")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps [two passes over the tokens; one with --stream].")] = None,
    batch: Annotated[int | None, typer.Option(help="Tokens per step [2048 for runs of 20000 steps and more, else 512].")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate [2e-4 for runs of 50000 steps and more, else 1e-3].")] = None,
    seed: Annotated[int | None, typer.Option(help="Initialisation and the method's own draws [0].")] = None,
    data_seed: Annotated[int | None, typer.Option(help="Order of the data [as --seed].")] = None,
    param: Annotated[
        list[str] | None, typer.Option(help="Parameter of the method, such as gamma=0.25; may be given several times.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Harvest while training; no activations are kept on disk.")] = False,
    buffer: Annotated[int | None, typer.Option(help="Tokens of the shuffle buffer of --stream [131072].")] = None,
    checkpoint_at: Annotated[str | None, typer.Option(help="Fractions of the run kept as stages, such as 0.1,0.3,1.0.")] = None,
    save_every: Annotated[float | None, typer.Option(help="Seconds between the states an interrupted run goes on from [60].")] = None,
    log: Annotated[str, typer.Option(help="Tracker that gets the log too: trackio, wandb or tensorboard.")] = "",
    dtype: Annotated[str | None, typer.Option(help="Weights on disk: float16 (default) or float32.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the language model runs and SAEs train: auto (default), cpu, cuda.")] = None,
    data_parallel: Annotated[int, typer.Option(help="With torchrun: parts of the batch; processes share latents within each.")] = 1,
) -> None:
    given = {n: v for n, v in locals().items() if v is not None and v is not False}
    from bench import interrupts

    flags = {n: v for n, v in given.items() if n not in ("out", "method", "sweep", "param", "log", "data_parallel")}
    settings, members = _asked(method, sweep, flags, param or [])
    folders = {out / m.name if sweep else out: m for m in members}
    with interrupts.polite(), _group(data_parallel, settings.device) as shards:
        _fit(settings, folders, log, shards, alone=sweep is None)
        _report(list(folders))


train.__doc__ = HELP


def _asked(method: str | None, sweep: Path | None, flags: dict[str, Any], params: list[str]) -> tuple[Settings, list[Member]]:
    """The settings and the SAEs that a command line stands for."""
    from baselines.sweep import make_settings, read
    from bench.errors import UsageError

    if (method is None) == (sweep is None):
        raise UsageError("train takes a method or --sweep FILE, and not both", "see python -m bench train --help")
    if "checkpoint_at" in flags:
        flags["checkpoint_at"] = _fractions(flags["checkpoint_at"])
    if sweep is None:
        shared, tables = {}, [{**_params(params), "method": method}]
    elif params:
        raise UsageError("--param does not apply to a sweep", "write parameters into the file's [[sae]] tables")
    else:
        shared, tables = read(sweep)
    settings = make_settings({**shared, **flags})
    return settings, [settings.member(table, _method) for table in tables]


@contextmanager
def _group(data_parallel: int, device: str) -> Generator[Shards]:
    """The processes that torchrun started; all but the first work in silence, apart from their errors."""
    from baselines.shards import joined, leave
    from bench.device import pick_device

    shards = joined(data_parallel, pick_device(device))
    with ExitStack() as quiet:
        if not shards.first:
            null = quiet.enter_context(Path(os.devnull).open("w"))
            quiet.enter_context(redirect_stdout(null))
            quiet.enter_context(redirect_stderr(null))
        yield shards
    leave(shards)


def _fit(settings: Settings, folders: dict[Path, Member], log: str, shards: Shards, alone: bool) -> None:
    """Harvest and train what is not finished yet.

    Raises:
        UsageError: Everything is finished.
        DivergedError: Of the SAE that is trained alone; those of a sweep are told of by `_report`.
    """
    from baselines import compiled
    from baselines.trackers import OPEN
    from baselines.trainer import DivergedError, check_divisible, fit_all
    from bench import progress, registry
    from bench.errors import UsageError

    if log:
        registry.pick("tracker", log, OPEN)
    if not (left := {f: m for f, m in folders.items() if not (f / "sae.json").exists()}):
        raise UsageError(f"{', '.join(map(str, folders))} already holds a finished SAE", "choose another --out")
    site = settings.lm, settings.hook, settings.text, settings.device
    if settings.stream and not shards.alone:
        raise UsageError("--stream is for one process: each would harvest all of the text", "leave out --stream, or torchrun")
    check_divisible([member.method for member in left.values()], shards)
    buffer = settings.buffer if settings.stream else 0
    data, place = shards.one_first(lambda: _training_set(site, settings.tokens, settings.order_seed, buffer))
    jobs = [settings.job(member, data.n, folder) for folder, member in left.items()]
    config = jobs[0].config
    progress.note("training set", kept_tokens=data.n, dropped=round(data.dropped, 4), steps=config.steps, batch=config.batch, lr=config.lr)
    compiled.announce()
    for job in jobs:
        if remark := getattr(job.method, "remark", ""):
            progress.note("slow", sae=job.out.name, reason=remark)
    for ended in fit_all(jobs, data, place, log, shards):
        if alone and isinstance(ended, DivergedError):
            raise ended


def _report(folders: list[Path]) -> None:
    """A line for each SAE, from its own facts.

    Raises:
        DivergedError: Some stopped early.
    """
    from baselines.trainer import DivergedError

    stopped: list[str] = []
    for folder in folders:
        facts = json.loads((folder / "sae.json").read_text())
        log = facts["training"]["last_log"]
        early = facts["training"].get("stopped_early")
        stopped += [folder.name] if early else []
        numbers = "".join(f", {n} {log[n]}" for n in ("ev", "l0", "dead") if n in log)
        print(f"wrote {folder}: {facts['name']}{numbers}" + (f", stopped early at step {early['step']}" if early else ""))
    if stopped:
        raise DivergedError(f"{len(stopped)} of {len(folders)} SAEs stopped early: {', '.join(stopped)}", "lower their lr")
    print(f"evaluate with: python -m bench run {' '.join(f'--sae {folder}' for folder in folders)}")


def _training_set(site: Site, tokens: int, seed: int, buffer: int = 0) -> tuple[Source, dict[str, str]]:
    """Activations of a language model (streamed where there is a buffer) or of a planted world, and where they are from."""
    from baselines.activations import harvested, planted
    from baselines.stream import streamed
    from bench.data.text import DEFAULT_TEXT, open_corpus
    from bench.device import pick_device
    from bench.errors import UsageError
    from bench.lm import embedded, open_lm
    from bench.lm.hooks import parse_hook
    from bench.store import Store
    from bench.worlds.context import world_site
    from bench.worlds.names import is_world, open_world

    lm, hook, text, device = site
    store = Store.default()
    if lm and is_world(lm):
        world = open_world(lm)
        place = world_site(world)
        if text or buffer or (hook and str(parse_hook(hook)) != place["hook"]):
            raise UsageError(f"{lm} is a planted world: it has no text and one place only", "leave out --text, --hook and --stream")
        return planted(world, tokens, store, seed), {k: place[k] for k in ("lm", "revision", "hook")}
    model, where = open_lm(lm or embedded.NAME, pick_device(device)), parse_hook(hook or DEFAULT_HOOK)
    corpus = open_corpus(text or DEFAULT_TEXT)
    data = streamed(model, where, corpus, tokens, store, seed, buffer) if buffer else harvested(model, where, corpus, tokens, store, seed)
    return data, {"lm": model.name, "revision": model.revision, "hook": str(where)}


def _method(name: str, params: dict[str, Any]) -> Any:
    """A method by name; sizes go to the innermost base of a wrapper, other parameters to the wrapper itself.

    A size that the method has no choice of (that of `pca` and `identity` is the data's) is left out.
    """
    from dataclasses import fields

    from bench import progress, registry

    cls = registry.pick("method", name, registry.methods())
    own = {f.name for f in fields(cls)}
    if "base" not in own:
        if none_of_its := [size for size in ("d_sae", "k") if size in params and size not in own]:
            progress.note("not a choice of this method, left out", method=name, **{size: params[size] for size in none_of_its})
        return registry.build(cls, {n: v for n, v in params.items() if n not in none_of_its})
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
