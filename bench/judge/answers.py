"""Answers that were paid for, on disk: one SQLite file, text only.

An answer is committed, synced to disk, before anything else happens with it. Any number of processes and threads may use
the file. The first answer to a prompt stays; two processes that ask the same thing at the same moment both pay for it. A
row carries its checksum: one that does not match is as good as none.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from filelock import FileLock

from bench import progress
from bench.errors import ResourceError
from bench.store import cache_root, digest

_COLUMNS = ("prompt", "answer", "tokens_in", "tokens_out", "model", "created", "checksum")
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (prompt TEXT PRIMARY KEY, answer TEXT NOT NULL, tokens_in INTEGER,"
    " tokens_out INTEGER, model TEXT NOT NULL, created REAL NOT NULL, checksum TEXT NOT NULL) WITHOUT ROWID"
)
_AT_ONCE = 500  # prompts in one SELECT
_BUSY_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """One answer of a server.

    Args:
        prompt: Hash of all that was asked.
        content: Text of the answer; None where the server sent none.
        finish: Why it ended, such as `stop` or `length`.
        tokens_in: As the server counts; None where it does not say.
        tokens_out: Likewise.
        model: That was asked for.
    """

    prompt: str
    content: str | None
    finish: str
    tokens_in: int | None
    tokens_out: int | None
    model: str

    @property
    def whole(self) -> bool:
        """Whether the answer is all that the model had to say."""
        return self.content is not None and self.finish not in ("length", "content_filter")


class _DamagedError(Exception):
    pass


class Answers:
    """The open file; use it in a `with` block.

    Raises:
        ResourceError: The file cannot be read or written. A damaged one is set aside instead.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_root() / "judge" / "answers.sqlite"
        self._lock = threading.Lock()
        self._db = self._opened()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is lost without it; the file's `-wal` is folded in."""
        with self._lock:
            self._db.close()

    def get(self, prompts: Sequence[str]) -> dict[str, Kept]:
        """What there is of these prompts."""

        def select(db: sqlite3.Connection) -> dict[str, Kept]:
            rows: list[tuple[object, ...]] = []
            for i in range(0, len(prompts), _AT_ONCE):
                part = prompts[i : i + _AT_ONCE]
                places = ",".join("?" * len(part))
                rows += db.execute(f"SELECT {','.join(_COLUMNS)} FROM answers WHERE prompt IN ({places})", part)
            return {kept.prompt: kept for kept in map(_kept, rows) if kept is not None}

        return self._do(select)

    def put(self, kept: Kept) -> Kept:
        """Commit an answer; the one that is there from now on, which another process may have put before."""
        values = _values(kept)

        def insert(db: sqlite3.Connection) -> None:
            with db:
                db.execute("BEGIN IMMEDIATE")
                row = db.execute(f"SELECT {','.join(_COLUMNS)} FROM answers WHERE prompt = ?", (kept.prompt,)).fetchone()
                if row is None or _kept(row) is None:
                    db.execute(f"INSERT OR REPLACE INTO answers ({','.join(_COLUMNS)}) VALUES (?,?,?,?,?,?,?)", values)

        self._do(insert)
        return self.get([kept.prompt]).get(kept.prompt, kept)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do it; where the file turns out damaged, set it aside and do it in a new one."""
        with self._lock:
            try:
                return _guarded(self.path, work, self._db)
            except _DamagedError:
                self._db.close()
                self._db = self._opened()
            try:
                return _guarded(self.path, work, self._db)
            except _DamagedError as e:
                raise _unusable(self.path, "damaged again and again") from e

    def _opened(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                try:
                    return _connected(self.path)
                except _DamagedError:
                    _set_aside(self.path)
                    return _connected(self.path)
        except OSError as e:
            raise _unusable(self.path, e.strerror or str(e)) from e


def _connected(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    except sqlite3.OperationalError as e:  # a folder, or no right to it
        raise _unusable(path, str(e)) from e

    def prepare(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise _DamagedError
        db.execute(_TABLE)
        if tuple(row[1] for row in db.execute("PRAGMA table_info(answers)")) != _COLUMNS:
            raise _DamagedError

    try:
        _guarded(path, prepare, db)
    except BaseException:
        db.close()
        raise
    return db


def _guarded(path: Path, work: Callable[[sqlite3.Connection], T], db: sqlite3.Connection) -> T:
    try:
        return work(db)
    except sqlite3.OperationalError as e:  # locked, read-only, full
        raise _unusable(path, str(e)) from e
    except sqlite3.DatabaseError as e:  # not a database, or malformed
        raise _DamagedError from e


def _set_aside(path: Path) -> None:
    name = f"{path.name}.damaged-{uuid.uuid4().hex[:8]}"
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(path.with_name(name + suffix))
    progress.note("the file of answers is damaged: set aside, starting a new one", kept=str(path.with_name(name)))


def _values(kept: Kept) -> tuple[object, ...]:
    answer = json.dumps({"content": kept.content, "finish": kept.finish})
    facts = (kept.prompt, answer, kept.tokens_in, kept.tokens_out, kept.model, time.time())
    return (*facts, digest(facts))


def _kept(row: tuple[object, ...]) -> Kept | None:
    """A row as an answer; None where its checksum does not match."""
    prompt, answer, tokens_in, tokens_out, model, _, checksum = row
    try:
        if digest(row[:-1]) != checksum:
            return None
        said = json.loads(str(answer))
        kept = Kept(str(prompt), said["content"], said["finish"], _count(tokens_in), _count(tokens_out), str(model))
    except (ValueError, TypeError, KeyError):
        return None
    return kept


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _unusable(path: Path, why: str) -> ResourceError:
    return ResourceError(f"cannot use the file of answers {path}: {why}", "free space, or set ORTSAE_CACHE to a writable folder")
