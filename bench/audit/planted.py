"""The planted part of an audit: a grid of doses and seeds, each cell measured once and kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench import progress, registry
from bench.audit.entries import Entry
from bench.audit.tail import AuditContext
from bench.record import subject_task
from bench.sae.canonical import Canonical
from bench.store import Arrays, Store, digest, file_sha256
from bench.types import SAE, Metric, NotApplicable
from bench.worlds.context import WorldContext, world_context
from bench.worlds.defects import DEFECTS
from bench.worlds.good import good_sae
from bench.worlds.names import open_world
from bench.worlds.planted import World

DOSES = (0.0, 0.05, 0.1, 0.2, 0.4)
BAD = 0.1  # the dose of the planted-bad SAE
SEEDS, RESEEDS = 20, 8
_SHAPE_TOKENS = 8_192

MakeControl = Callable[[World, float], SAE]


@dataclass(frozen=True)
class Cell:
    """One measurement on a planted world.

    Args:
        rate: True rate of the defect.
        l0: Mean active latents per token.
        ev: Explained variance.
        latents: Number of latents.
        features: Number of true features.
        values: Metrics, or empty where the task had no answer.
    """

    rate: float
    l0: float
    ev: float
    latents: int
    features: int
    values: Mapping[str, Metric]


@dataclass(frozen=True)
class Grid:
    """All cells of an audit; every seed has a world of its own.

    Args:
        doses: Doses.
        own: [seed][dose] cells of the metric's own defect.
        absent: [seed] cells of the other defect at 10 %.
        reseeds: Cells of the first world's planted-bad SAE under other seeds of the task.
        control: The random dictionary on the first world, where there is one.
    """

    doses: tuple[float, ...]
    own: tuple[tuple[Cell, ...], ...]
    absent: tuple[Cell, ...]
    reseeds: tuple[Cell, ...]
    control: Cell | None = None


@dataclass(frozen=True)
class Ground:
    """One seed's world, its good SAE, and what tasks are given.

    Args:
        reference: World with its seed.
        seed: Root of the tasks' draws.
        store: Where the world's tokens are kept.
    """

    reference: str
    seed: int
    store: Store

    @cached_property
    def world(self) -> World:
        """The world."""
        return open_world(self.reference)

    @cached_property
    def good(self) -> Any:
        """Its near-ideal SAE."""
        return good_sae(self.world)

    def context(self, reseed: int) -> WorldContext:
        """What a task is given; `reseed` > 0 changes the task's own draws only."""
        made = world_context(self.world, self.store, self.seed + 1_000 * reseed)
        return AuditContext(**{f.name: getattr(made, f.name) for f in fields(made)})

    def measure(self, task: Any, sae: SAE, rate: float, reseed: int = 0) -> Cell:
        """A task's answer about one SAE, with the SAE's shape."""
        canonical, ctx = Canonical(sae), self.context(reseed)
        text = ctx.text(_SHAPE_TOKENS)
        codes = ctx.text_codes(canonical, text)
        error = np.square(text.kept - canonical.reconstruct(codes)).sum(dtype=np.float64)
        ev = 1 - error / np.square(text.kept - text.kept.mean(0)).sum(dtype=np.float64)
        answer = task.run(canonical, ctx)
        values = {} if isinstance(answer, NotApplicable) else answer.metrics
        return Cell(rate, float(codes.l0().mean()), float(ev), canonical.d_sae, self.world.n_features, values)


