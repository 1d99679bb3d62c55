"""`audit`: qualify a metric on planted worlds and write its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bench.audit.card import Card, MetricCard
    from bench.audit.entries import Audits, Entry
    from bench.audit.real import Found
    from bench.types import SAE
    from bench.worlds.planted import World

HELP = """Qualify a metric: planted rate against measured rate, noise, controls, smallest difference it finds.

METRIC is a task, or task.metric. The world, the defect and the sizes are those of leaderboard/audits.toml. Cells
that were measured are kept, so an interrupted audit goes on. Recorded SAEs join by name.

Examples:

  python -m bench audit absorption --planted-only

  python -m bench audit distinct_features --records ortsae-results --stages my_sae

  python -m bench audit sparse_probing.auc_k1 --seeds 5 --out cards
"""


def audit(
    metric: Annotated[str, typer.Argument(help="Task, or task.metric.")],
    seeds: Annotated[int, typer.Option(help="Planted worlds.", min=2)] = 20,
    planted_only: Annotated[bool, typer.Option("--planted-only", help="Leave out what needs records of a language model's SAEs.")] = False,
    records: Annotated[list[Path] | None, typer.Option(help="Folder of records besides the published ones; may be repeated.")] = None,
    stages: Annotated[list[Path] | None, typer.Option(help="Training folder with stage-* checkpoints; may be repeated.")] = None,
    keep_planted: Annotated[bool, typer.Option("--keep-planted", help="Take the planted part from the card there is.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of cards [leaderboard/cards].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    from bench import interrupts
    from bench.audit import entries
    from leaderboard import cards

    known = entries.audits()
    entry, metrics = entries.chosen(metric, known)
    with interrupts.polite():
        card = _planted(entry, metrics, seeds, keep_planted, out)
        if not planted_only:
            card = _real(card, entry, known, tuple(records or ()), tuple(stages or ()))
    path = cards.write(card, out)
    print(cards.as_json(card) if as_json else "\n".join([card.id, *cards.lines(card), f"wrote {path} and its picture"]))


audit.__doc__ = HELP


def _planted(entry: Entry, metrics: Sequence[str], seeds: int, keep: bool, out: Path | None) -> Card:
    """The card with its planted part; metrics that an up-to-date card has besides stay."""
    from bench import registry
    from bench.audit.card import Card
    from bench.audit.planted import grid
    from bench.audit.protocol import planted_card
    from bench.errors import UsageError
    from bench.provenance import environment
    from bench.record import subject_task
    from bench.store import Store

    task = registry.build(registry.pick("task", entry.task, registry.tasks()), entry.params)
    before = _current(task, entry, out)
    if keep:
        if before is None or set(metrics) - set(before.metrics):
            raise UsageError(f"there is no card of {entry.task} whose planted part could be kept", "leave out --keep-planted")
        return before
    cells = grid(entry, task, Store.default(), seeds, control=_random_control)
    own: dict[str, MetricCard] = {m: planted_card(entry, m, cells) for m in metrics}
    facts = environment("cpu")
    versions = {k: facts[k] for k in ("python", "torch", "numpy", "scipy", "scikit-learn")}
    merged = {**(before.metrics if before else {}), **own}
    order = {m: merged[m] for m in (*entry.metrics, *merged) if m in merged}
    return Card(task.name, task.version, entry.sha256, entry.world, entry.defect, subject_task(task).params, order, entry.note, versions)


def _current(task: Any, entry: Entry, out: Path | None) -> Card | None:
    """The card there is, if it is whole and of this entry."""
    from bench.errors import VerificationError
    from leaderboard import cards

    try:
        card = cards.read(task.name, task.version, out)
    except VerificationError:
        return None
    return card if card is not None and card.entry_sha256 == entry.sha256 else None


def _random_control(world: World, l0: float) -> SAE:
    """The control `random` on a planted world, at this L0."""
    import torch

    from bench import registry
    from bench.rng import numpy_rng, torch_rng

    x = torch.from_numpy(world.sample(8_192, numpy_rng(world.spec.seed, "audit", "control"))[0])
    method: Any = registry.methods()["random"](d_sae=world.n_features, k=max(1, round(l0)))
    weights = method.init(x.mean(0), torch_rng(world.spec.seed, "audit", "control"))
    return method.export(weights, 1.0, x)


def _real(card: Card, entry: Entry, known: Audits, folders: Sequence[Path], stages: Sequence[Path]) -> Card:
    """The card with what records and training stages say."""
    from dataclasses import replace

    from bench.audit import real
    from bench.audit.protocol import judged
    from bench.record import Records
    from bench.references import published_records

    sources = [*(Records(f) for f in folders), published_records()]
    found = real.alike(entry.task, card.version, sources, known.pair, real.standard_sizes().get(entry.task))
    names = (known.pair, known.controls)
    metrics = {m: real.with_records(c, entry, m, found, names) for m, c in card.metrics.items()}
    if stages:
        runs, staged = _staged(entry.task, stages, folders, found)
        metrics = {m: real.with_stages(c, entry, m, staged, runs) for m, c in metrics.items()}
    return replace(card, metrics={m: judged(c) for m, c in metrics.items()})


def _staged(task: str, folders: Sequence[Path], records: Sequence[Path], like: Found) -> tuple[Mapping[str, Sequence[str]], Found]:
    """Names of the stages of every training folder, and their records; what is not recorded is measured."""
    from bench import runner
    from bench.audit.real import Found
    from bench.errors import UsageError
    from bench.record import Records
    from bench.spec import make_spec

    runs: dict[str, list[str]] = {}
    held, tables = {}, {}
    params = next(iter(like.records.values())).task.params if like.records else {}
    for folder in folders:
        paths = [*sorted(folder.glob("stage-*"), key=lambda p: int(p.name.partition("-")[2])), folder]
        if len(paths) < 2:
            raise UsageError(f"{folder} holds no stage-* checkpoints", "train with --checkpoint-at 0.1,0.3,1.0")
        where = str(records[0]) if records else None
        spec = make_spec({"sae": tuple(map(str, paths)), "tasks": (task,), "params": {task: params}, "records": where})
        for path, outcome in zip(paths, runner.measure(runner.workload(spec)), strict=True):
            if outcome.error:
                raise outcome.error
            if (record := outcome.record) and record.outcome == "ok":
                name = f"{folder.name}/{path.name}"
                runs.setdefault(folder.name, []).append(name)
                held[name, 0], tables[name, 0] = record, Records(spec.records_folder)
    return runs, Found(held, tables)
