"""Operations of several steps that a daemon which is killed in the middle of them leaves to the next one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
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
        self._adopted: dict[tuple[str, str], int] = {}
        """What a killed daemon left, by model and kind. To finish it is to do it once more, and no other intent."""

    def adopt(self, intent: Intent) -> None:
        """Another daemon's; whoever does the same with that model now takes it for its own."""
        self._adopted[intent.model, intent.kind] = intent.id

    def adopted(self, intent: Intent) -> bool:
        """Whether it is such a one, and not ended yet."""
        return self._adopted.get((intent.model, intent.kind)) == intent.id

    @asynccontextmanager
    async def doing(
        self, intent: Intent, done: Event | None = None, *, asked: Event | None = None
    ) -> AsyncIterator[None]:
        """The steps stand inside. An error that the caller is told of ends it, too; `asked` is the event that goes before the
        first step, `done` that of success."""
        number = await self.begin(intent, asked)
        async with self.ending(number, done):
            yield

    async def begin(self, intent: Intent, asked: Event | None = None, *, last: bool = False) -> int:
        """Write it down; whoever does this has to see to its `ending`. `last`: see Store.begin."""
        if adopted := self._adopted.get((intent.model, intent.kind)):
            return adopted  # with what was asked it was written down
        await self._catch_up()
        return await self._store.begin(intent, asked, last=last)

    @asynccontextmanager
    async def committing(self, intents: Sequence[Intent]) -> AsyncIterator[Sequence[int]]:
        """For what is true once the database says so: the block's last step writes that, and with it ends the intents of these
        numbers. Before that the block undoes what fails, and each model's audit log says so."""
        await self._catch_up()
        numbers = await self._store.begin_all(intents)
        try:
            yield numbers
        except BaseException as e:
            reason = str(e) or "interrupted"
            failed = (Event(model=i.model, kind=f"{i.kind}-failed", message=reason, actor=i.actor) for i in intents)
            await asyncio.gather(*map(self._end, numbers, failed))
            raise

    async def _catch_up(self) -> None:
        """Write down what is over. Else the next daemon would do it once more, over what comes now."""
        while self._unended:
            number = next(iter(self._unended))
            event = self._unended.pop(number)  # whoever comes meanwhile need not write it, too
            try:
                await self._store.end(number, event)
            except BaseException:
                self._unended[number] = event
                raise

    @asynccontextmanager
    async def ending(self, number: int, done: Event | None = None) -> AsyncIterator[None]:
        """See `doing`."""
        try:
            yield
        except asyncio.CancelledError:
            raise  # the daemon ends; the next one goes on
        except BaseException:
            if number not in self._adopted.values():  # else it is tried again
                await self._end(number, None)
            raise
        await self._end(number, done)

    async def end(self, number: int, event: Event | None) -> None:
        """It is over, as the event says. Raises StoreFailed."""
        await self._store.end(number, event)
        self._adopted = {key: value for key, value in self._adopted.items() if value != number}

    async def _end(self, number: int, event: Event | None) -> None:
        try:
            await self.end(number, event)
        except CortexError as e:
            log.error("what was done is written down later: %s", e)
            self._unended[number] = event
