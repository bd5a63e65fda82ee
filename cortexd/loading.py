"""Reading all models when the daemon starts, though the files of some lie where nobody answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from cortexd.bounded import in_thread
from cortexd.registered import Model
from cortexd.store import StoredModel
from cortexd.units.programs import at_one_look

_STALL_SECONDS = 2.0
"""Without one more model that is read: then the file system of the one in turn does not answer."""

_MOST_STALLS = 8
"""After so many the rest is not looked at: each costs time, and a thread that may never end."""

_ALL_SECONDS = 3600.0

Read = Callable[[StoredModel, bool], Model | str]
"""Makes a row a model, or says why it cannot be one; blocking. Looks at the model's files only where that is true."""


async def load(rows: Sequence[StoredModel], read: Read) -> list[Model | str]:
    """All rows, in their order: in one thread, which is left behind at a model whose files do not answer. That one is read
    without them, and another thread goes on with the next."""
    found: list[Model | str] = []
    stalls = 0
    while len(found) < len(rows):
        if stalls < _MOST_STALLS:
            found += await _Reading(rows[len(found) :], read).result()
        if len(found) < len(rows):
            stalls += 1
            found.append(await asyncio.to_thread(read, rows[len(found)], False))
    return found


class _Reading:
    """One thread's work."""

    def __init__(self, rows: Sequence[StoredModel], read: Read) -> None:
        self._rows, self._read = rows, read
        self._done: list[Model | str] = []
        self._left = False

    async def result(self) -> list[Model | str]:
        """What was read until the end, or until a row took too long."""
        task = asyncio.ensure_future(in_thread(_ALL_SECONDS, self._work))
        try:
            while not task.done():
                before = len(self._done)
                await asyncio.wait([task], timeout=_STALL_SECONDS)
                if not task.done() and len(self._done) == before:
                    return [*self._done]
            with suppress(TimeoutError):  # too many threads hang already
                task.result()
            return [*self._done]
        finally:
            self._left = True
            task.cancel()

    def _work(self) -> None:
        with at_one_look():
            for row in self._rows:
                read = self._read(row, True)
                if self._left:
                    return
                self._done.append(read)
