"""One writer on one SQLite file; what it confirmed is on disk (WAL, synchronous=FULL)."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cortexd.errors import StoreFailed
from cortexd.events import Event, Priority, bounded
from cortexd.kinds import Value
from cortexd.store import files
from cortexd.store.connection import Connection
from cortexd.store.reserve import Reserve
from cortexd.store.schema import INDEXES, MIGRATIONS, VERSION
from cortexd.store.writer import Statement, Writer, transaction

log = logging.getLogger(__name__)

EVENTS_PER_MODEL = 2000
EVENTS_IN_ALL = 100_000
EVENTS_OF_KIND = 10
_PRUNE_EVERY = 200
_BUSY_SECONDS = 5.0
_MAX_INTEGER = 2**63 - 1
_SAVE_MODEL = "INSERT INTO models VALUES (?1, ?2, ?3, ?3) ON CONFLICT (name) DO UPDATE SET settings = ?2, updated = ?3"
_INSERT_INTENT = "INSERT INTO intents (time, model, kind, details, actor) VALUES (?, ?, ?, ?, ?)"
_END_INTENT = "DELETE FROM intents WHERE id = ?"
_INSERT_EVENT = (
    "INSERT INTO events (time, model, kind, priority, message, details, invocation_id, actor)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)

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
    """Which events: empty `models` and `kinds` mean all, but for those `without`; `since` is microseconds since the epoch."""

    models: Sequence[str] = ()
    kinds: Sequence[str] = ()
    without: Sequence[str] = ()
    since: int = 0
    limit: int = 50


_EVENT = "id, time, model, kind, priority, message, details, invocation_id, actor"


class Store:
    """The database. Every method raises StoreFailed, with the file and the remedy, when SQLite does, and Busy where too
    many writes wait already."""

    def __init__(self, connection: Connection, path: Path, now: Callable[[], float]) -> None:
        self._connection = connection
        self._path = path
        self._now = now
        self.new = False
        """The file was not there, or could not be read, and `take_over` has not been called since."""
        self.damaged: Path | None = None
        """Where the last file that could not be read was moved to, by whichever daemon; of a new file, if there is one."""
        self._writer = Writer(connection)
        self._reserve = Reserve(path)
        self._unpruned: set[str] = set()
        self._since_pruned = 0
        self.on_event: Callable[[Event], None] = lambda event: None
        """Called with every event that is on disk."""

    @classmethod
    async def open(cls, path: Path, *, now: Callable[[], float] = time.time) -> Store:
        """Open or create the database at `path`; its folder becomes 0700, the file 0600. One that is damaged is kept
        aside, and a new one takes its place."""
        try:
            return await cls._open(path, now)
        except StoreFailed as e:
            if files.is_full(e.__cause__) and await asyncio.to_thread(Reserve(path).release):
                return await cls._open(path, now)
            if not files.is_damaged(e.__cause__):
                raise
            kept = await asyncio.to_thread(files.set_aside, path, now())
            log.error("%s; it is kept as %s, and a new one is begun", e, kept)
        return await cls._open(path, now)

    @classmethod
    async def _open(cls, path: Path, now: Callable[[], float]) -> Store:
        try:
            await asyncio.to_thread(files.prepare, path)
            connection = await Connection.open(path, _BUSY_SECONDS)
        except OSError as e:
            reason = e.strerror or str(e)
            remedy = "make room" if files.is_full(e) else "check its folder, or move it away"
            if e.errno == errno.ELOOP:  # who moved that away would be without a database that is well
                remedy = "put the file itself in its place; all of ~/.cortex may be a link"
            raise StoreFailed(f"{path} cannot be opened: {reason}; {remedy}") from e
        except sqlite3.Error as e:
            raise StoreFailed(f"{path} cannot be opened: {e}; {_remedy(e)}") from e
        self = cls(connection, path, now)
        try:
            with self._errors():
                (found,) = await self._row("PRAGMA quick_check(1)")
                if found != "ok":
                    raise files.Damaged(found)
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                    await connection.rows(f"PRAGMA {pragma}")
                await self._migrate()
                for index in INDEXES:
                    await connection.rows(index)
                with suppress(OSError):  # then nothing is begun until there is room
                    await asyncio.to_thread(self._reserve.hold)
                rows = await connection.rows("SELECT DISTINCT model FROM events")
                await self._writer.write(_prune(name for (name,) in rows))
        except BaseException:
            await connection.close()
            raise
        return self

    async def close(self) -> None:
        """Write what still waits, and close the file."""
        await self._writer.close()
        await self._connection.close()

    def _errors(self) -> _Errors:
        return _Errors(self._path)

    async def _migrate(self) -> None:
        (version,) = await self._row("PRAGMA user_version")
        if version > VERSION:
            raise StoreFailed(
                f"{self._path} is of version {version}, and this cortexd knows {VERSION}; "
                f"install the newer cortexd again, or {files.restore_command(self._path, VERSION, self._now())}"
            )
        if 0 < version < VERSION:
            await asyncio.to_thread(files.copy, self._path, version, self._now())
        if version < VERSION:
            await self._connection.run(partial(_take_steps, version))
        self.new = any(intent.kind == NEW for intent in await self.unfinished())
        if self.new:
            self.damaged = await asyncio.to_thread(files.last_damaged, self._path)

    async def _row(self, sql: str) -> Any:
        (row,) = await self._connection.rows(sql)
        return row

    async def _write(self, *statements: Statement, events: Sequence[Event] = (), last: bool = False) -> int:
        """See Writer.write. Now and then the log is pruned with it. `last`: it ends or undoes what was begun, or has a model end,
        for which room is kept; without that room nothing else is begun."""
        rows = [self._event_row(bounded(event)) for event in events]
        self._unpruned.update(event.model for event in events)
        self._since_pruned += len(rows)
        due = {*self._unpruned} if self._since_pruned >= _PRUNE_EVERY else set()
        written = [*statements, *rows, *(_prune(due) if due else [])]
        with self._errors():
            if not last and not self._reserve.held:
                await asyncio.to_thread(self._reserve.hold)
            try:
                number = await self._writer.write(written)
            except sqlite3.Error as e:
                if not (last and files.is_full(e) and await asyncio.to_thread(self._reserve.release)):
                    raise
                number = await self._writer.write(written)
        if due:
            self._unpruned -= due
            self._since_pruned = 0
        for event in events:
            self.on_event(event)
        return number

    async def models(self) -> list[StoredModel]:
        """Every model, sorted by name."""
        with self._errors():
            rows = await self._connection.rows("SELECT name, settings FROM models ORDER BY name")
            return [StoredModel(name, _settings(text)) for name, text in rows]

    async def save_models(
        self, models: Mapping[str, Mapping[str, Value]], events: Sequence[Event], ended: Sequence[int] = ()
    ) -> None:
        """Insert or change models together with the events that say so, and with the end of the intents of which this is the last
        step: all of it or nothing."""
        ends = [(_END_INTENT, (number,)) for number in ended]
        await self._write(*self._model_rows(models), *ends, events=events, last=bool(ended))

    async def take_over(self, models: Mapping[str, Mapping[str, Value]], events: Sequence[Event]) -> None:
        """What a new database begins with, all of it or nothing."""
        await self._write(
            *self._model_rows(models),
            ("DELETE FROM intents WHERE kind = ?", (NEW,)),
            events=events,
        )
        self.new = False

    async def delete_model(self, name: str, event: Event) -> None:
        """Forget a model's configuration; its events stay."""
        await self._write(("DELETE FROM models WHERE name = ?", (name,)), events=[event], last=True)

    async def add_event(self, event: Event, *, last: bool = False) -> None:
        """Append to the audit log; `last`: that a model is to end."""
        await self._write(events=[event], last=last)

    async def begin(self, intent: Intent, event: Event | None = None, *, last: bool = False) -> int:
        """Write down what is about to be done, with the event that says who asked for it; returns the intent's id. `last`: it
        has a model end, which makes room where that one has filled the disk."""
        (number,) = await self.begin_all([intent], [event] if event else [], last=last)
        return number

    async def begin_all(
        self, intents: Sequence[Intent], events: Sequence[Event] = (), *, last: bool = False
    ) -> Sequence[int]:
        """The same for several, all of it or nothing."""
        rows = [(i.model, i.kind, json.dumps(i.details, sort_keys=True), i.actor) for i in intents]
        # One after the other, in one transaction: their numbers are, too (sqlite.org/autoinc.html).
        begun = ((_INSERT_INTENT, (self._time(), *row)) for row in rows)
        first = await self._write(*begun, events=events, last=last)
        return range(first, first + len(intents))

    async def end(self, intent: int, event: Event | None = None) -> None:
        """It is done, or undone, as the event says."""
        await self._write((_END_INTENT, (intent,)), events=[event] if event else [], last=True)

    async def unfinished(self) -> list[Intent]:
        """What a daemon that was killed had begun, oldest first."""
        with self._errors():
            rows = await self._connection.rows("SELECT id, model, kind, details, actor FROM intents ORDER BY id")
        return [
            Intent(id=row[0], model=row[1], kind=row[2], details=_settings(row[3]) or {}, actor=row[4]) for row in rows
        ]

    def _time(self) -> int:
        return int(self._now() * 1e6)

    def _model_rows(self, models: Mapping[str, Mapping[str, Value]]) -> list[Statement]:
        texts = {name: json.dumps(settings, sort_keys=True) for name, settings in models.items()}
        return [(_SAVE_MODEL, (name, text, self._time())) for name, text in texts.items()]

    def _event_row(self, event: Event) -> Statement:
        return _INSERT_EVENT, (
            event.time or self._time(),
            event.model,
            event.kind,
            event.priority.value,
            event.message,
            json.dumps(event.details, sort_keys=True),
            event.invocation_id,
            event.actor,
        )

    async def events(self, query: EventQuery) -> list[Event]:
        """The newest events that fit, oldest first."""
        where, values = ["time >= ?"], [min(query.since, _MAX_INTEGER), *query.models, *query.kinds, *query.without]
        for column, words in (("model IN", query.models), ("kind IN", query.kinds), ("kind NOT IN", query.without)):
            if words:
                where.append(f"{column} ({','.join('?' * len(words))})")
        sql = f"SELECT {_EVENT} FROM events WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        with self._errors():
            rows = await self._connection.rows(sql, (*values, query.limit))
        return [_event(row) for row in reversed(rows)]

    async def latest(self, kinds: Sequence[str], since: Sequence[str], limit: int) -> dict[str, list[Event]]:
        """Of every registered model the last `limit` events of these kinds, oldest first, from its last one of the kinds
        `since` on; nothing of models that have none. In one query."""
        wanted, begin = (",".join("?" * len(words)) for words in (kinds, since))
        sql = (
            f"SELECT {_EVENT} FROM events WHERE id IN (SELECT last.id FROM models JOIN events AS last ON last.id IN "
            f"(SELECT id FROM events WHERE model = models.name AND kind IN ({wanted}) AND id >= COALESCE("
            f"(SELECT id FROM events WHERE model = models.name AND kind IN ({begin}) ORDER BY id DESC LIMIT 1), 0)"
            " ORDER BY id DESC LIMIT ?)) ORDER BY id"
        )
        found: dict[str, list[Event]] = {}
        with self._errors():
            for row in await self._connection.rows(sql, (*kinds, *since, limit)):
                event = _event(row)
                found.setdefault(event.model, []).append(event)
        return found


