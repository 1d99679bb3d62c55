"""Log lines for an experiment tracker: trackio, wandb or tensorboard, none of which is a dependency.

A tracker works in a thread of its own. Whatever becomes of it there (not installed, no network, an exception, a call that
never returns), training goes on: there is one warning, and its lines are dropped from then on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bench import progress

PROJECT = "ortsae-bench"
PATIENCE_S = 30.0  # a tracker may take this long to send what is left at the end

Line = Mapping[str, float]


@runtime_checkable
class Sink(Protocol):
    """What all three come down to."""

    def log(self, line: Line, step: int) -> None: ...
    def finish(self) -> None: ...


class Tracker:
    """One run's lines on their way to a tracker.

    Args:
        kind: `trackio`, `wandb` or `tensorboard`.
        name: Of the run.
        facts: Method and recipe.
        folder: Where tensorboard and wandb may write.
    """

    def __init__(self, kind: str, name: str, facts: Mapping[str, Any], folder: Path) -> None:
        self._kind = kind
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._silent = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(name, dict(facts), folder), daemon=True)
        self._thread.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand over a log line; `step` is one of its numbers."""
        if not self._silent.is_set():
            self._lines.put({k: v for k, v in line.items() if isinstance(v, int | float)})

    def end(self) -> None:
        """No more lines come."""
        self._lines.put(None)

    def wait(self, until: float) -> None:
        """Wait for what is left to be sent, at the longest until a time of the monotonic clock."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._fail(f"does not answer within {PATIENCE_S:g} s")

    def _work(self, name: str, facts: dict[str, Any], folder: Path) -> None:
        try:
            sink = OPEN[self._kind](name, facts, folder)
            while (line := self._lines.get()) is not None:
                sink.log({k: v for k, v in line.items() if k != "step"}, int(line["step"]))
            sink.finish()
        except BaseException as e:  # somebody else's code, which may also try to leave the process
            self._fail(f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}")

    def _fail(self, reason: str) -> None:
        if not self._silent.is_set():
            self._silent.set()
            progress.note("the tracker failed; training goes on without it", tracker=self._kind, reason=reason)


def close(trackers: Sequence[Tracker]) -> None:
    """End all trackers and wait for them together."""
    for tracker in trackers:
        tracker.end()
    until = time.monotonic() + PATIENCE_S
    for tracker in trackers:
        tracker.wait(until)


def _trackio(name: str, facts: dict[str, Any], folder: Path) -> Sink:
    import trackio  # pyright: ignore[reportMissingImports]

    return trackio.init(project=PROJECT, name=name, config=facts)


def _wandb(name: str, facts: dict[str, Any], folder: Path) -> Sink:
    import wandb  # pyright: ignore[reportMissingImports]

    mode = None if wandb.api.api_key else "offline"  # without a key it would ask for one at the keyboard
    return wandb.init(project=PROJECT, name=name, config=facts, dir=str(folder), mode=mode, reinit="create_new")


def _tensorboard(name: str, facts: dict[str, Any], folder: Path) -> Sink:
    import json

    from torch.utils.tensorboard import SummaryWriter

    class Board:
        writer = SummaryWriter(str(folder / "tensorboard"))

        def log(self, line: Line, step: int) -> None:
            for key, value in line.items():
                self.writer.add_scalar(key, value, step)

        def finish(self) -> None:
            self.writer.close()

    board = Board()
    board.writer.add_text("run", f"    {json.dumps({'name': name, **facts}, default=str)}")
    return board


OPEN: Mapping[str, Callable[[str, dict[str, Any], Path], Sink]] = {"trackio": _trackio, "wandb": _wandb, "tensorboard": _tensorboard}
