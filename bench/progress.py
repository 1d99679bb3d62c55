"""Progress on stderr: a rich bar with ETA on a terminal, JSON lines otherwise."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext

from bench import interrupts

Advance = Callable[[int], None]
_EVERY_S = 5.0


def note(event: str, **facts: object) -> None:
    """One line of news: readable on a terminal, one JSON object otherwise."""
    if sys.stderr.isatty():
        print(f"· {event}  " + "  ".join(f"{k}={v}" for k, v in facts.items()), file=sys.stderr, flush=True)
    else:
        print(json.dumps({"event": event, **facts}, default=str), file=sys.stderr, flush=True)


@contextmanager
def track(label: str, total: int, unit: str = "") -> Generator[Advance]:
    """Yield `advance(n)`; show how far the work is and when it should end. Ctrl-C takes effect between two calls.

    Args:
        label: What is being done.
        total: Units of work in all.
        unit: Name of one unit, for the reader.
    """
    with _bar(label, total) if sys.stderr.isatty() else nullcontext(_lines(label, total, unit)) as advance:

        def step(n: int) -> None:
            advance(n)
            interrupts.check()

        yield step


@contextmanager
def _bar(label: str, total: int) -> Generator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda n: bars.advance(task, n)


def _lines(label: str, total: int, unit: str) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < _EVERY_S:
            return
        last = now
        eta = (now - start) / max(done, 1) * max(total - done, 0)
        note("progress", stage=label, done=done, total=total, unit=unit, eta_s=round(eta))

    return advance
