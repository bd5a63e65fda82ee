"""Operations of several steps that a daemon which is killed in the middle of them leaves to the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cortexd.events import Event
from cortexd.store import Intent, Store


class Intents:
    """Kept in the database from before the first step until after the last."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @asynccontextmanager
    async def doing(self, intent: Intent, done: Event | None = None) -> AsyncIterator[None]:
        """The steps stand inside. An error that the caller is told of ends it, too; `done` is the event of success."""
        number = await self._store.begin(intent)
        try:
            yield
        except asyncio.CancelledError:
            raise  # the daemon ends; the next one goes on
        except BaseException:
            await self._store.end(number)
            raise
        await self._store.end(number, done)
