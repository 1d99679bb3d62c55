"""Typed errors: one line of cause, one line of remedy, one documented exit code each."""

from __future__ import annotations

from typing import ClassVar

_LONGEST = 2000  # characters of a cause or remedy; names and values from other people's files are among them


def one_line(text: object, most: int = _LONGEST) -> str:
    """Text on one line that does nothing to a terminal: what cannot be printed is spelled out, the middle of long text left out.

    Control characters could move the cursor or change what stands on the screen, marks of direction could reorder it, and
    half of a surrogate pair could not be written at all.
    """
    line = " ".join(str(text).split())
    if len(line) > most:
        line = f"{line[: most // 2]} … {line[-most // 4 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class BenchError(Exception):
    """Base of every error the suite raises on purpose.

    Args:
        cause: What went wrong, in one line.
        remedy: What the user can do about it, in one line.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause, self.remedy = one_line(cause), one_line(remedy)
        super().__init__(self.cause)

    def __str__(self) -> str:
        return f"{self.cause} — {self.remedy}" if self.remedy else self.cause


class UsageError(BenchError):
    """A flag, name or configuration that cannot be used (exit 2)."""

    code = "usage"
    exit_code = 2


class CheckpointError(BenchError):
    """A checkpoint that cannot be read, is malformed, or lacks facts (exit 3)."""

    code = "checkpoint"
    exit_code = 3


class UnavailableError(BenchError):
    """A model, data set or package that cannot be had now (exit 4)."""

    code = "unavailable"
    exit_code = 4


class JudgeError(BenchError):
    """A judge that refuses every call, or a budget that is used up (exit 5)."""

    code = "judge"
    exit_code = 5


class ResourceError(BenchError):
    """Disk, memory or file-system trouble (exit 6)."""

    code = "resource"
    exit_code = 6


class VerificationError(BenchError):
    """A record, cache entry or gate that does not verify (exit 7)."""

    code = "verification"
    exit_code = 7


EXIT_CODES: dict[int, str] = {
    0: "all done and valid (a task that does not apply is not a failure)",
    1: "finished, but some tasks failed or a training diverged",
    2: "usage or configuration",
    3: "checkpoint rejected",
    4: "model or data unavailable",
    5: "judge or budget stop",
    6: "resources: disk or memory",
    7: "verification or regression gate",
    130: "interrupted; run the same command again to go on",
}