def _take_steps(version: int, connection: sqlite3.Connection) -> None:
    """Bring the schema of a file of that version up to ours, all the way or not at all: a new file that had some of a schema,
    and not what says that it is new, would be taken for an old one of no models. Blocking."""
    with transaction(connection):
        for step in MIGRATIONS[version:]:
            for statement in step:
                connection.execute(statement)
        if not version:
            connection.execute(_INSERT_INTENT, (0, "", NEW, "{}", ""))
        connection.execute(f"PRAGMA user_version={VERSION}")


def _event(row: Sequence[Any]) -> Event:
    """From a row of _EVENT."""
    return Event(
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


def _prune(models: Iterable[str]) -> list[Statement]:
    """Keep the log bounded: in all, and for the models that wrote since the last time. However much others write: the last
    EVENTS_OF_KIND of each kind of a registered model stay, since they say how it stands (where its server runs, whether it
    was given up)."""
    stays = (
        "model IN (SELECT name FROM models) AND (SELECT COUNT(*) FROM (SELECT 1 FROM events AS newer WHERE "
        f"newer.model = events.model AND newer.kind = events.kind AND newer.id > events.id LIMIT {EVENTS_OF_KIND}))"
        f" < {EVENTS_OF_KIND}"
    )
    of_all = f"DELETE FROM events WHERE id <= (SELECT MAX(id) FROM events) - ?1 AND NOT ({stays})"
    of_model = (
        "DELETE FROM events WHERE model = ?1 AND id <= "
        f"(SELECT id FROM events WHERE model = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2) AND NOT ({stays})"
    )
    return [(of_all, (EVENTS_IN_ALL,)), *((of_model, (model, EVENTS_PER_MODEL)) for model in models)]


def _settings(text: str) -> Mapping[str, Any] | None:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _remedy(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program keeps it locked; end that program"
    return "the disk is full; make room" if files.is_full(error) else "check the disk, or move the file away"


class _Errors:
    """Turns SQLite's errors, and those of the files beside it, into StoreFailed, naming the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error | ValueError | RecursionError | OSError):
            said = error.strerror if isinstance(error, OSError) else error
            raise StoreFailed(f"{self._path}: {said}; {_remedy(error)}") from error
