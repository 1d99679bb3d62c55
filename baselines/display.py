"""What a reader sees while SAEs train: a bar with numbers on a terminal, JSON events in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench import interrupts, progress

Advance = Callable[[Sequence[Mapping[str, Any]]], None]
_EVERY_S = 5.0


@contextmanager
def bar(label: str, total: int, done: int, batch: int) -> Generator[Advance]:
    """Yield `advance(lines)`: one more step is done, and these are the last log lines of the SAEs in training.

    Ctrl-C takes effect in `advance`.

    Args:
        label: What is being trained.
        total: Steps in all.
        done: Steps an interrupted run had done; they do not count for speed and end.
        batch: Tokens per step.
    """
    pace = _Pace(total, done, batch)
    with _drawn(label, pace) if sys.stderr.isatty() else _told(label, pace) as show:

        def advance(lines: Sequence[Mapping[str, Any]]) -> None:
            pace.done += 1
            show(lines)
            interrupts.check()

        yield advance


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """EV, L0 and dead share of one SAE; of several the range of EV."""
    lines = [line for line in lines if "ev" in line]
    if not lines:
        return ""
    if len(lines) == 1:
        return f"EV {lines[0]['ev']:.3f}  L0 {lines[0]['l0']:.1f}  dead {lines[0]['dead']:.1%}"
    values = [line["ev"] for line in lines]
    return f"{len(lines)} SAEs  EV {min(values):.3f} to {max(values):.3f}"


class _Pace:
    """Steps done, and how fast."""

    def __init__(self, total: int, done: int, batch: int) -> None:
        self.total, self.done, self.batch = total, done, batch
        self._first, self._start = done, time.monotonic()

    @property
    def tokens_per_s(self) -> float:
        return (self.done - self._first) * self.batch / max(1e-9, time.monotonic() - self._start)

    @property
    def left_s(self) -> float:
        return (self.total - self.done) * self.batch / max(1e-9, self.tokens_per_s)


@contextmanager
def _drawn(label: str, pace: _Pace) -> Generator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=pace.total, completed=pace.done, now="")
        yield lambda lines: bars.update(task, completed=pace.done, now=f"{pace.tokens_per_s:,.0f} tokens/s  {summary(lines)}")


@contextmanager
def _told(label: str, pace: _Pace) -> Generator[Advance]:
    last = time.monotonic()

    def show(lines: Sequence[Mapping[str, Any]]) -> None:
        nonlocal last
        if time.monotonic() - last < _EVERY_S:
            return
        last = time.monotonic()
        speed = {"tokens_per_s": round(pace.tokens_per_s), "eta_s": round(pace.left_s)}
        now = {k: lines[0][k] for k in ("ev", "l0", "dead") if k in lines[0]} if len(lines) == 1 else {"saes": len(lines)}
        progress.note("progress", stage=label, done=pace.done, total=pace.total, unit="steps", **speed, **now)

    yield show
