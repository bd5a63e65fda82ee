"""One writer on one SQLite file; what it confirmed is on disk (WAL, synchronous=FULL)."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiosqlite

from cortexd.errors import StoreFailed
from cortexd.events import Event, Priority
from cortexd.kinds import Value
from cortexd.store import files
from cortexd.store.schema import MIGRATIONS, VERSION

log = logging.getLogger(__name__)

EVENTS_PER_MODEL = 2000
EVENTS_IN_ALL = 100_000
_PRUNE_EVERY = 200
_BUSY_SECONDS = 5.0
_MAX_INTEGER = 2**63 - 1
_INSERT_INTENT = "INSERT INTO intents (time, model, kind, details, actor) VALUES (?, ?, ?, ?, ?)"

NEW = "new-database"
"""The intent with which a new file begins: to take over what there was before it, if there was anything."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A row: the name and the settings that were asked for, as plain JSON values; None where they cannot be read."""

    name: str
    settings: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent:
    """Something of several steps that was begun: written before the first, gone after the last."""

    model: str
    kind: str
    details: Mapping[str, Any] = field(default_factory=dict)
    actor: str = ""
    id: int = 0


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
        self.new = False
        """The file was not there, or could not be read, and `take_over` has not been called since."""
        self.set_aside = ""
        """Where a file that could not be read was moved to; empty where there was none."""
        self._writer = asyncio.Lock()
        self._unpruned: list[str] = []
        self.on_event: Callable[[Event], None] = lambda event: None
        """Called with every event that is on disk."""

    @classmethod
    async def open(cls, path: Path, *, now: Callable[[], float] = time.time) -> Store:
        """Open or create the database at `path`; its folder becomes 0700, the file 0600. One that is damaged is kept
        aside, and a new one takes its place."""
        try:
            return await cls._open(path, now)
        except StoreFailed as e:
            if not files.is_damaged(e.__cause__):
                raise
            kept = await asyncio.to_thread(files.set_aside, path, now())
            log.error("%s; it is kept as %s, and a new one is begun", e, kept)
        self = await cls._open(path, now)
        self.set_aside = str(kept)
        return self

    @classmethod
    async def _open(cls, path: Path, now: Callable[[], float]) -> Store:
        try:
            await asyncio.to_thread(files.prepare, path)
            connection = await aiosqlite.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
        except OSError as e:
            reason = e.strerror or str(e)
            raise StoreFailed(f"{path} cannot be opened: {reason}; check its folder, or move it away") from e
        except sqlite3.Error as e:
            raise StoreFailed(f"{path} cannot be opened: {e}; {_remedy(e)}") from e
        self = cls(connection, path, now)
        try:
            with self._errors():
                (found,) = await self._row("PRAGMA quick_check(1)")
                if found != "ok":
                    raise files.Damaged(found)
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
                f"install the newer cortexd again, or {files.restore_command(self._path, VERSION)}"
            )
        if 0 < version < VERSION:
            await asyncio.to_thread(files.copy, self._path, version)
        for step in range(version, VERSION):
            async with self._transaction():
                for statement in MIGRATIONS[step]:
                    await self._connection.execute(statement)
                if step + 1 == VERSION and not version:
                    await self._connection.execute(_INSERT_INTENT, (0, "", NEW, "{}", ""))
                await self._connection.execute(f"PRAGMA user_version={step + 1}")
        self.new = any(intent.kind == NEW for intent in await self.unfinished())

    async def _row(self, sql: str) -> Any:
        async with self._connection.execute(sql) as cursor:
            return await cursor.fetchone()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """Whatever is raised, by SQLite or by whoever cancels us: then nothing of it is in the database."""
        with self._errors():
            async with self._writer:
                try:
                    await self._connection.execute("BEGIN IMMEDIATE")
                    yield self._connection
                    await _to_its_end(self._connection.execute("COMMIT"))
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

    async def take_over(self, models: Mapping[str, Mapping[str, Value]], event: Callable[[str], Event]) -> None:
        """What a new database begins with, all of it or nothing; `event` makes the event of a model."""
        events = [event(name) for name in models]
        now = int(self._now() * 1e6)
        async with self._transaction() as connection:
            for name, settings in models.items():
                row = (name, json.dumps(settings, sort_keys=True), now, now)
                await connection.execute("INSERT INTO models VALUES (?, ?, ?, ?)", row)
            for told in events:
                await self._insert(told)
            await connection.execute("DELETE FROM intents WHERE kind = ?", (NEW,))
        self.new = False
        for told in events:
            self.on_event(told)

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

    async def begin(self, intent: Intent) -> int:
        """Write down what is about to be done; returns the intent's id."""
        async with self._transaction() as connection:
            details = json.dumps(intent.details, sort_keys=True)
            row = (int(self._now() * 1e6), intent.model, intent.kind, details, intent.actor)
            cursor = await connection.execute(_INSERT_INTENT, row)
        return int(cursor.lastrowid or 0)

    async def end(self, intent: int, event: Event | None = None) -> None:
        """It is done, or undone, as the event says."""
        async with self._transaction() as connection:
            await connection.execute("DELETE FROM intents WHERE id = ?", (intent,))
            if event is not None:
                await self._insert(event)
        if event is not None:
            self.on_event(event)

    async def unfinished(self) -> list[Intent]:
        """What a daemon that was killed had begun, oldest first."""
        with self._errors():
            rows = await self._connection.execute_fetchall(
                "SELECT id, model, kind, details, actor FROM intents ORDER BY id"
            )
        return [
            Intent(id=row[0], model=row[1], kind=row[2], details=_settings(row[3]) or {}, actor=row[4]) for row in rows
        ]

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


def _settings(text: str) -> Mapping[str, Any] | None:
    try:
        settings = json.loads(text)
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def _remedy(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program keeps it locked; end that program"
    return "the disk is full" if name == "SQLITE_FULL" else "check the disk, or move the file away"


async def _to_its_end(work: Awaitable[object]) -> None:
    """Wait for what goes on in a thread even when nobody waits for it. A cancellation meanwhile is put off until it is
    done, and arrives at the caller's next `await`."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except Exception:
            break  # its result tells
    caller = asyncio.current_task()
    if cancelled and caller is not None:
        caller.uncancel()
        caller.cancel()
    task.result()


class _Errors:
    """Turns SQLite's errors into StoreFailed, naming the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error | ValueError):
            raise StoreFailed(f"{self._path}: {error}; {_remedy(error)}") from error
