"""Ctrl-C: the first finishes the unit at hand, the second stops at once.

A signal handler belongs to the process, so this is the one place with process-wide state.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_pending: list[int] = []


@contextmanager
def polite() -> Generator[None]:
    """Within this block the first SIGINT only asks `check` to stop; the second one interrupts at once."""

    def ask(signum: int, _frame: FrameType | None) -> None:
        if _pending:
            raise KeyboardInterrupt
        _pending.append(signum)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _pending.clear()


def check() -> None:
    """Called between units of work: stop here if the user asked for it."""
    if _pending:
        raise KeyboardInterrupt
