"""The audit log, beside sqlite3 alone."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from bench.measure import Result, timed
from bench.world import World
from cortexd.events import Event
from cortexd.store import EventQuery, Store

_INSERT = "INSERT INTO events (time, model, kind, priority, message, details, invocation_id, actor) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_LAST = "SELECT * FROM events WHERE model = ? ORDER BY id DESC LIMIT 50"
_MODELS = 1000
_WRITERS = 100


def measure(world: World) -> Result:
    """On the disk where this project lies, not in memory."""
    result = Result("The audit log: writing, and the last 50 events of one model among a million")
    folder = world.folder / "out" / "events"
    try:
        world.wait(_measure(folder / "events.db", 1000 if world.short else 1_000_000, world.runs, result))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


async def _measure(path: Path, rows: int, runs: int, result: Result) -> None:
    store = await Store.open(path)
    written, alone = [], []
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        plain.execute("PRAGMA synchronous = FULL")
        for _ in range(runs):
            written.append(await _write(store, _WRITERS))
            alone.append(_write_plainly(plain, _WRITERS))
        plain.execute("PRAGMA synchronous = OFF")  # the store stays open: opening it would prune the log
        plain.execute("BEGIN")
        values = (
            (i, f"m{i % _MODELS:04}", "ready", "info", "ready after 3.2 s", "{}", "0" * 32, "") for i in range(rows)
        )
        plain.executemany(_INSERT, values)
        plain.execute("COMMIT")
        result.add("cortexd: events written, each on disk", "1/s", written, "sqlite3: rows written, each on disk")
        result.add("sqlite3: rows written, each on disk", "1/s", alone)
        result.target(
            "events written, 1/s", result.median("cortexd: events written, each on disk"), 1000, at_least=True
        )
        asked, asked_plainly = [], []
        for run in range(runs + 1):
            model = f"m{run:04}"
            begin = time.perf_counter()
            found = await store.events(EventQuery(models=[model], limit=50))
            taken = (time.perf_counter() - begin) * 1e3
            plainly = timed(lambda model=model: plain.execute(_LAST, (model,)).fetchall())  # type: ignore[misc]
            if run:  # the first fills caches
                asked.append(taken)
                asked_plainly.append(plainly)
            if not found:
                raise RuntimeError(f"no event of {model} was found")
        await store.close()
    what = f"cortexd: last 50 of one model among {rows:,}"
    result.add(what, "ms", asked, "sqlite3: the same")
    result.add("sqlite3: the same", "ms", asked_plainly)
    result.target("ms for the last 50 of one model", result.median(what), 10)
    result.notes.append(
        f"cortexd's events come from {_WRITERS} writers at the same time, whose events share transactions: one sync serves many. "
        "The rows of sqlite3 alone have a transaction, and a sync, each; that is why they are fewer."
    )


async def _write(store: Store, count: int) -> float:
    """Events a second, from `count` who write at the same time."""
    event = Event(model="m0000", kind="ready", message="ready after 3.2 s", invocation_id="0" * 32)
    begin = time.perf_counter()
    await asyncio.gather(*(store.add_event(event) for _ in range(count)))
    return count / (time.perf_counter() - begin)


def _write_plainly(connection: sqlite3.Connection, count: int) -> float:
    begin = time.perf_counter()
    for i in range(count):
        connection.execute(_INSERT, (i, "m0000", "ready", "info", "ready after 3.2 s", "{}", "0" * 32, ""))
    return count / (time.perf_counter() - begin)
