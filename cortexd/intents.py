"""Operations of several steps that a daemon which is killed in the middle of them leaves to the next one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cortexd.errors import CortexError
from cortexd.events import Event
from cortexd.store import Intent, Store

log = logging.getLogger(__name__)

UNBORN = ("register", "unregister")
"""Kinds of intents whose model may not be there, or not any more; what lies around of it is nobody's."""


class Intents:
    """Kept in the database from before the first step until after the last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unended: dict[int, Event | None] = {}
        """What is over, and could not be written down as that."""

    @asynccontextmanager
    async def doing(
        self, intent: Intent, done: Event | None = None, *, asked: Event | None = None
    ) -> AsyncIterator[None]:
        """The steps stand inside. An error that the caller is told of ends it, too; `asked` is the event that goes before the
        first step, `done` that of success."""
        number = await self.begin(intent, asked)
        async with self.ending(number, done):
            yield

    async def begin(self, intent: Intent, asked: Event | None = None) -> int:
        """Write it down; whoever does this has to see to its `ending`."""
        # Else the next daemon would do it once more, over what comes now.
        for number, event in list(self._unended.items()):
            await self._store.end(number, event)
            self._unended.pop(number, None)
        return await self._store.begin(intent, asked)

    @asynccontextmanager
    async def ending(self, number: int, done: Event | None = None) -> AsyncIterator[None]:
        """See `doing`."""
        try:
            yield
        except asyncio.CancelledError:
            raise  # the daemon ends; the next one goes on
        except BaseException:
            await self._end(number, None)
            raise
        await self._end(number, done)

    async def _end(self, number: int, event: Event | None) -> None:
        try:
            await self._store.end(number, event)
        except CortexError as e:
            log.error("what was done is written down later: %s", e)
            self._unended[number] = event
