"""Many writers, one transaction at a time: all that waits when one begins shares it, and with it the wait for the disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any

from cortexd.errors import Busy
from cortexd.store.connection import Connection

MAX_WAITING = 4096
"""Writes that wait for their turn; one more is Busy."""

_BATCH = 256
"""Writes that share a transaction at most."""

Statement = tuple[str, tuple[Any, ...]]
"""SQL and its values."""


@dataclass(slots=True, eq=False)
class _Write:
    """What is to be written together. `done`: the id of the first row that it has inserted."""

    statements: Sequence[Statement]
    done: asyncio.Future[int]


class Writer:
    """The only one that changes the database behind `connection`, which stays its owner's to close."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[_Write] = deque()
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Write what still waits."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def write(self, statements: Sequence[Statement]) -> int:
        """Write in our turn; returns the id of the first row inserted. Raises Busy, sqlite3.Error, ValueError: then nothing of it is
        in the database.

        Who is cancelled before its turn has written nothing, either; who is cancelled while SQLite is at it learns so at its
        next `await`, since what is written stays.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} changes wait for the database; try again in a moment")
        write = _Write(statements, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._task is None or self._task.done():
            # It serves everybody, and has nothing of the context of the one who happens to come first.
            self._task = asyncio.create_task(self._write_all(), context=Context())
        cancelled = False
        while not write.done.done():
            try:
                await asyncio.wait([write.done])
            except asyncio.CancelledError:
                if write in self._waiting:
                    self._waiting.remove(write)
                    raise
                cancelled = True
        caller = asyncio.current_task()
        if cancelled and caller is not None:
            caller.uncancel()
            caller.cancel()
        return write.done.result()

    async def _write_all(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
            ends: list[int | Exception]
            try:
                ends = await self._connection.run(partial(_write_each, [write.statements for write in batch]))
            except Exception as e:
                ends = [e] * len(batch)
            except BaseException:
                for write in batch:
                    write.done.cancel()
                raise
            for write, end in zip(batch, ends, strict=True):
                if isinstance(end, Exception):
                    write.done.set_exception(end)
                else:
                    write.done.set_result(end)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Whatever is raised: then nothing of it is in the database. Blocking."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # on some errors SQLite has rolled back itself
            connection.execute("ROLLBACK")
        raise


def _write_each(writes: Sequence[Sequence[Statement]], connection: sqlite3.Connection) -> list[int | Exception]:
    """One transaction; of each the id of its first row, or its error."""
    with transaction(connection):
        return [_write_one(statements, connection) for statements in writes]


def _write_one(statements: Sequence[Statement], connection: sqlite3.Connection) -> int | Exception:
    """An error of one is its alone, unless SQLite gave up the whole transaction (on a full disk, say)."""
    number = 0
    connection.execute("SAVEPOINT one")
    try:
        for sql, values in statements:
            cursor = connection.execute(sql, values)
            number = number or int(cursor.lastrowid or 0)
    except (sqlite3.Error, ArithmeticError, ValueError) as e:
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
        return e
    connection.execute("RELEASE one")
    return number
