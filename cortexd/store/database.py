"""One writer on one SQLite file; what it confirmed is on disk (WAL, synchronous=FULL)."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite

from cortexd.errors import StoreFailed
from cortexd.events import Event, Priority
from cortexd.kinds import Value
from cortexd.store.schema import MIGRATIONS, VERSION

EVENTS_PER_MODEL = 2000
EVENTS_IN_ALL = 100_000
_PRUNE_EVERY = 200
_BUSY_SECONDS = 5.0
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A row: the name and the settings that were asked for, as plain JSON values; None where they cannot be read."""

    name: str
    settings: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EventQuery:
    """Which events: empty `models` and `kinds` mean all; `since` is microseconds since the epoch."""

    models: Sequence[str] = ()
    kinds: Sequence[str] = ()
    since: int = 0
    limit: int = 50


class Store:
    """The database. Every method raises StoreFailed, with the file and the remedy, when SQLite does."""

    def __init__(self, connection: aiosqlite.Connection, path: Path, now: Callable[[], float]) -> None:
        self._connection = connection
        self._path = path
        self._now = now
        self._writer = asyncio.Lock()
        self._unpruned: list[str] = []
        self.on_event: Callable[[Event], None] = lambda event: None
        """Called with every event that is on disk."""

    @classmethod
    async def open(cls, path: Path, *, now: Callable[[], float] = time.time) -> Store:
        """Open or create the database at `path`; its folder becomes 0700, the file 0600."""
        try:
            await asyncio.to_thread(_prepare, path)
            connection = await aiosqlite.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
        except OSError as e:
            reason = e.strerror or str(e)
            raise StoreFailed(f"{path} cannot be opened: {reason}; check its folder, or move it away") from e
        except sqlite3.Error as e:
            raise StoreFailed(f"{path} cannot be opened: {e}; {_remedy(e)}") from e
        self = cls(connection, path, now)
        try:
            with self._errors():
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                    await connection.execute(f"PRAGMA {pragma}")
                await self._migrate()
                rows = await connection.execute_fetchall("SELECT DISTINCT model FROM events")
                await self._prune([name for (name,) in rows])
        except BaseException:
            await connection.close()
            raise
        return self

    async def close(self) -> None:
        """Close the file."""
        await self._connection.close()

    def _errors(self) -> _Errors:
        return _Errors(self._path)

    async def _migrate(self) -> None:
        (version,) = await self._row("PRAGMA user_version")
        if version > VERSION:
            raise StoreFailed(
                f"{self._path} is of version {version}, and this cortexd knows {VERSION}; "
                "install the newer cortexd again, or move the file away"
            )
        for step in range(version, VERSION):
            async with self._transaction():
                for statement in MIGRATIONS[step]:
                    await self._connection.execute(statement)
                await self._connection.execute(f"PRAGMA user_version={step + 1}")

    async def _row(self, sql: str) -> Any:
        async with self._connection.execute(sql) as cursor:
            return await cursor.fetchone()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        with self._errors():
            async with self._writer:
                try:
                    await self._connection.execute("BEGIN IMMEDIATE")
                    yield self._connection
                    await self._connection.execute("COMMIT")
                except BaseException:
                    # Where only our waiting was cancelled, SQLite's thread has gone on all the same. On some errors SQLite
                    # has rolled back itself.
                    with suppress(sqlite3.Error):
                        await self._connection.execute("ROLLBACK")
                    raise

    async def models(self) -> list[StoredModel]:
        """Every model, sorted by name."""
        with self._errors():
            rows = await self._connection.execute_fetchall("SELECT name, settings FROM models ORDER BY name")
            return [StoredModel(name, _settings(text)) for name, text in rows]

    async def save_model(self, name: str, settings: Mapping[str, Value], event: Event) -> None:
        """Insert or change a model together with the event that says so."""
        now = int(self._now() * 1e6)
        async with self._transaction() as connection:
            await connection.execute(
                "INSERT INTO models VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET settings = ?2, updated = ?4",
                (name, json.dumps(settings, sort_keys=True), now, now),
            )
            await self._insert(event)
        self.on_event(event)

    async def delete_model(self, name: str, event: Event) -> None:
        """Forget a model's configuration; its events stay."""
        async with self._transaction() as connection:
            await connection.execute("DELETE FROM models WHERE name = ?", (name,))
            await self._insert(event)
        self.on_event(event)

    async def add_event(self, event: Event) -> None:
        """Append to the audit log."""
        async with self._transaction():
            await self._insert(event)
        self.on_event(event)

    async def _insert(self, event: Event) -> None:
        await self._connection.execute(
            "INSERT INTO events (time, model, kind, priority, message, details, invocation_id, actor)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                event.time or int(self._now() * 1e6),
                event.model,
                event.kind,
                event.priority.value,
                event.message,
                json.dumps(event.details, sort_keys=True),
                event.invocation_id,
                event.actor,
            ),
        )
        self._unpruned.append(event.model)
        if len(self._unpruned) >= _PRUNE_EVERY:
            await self._prune(set(self._unpruned))
            self._unpruned.clear()

    async def _prune(self, models: Collection[str]) -> None:
        """Keep the log bounded: in all, and for the models that wrote since the last time."""
        await self._connection.execute(
            "DELETE FROM events WHERE id <= (SELECT MAX(id) FROM events) - ?", (EVENTS_IN_ALL,)
        )
        await self._connection.executemany(
            "DELETE FROM events WHERE model = ?1 AND id <= "
            "(SELECT id FROM events WHERE model = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            [(model, EVENTS_PER_MODEL) for model in models],
        )

    async def events(self, query: EventQuery) -> list[Event]:
        """The newest events that fit, oldest first."""
        where, values = ["time >= ?"], [min(query.since, _MAX_INTEGER), *query.models, *query.kinds]
        for column, allowed in (("model", query.models), ("kind", query.kinds)):
            if allowed:
                where.append(f"{column} IN ({','.join('?' * len(allowed))})")
        sql = (
            "SELECT id, time, model, kind, priority, message, details, invocation_id, actor FROM events"
            f" WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        )
        with self._errors():
            rows = [*await self._connection.execute_fetchall(sql, (*values, query.limit))]
        return [
            Event(
                id=row[0],
                time=row[1],
                model=row[2],
                kind=row[3],
                priority=Priority(row[4]),
                message=row[5],
                details=json.loads(row[6]),
                invocation_id=row[7],
                actor=row[8],
            )
            for row in reversed(rows)
        ]


def _prepare(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "it is no regular file")
    # SQLite gives its side files (-wal, -shm) the mode of the database. O_NONBLOCK: a FIFO there must not stop us.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)


def _settings(text: str) -> Mapping[str, Any] | None:
    try:
        settings = json.loads(text)
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def _remedy(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_BUSY"):
        return "another program keeps it locked; end that program"
    return "the disk is full" if name == "SQLITE_FULL" else "check the disk, or move the file away"


class _Errors:
    """Turns SQLite's errors into StoreFailed, naming the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error | ValueError):
            raise StoreFailed(f"{self._path}: {error}; {_remedy(error)}") from error
