"""The coordinator's journal: what must survive kill -9 and power loss, in one SQLite file.

Promise: when ``await journal.append(entry)`` returns, the entry is on disk (WAL, ``synchronous=FULL``: every commit is
an fsync). One writer thread; appends that arrive while it is busy are committed together, and none waits longer than
`GROUP_S` for company. Each record carries a checksum and consecutive ids, so that a damaged or missing one stops the
run with the way to recover instead of being skipped. After the first failed write nothing is written any more: after a
failed fsync nobody knows what the disk holds.

An OS lock (``flock`` on ``<path>.lock``) allows one coordinator a journal; the kernel drops it with the process.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from swarm.errors import CheckpointError, ConfigError, SwarmError
from swarm.messages import Json

GROUP_S: Final = 0.005
FORMAT: Final = 1
_RECOVERY: Final = (
    "to recover, move it and its -wal and -shm files aside and resume: the run continues from its newest checkpoint, "
    "only unfinished tasks are forgotten"
)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, task_id TEXT NOT NULL, body TEXT NOT NULL, checksum INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One fact. ``kind`` names what happened to ``task_id``; ``body`` is JSON-like (tuples come back as lists)."""

    kind: str
    task_id: str
    body: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    task_id: str
    body: str
    future: Future[None]


class Journal:
    """An open journal; use as a context manager, or call `close`. Made by `open`.

    Attributes:
        path: the SQLite file.
        incarnation: 1 for the first time that this journal was opened, then growing by one; fences earlier lives.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock_fd: int, incarnation: int) -> None:
        self.path = path
        self.incarnation = incarnation
        self._connection = connection
        self._lock_fd = lock_fd
        self._rows: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._failure: SwarmError | None = None
        self._closed = False
        self._writer = threading.Thread(target=self._write, name="swarm-journal", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open or make the journal at ``path``, alone.

        Raises:
            ConfigError: another process has it open, or the folder cannot be written.
            CheckpointError: it is damaged or of another version.
        """
        lock_fd = _lock(path)
        try:
            connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            try:
                incarnation = _prepare(connection)
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OverflowError) as error:
            os.close(lock_fd)
            raise CheckpointError(f"journal {path} cannot be read ({error}); {_RECOVERY}") from None
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, connection, lock_fd, incarnation)

    async def append(self, entry: JournalEntry) -> None:
        """Return once ``entry`` is on disk. A cancelled append may still be written.

        Raises:
            SwarmError: it could not be written (disk full, I/O error, not JSON-like); the journal takes nothing more
                after an error of the disk.
        """
        await asyncio.wrap_future(self.append_nowait(entry))

    def append_nowait(self, entry: JournalEntry) -> Future[None]:
        """Queue ``entry`` in call order; the future ends once it is on disk. Raises like `append`."""
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise SwarmError(f"journal {self.path} is closed; append before closing it")
        try:
            body = json.dumps(entry.body, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise SwarmError(f"journal entry {entry.kind!r} of {entry.task_id!r} is not JSON-like: {error}") from None
        future: Future[None] = Future()
        self._rows.put(_Row(entry.kind, entry.task_id, body, future))
        return future

    def entries(self) -> list[JournalEntry]:
        """All entries on disk, oldest first.

        Raises:
            CheckpointError: a record is damaged or missing; the text names the first such one and how to recover.
        """
        try:
            reader = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            try:
                rows = reader.execute("SELECT id, kind, task_id, body, checksum FROM entries ORDER BY id").fetchall()
            finally:
                reader.close()
        except (sqlite3.Error, OverflowError) as error:
            raise CheckpointError(f"journal {self.path} cannot be read ({error}); {_RECOVERY}") from None
        return [self._checked(expected, row) for expected, row in enumerate(rows, start=1)]

    def close(self) -> None:
        """Write what is queued, stop the writer, release the lock. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._rows.put(None)
        self._writer.join()
        self._connection.close()
        os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, expected: int, row: tuple[object, ...]) -> JournalEntry:
        identity, kind, task_id, body, checksum = row
        if identity != expected:
            raise CheckpointError(f"journal {self.path} lacks record {expected}; {_RECOVERY}")
        if not (isinstance(kind, str) and isinstance(task_id, str) and isinstance(body, str)) or (
            checksum != _checksum(expected, kind, task_id, body)
        ):
            raise CheckpointError(f"journal {self.path} is damaged at record {expected} of its entries; {_RECOVERY}")
        return JournalEntry(kind=kind, task_id=task_id, body=json.loads(body))

    def _write(self) -> None:
        ended = False
        while not ended:
            group, ended = self._next_group()
            if not group:
                continue
            if self._failure is None:
                self._failure = self._commit(group)
            for row in group:
                _settle(row.future, self._failure)

    def _next_group(self) -> tuple[list[_Row], bool]:
        """Wait for a row, take what else is there, for at most `GROUP_S`."""
        row = self._rows.get()
        group: list[_Row] = []
        until_s = time.monotonic() + GROUP_S
        while row is not None:
            group.append(row)
            try:
                if time.monotonic() >= until_s:
                    return group, False
                row = self._rows.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Row]) -> SwarmError | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            last = self._connection.execute("SELECT coalesce(max(id), 0) FROM entries").fetchone()[0]
            self._connection.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
                [
                    (i, row.kind, row.task_id, row.body, _checksum(i, row.kind, row.task_id, row.body))
                    for i, row in enumerate(group, start=last + 1)
                ],
            )
            self._connection.execute("COMMIT")
        except (sqlite3.Error, UnicodeEncodeError) as error:
            if self._connection.in_transaction:
                self._connection.rollback()
            return SwarmError(
                f"journal {self.path} could not be written ({error}); "
                "free space or repair the disk, then resume: the last committed round is kept"
            )
        return None


def _settle(future: Future[None], failure: SwarmError | None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)


def _checksum(identity: int, kind: str, task_id: str, body: str) -> int:
    return zlib.crc32(json.dumps([FORMAT, identity, kind, task_id, body]).encode())


def _lock(path: Path) -> int:
    """Take the exclusive lock of the journal; the descriptor holds it."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot open {lock_path}: {error.strerror}; choose a run directory that can be written"
        ) from None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        raise ConfigError(
            f"run directory {path.parent} is in use by another process (it holds {lock_path.name}); "
            "stop that one or choose another directory"
        ) from None
    return lock_fd


def _prepare(connection: sqlite3.Connection) -> int:
    """Set durability, make tables, count this life. Returns the incarnation."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, FORMAT):
        raise CheckpointError(f"journal has format {version}, expected {FORMAT}; use the version that wrote it")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    connection.executescript(_SCHEMA)
    connection.execute(f"PRAGMA user_version={FORMAT}")
    connection.execute(
        "INSERT INTO counters VALUES ('incarnation', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
    )
    return int(connection.execute("SELECT value FROM counters WHERE name = 'incarnation'").fetchone()[0])
