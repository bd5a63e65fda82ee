"""One SQLite connection and the one thread that uses it, so that nobody else waits for the disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Connection:
    """In autocommit mode: transactions are their callers' to begin. Every method raises sqlite3.Error."""

    def __init__(self, thread: ThreadPoolExecutor, connection: sqlite3.Connection) -> None:
        self._thread, self._connection = thread, connection

    @classmethod
    async def open(cls, path: Path, busy: float) -> Connection:
        """`busy`: seconds to wait for another process's lock."""

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(path, timeout=busy, isolation_level=None)

        thread = ThreadPoolExecutor(1, "sqlite")
        try:
            return cls(thread, await asyncio.get_running_loop().run_in_executor(thread, connect))
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function in the thread, after all that was asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, self._connection)

    async def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute one statement; returns its rows."""
        return await self.run(lambda connection: connection.execute(sql, values).fetchall())

    async def close(self) -> None:
        """Close the file and end the thread."""
        try:
            await self.run(sqlite3.Connection.close)
        finally:
            self._thread.shutdown(wait=False)