def grid(
    entry: Entry,
    task: Any,
    store: Store,
    seeds: int = SEEDS,
    doses: tuple[float, ...] = DOSES,
    reseeds: int = RESEEDS,
    control: MakeControl | None = None,
) -> Grid:
    """Measure every cell that is not in the store yet.

    A world's tokens go to a temporary folder that is dropped with the seed: twenty worlds are gigabytes.

    Args:
        entry: What is audited.
        task: The task with its parameters.
        store: Where cells are kept, so that an interrupted audit goes on.
        seeds: Worlds.
        doses: Doses of the defect; 0 and `BAD` among them.
        reseeds: Seeds of the task on one fixed SAE.
        control: Makes the random dictionary of a world for a given L0.
    """
    own, absent, again = list[tuple[Cell, ...]](), list[Cell](), list[Cell]()
    random: Cell | None = None
    total = seeds * (len(doses) + 1) + max(reseeds - 1, 0) + (control is not None)
    with progress.track(f"audit of {entry.task}", total, "cells") as advance:
        for seed in range(seeds):
            with TemporaryDirectory(prefix="ortsae-audit-") as folder:
                ground = Ground(_seeded(entry.world, seed), seed, Store(Path(folder)))
                get = _Cells(ground, task, store, advance)
                own.append(tuple(get.injected(entry.defect, d) for d in doses))
                absent.append(get.injected(entry.absent, BAD))
                if seed == 0:
                    again = [own[0][doses.index(BAD)], *(get.injected(entry.defect, BAD, r) for r in range(1, reseeds))]
                    random = get.random(control, own[0][0].l0) if control else None
    return Grid(doses, tuple(own), tuple(absent), tuple(again), random)


@dataclass(frozen=True)
class _Cells:
    """Cells of one seed, each from the store or measured now."""

    ground: Ground
    task: Any
    store: Store
    advance: progress.Advance

    def injected(self, defect: str, dose: float, reseed: int = 0) -> Cell:
        """The good SAE with a dose of a defect."""

        def compute() -> Cell:
            made = DEFECTS[defect](self.ground.good, self.ground.world, dose, self.ground.seed)
            return self.ground.measure(self.task, made.sae, made.rate, reseed)

        return self._kept({"defect": defect if dose else "", "dose": dose, "reseed": reseed}, compute)

    def random(self, make: MakeControl, l0: float) -> Cell:
        """The random dictionary."""
        made = {"control": "random", "l0": l0}
        return self._kept(made, lambda: self.ground.measure(self.task, make(self.ground.world, l0), 0.0))

    def _kept(self, what: Mapping[str, object], compute: Callable[[], Cell]) -> Cell:
        """The key holds the task, the world, and the code that makes worlds and defects."""
        parts = {"rule": 1, "task": subject_task(self.task).model_dump(), "world": self.ground.reference, "seed": self.ground.seed}
        found = self.store.get("audit", {**parts, "code": _code(), **what}, lambda: _arrays(compute()))
        self.advance(1)
        return _cell(found)


@cache
def _code() -> str:
    """SHA-256 of the sources that make planted worlds, as this process has loaded them."""
    files = [*sorted((registry.package_folder("bench") / "worlds").glob("*.py")), Path(__file__).with_name("tail.py")]
    return digest([file_sha256(f) for f in files])


def _seeded(world: str, seed: int) -> str:
    return f"{world}{'&' if '?' in world else '?'}seed={seed}"


def _arrays(cell: Cell) -> Arrays:
    names = sorted(cell.values)
    of = [cell.values[n] for n in names]
    text = np.array([(n, m.unit, m.unit_class, m.better) for n, m in zip(names, of, strict=True)], dtype=np.str_).reshape(-1, 4)
    numbers = [(m.value, m.n, m.interval is not None, *(m.interval or (0.0, 0.0))) for m in of]
    shape = np.array([cell.rate, cell.l0, cell.ev, cell.latents, cell.features], dtype=np.float64)
    return {"text": text, "numbers": np.array(numbers, dtype=np.float64).reshape(-1, 5), "shape": shape}


def _cell(found: Arrays) -> Cell:
    rate, l0, ev, latents, features = np.asarray(found["shape"]).tolist()
    values: dict[str, Metric] = {}
    for (name, unit, unit_class, better), (value, n, known, low, high) in zip(
        np.asarray(found["text"]).tolist(), np.asarray(found["numbers"]).tolist(), strict=True
    ):
        values[name] = Metric(value, int(n), unit, unit_class, better, (low, high) if known else None)
    return Cell(rate, l0, ev, int(latents), int(features), values)
