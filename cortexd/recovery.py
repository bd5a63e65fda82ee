"""What a daemon that was killed had begun is finished or undone, before anybody changes that model again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import TypeVar

from cortexd.errors import Busy, CortexError, ShuttingDown, StoreFailed, SystemdUnavailable
from cortexd.events import Event, Priority
from cortexd.intents import Intents
from cortexd.store import Intent, Store

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 15.0
"""Seconds that a call waits for this: less than the 25 after which D-Bus libraries give an answer up."""

PAUSES = (0.2, 1.0, 5.0, 30.0)
"""Seconds between two attempts at what cannot be done for now; the last one for ever."""

_PASSING = (SystemdUnavailable, StoreFailed, ShuttingDown)


@dataclass(slots=True)
class _Left:
    """Of one model, oldest first."""

    model: str
    intents: dict[str, Intent] = field(default_factory=dict)
    """By kind; what was begun once more is done once."""
    repeated: list[Intent] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    doing: str = ""
    hindrance: str = ""


class Recovery:
    """`finish` does what is left of an intent, as often as it is called, and returns the event that is still to be written."""

    def __init__(self, store: Store, intents: Intents, finish: Callable[[Intent], Awaitable[Event | None]]) -> None:
        self._store, self._intents, self._finish = store, intents, finish
        self._left: dict[str, _Left] = {}

    async def find(self) -> None:
        """See what there is; before anybody can ask for anything, since what is begun later is not for us."""
        for intent in await self._store.unfinished():
            left = self._left.setdefault(intent.model, _Left(intent.model))
            if before := left.intents.pop(intent.kind, None):
                left.repeated.append(before)
            left.intents[intent.kind] = intent
            self._intents.adopt(intent)

    async def admit(self, names: Iterable[str]) -> None:
        """Wait until nothing is left of these models. Raises Busy where that takes longer than a caller waits."""
        waited = [left for name in names if (left := self._left.get(name))]
        try:
            async with asyncio.timeout(PATIENCE):
                for left in waited:
                    await left.over.wait()
        except TimeoutError:
            left = next(left for left in waited if not left.over.is_set())
            why = f", which cannot be done for now: {left.hindrance}" if left.hindrance else ""
            raise Busy(
                f"model {left.model!r}: its {left.doing}, begun before cortexd was killed, is still being finished{why}; "
                "try again"
            ) from None

    async def run(self) -> None:
        """Finish or undo everything, each model by itself; returns when nothing is left."""
        await asyncio.gather(*map(self._see_to, list(self._left.values())))

    async def _see_to(self, left: _Left) -> None:
        try:
            for intent in left.repeated:
                await self._insist(left, partial(self._intents.end, intent.id, None))
            for intent in left.intents.values():
                if not self._intents.adopted(intent):
                    continue  # it was a part of one that is finished
                left.doing = intent.kind
                log.info("%s: going on with its %s", left.model, intent.kind)
                event = await self._insist(left, partial(self._finished, intent))
                if self._intents.adopted(intent):
                    await self._insist(left, partial(self._intents.end, intent.id, event))
        except Exception:
            log.exception("%s: what a killed cortexd had begun is left to the next one", left.model)
        finally:
            left.over.set()
            del self._left[left.model]

    async def _finished(self, intent: Intent) -> Event | None:
        try:
            return await self._finish(intent)
        except CortexError as e:
            if _passes(e):
                raise
            message = f"its {intent.kind}, begun before cortexd was killed, could not be finished: {e}"
            log.error("%s: %s", intent.model, message)
            return Event(model=intent.model, kind="unfinished", message=message, priority=Priority.ERROR)

    async def _insist(self, left: _Left, step: Callable[[], Awaitable[T]]) -> T:
        """Until nothing passing keeps it from being done."""
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            try:
                return await step()
            except CortexError as e:
                if not _passes(e):
                    raise
                left.hindrance = str(e)
                log.warning("%s: its %s goes on in %g s: %s", left.model, left.doing, pause, e)
            await asyncio.sleep(pause)
        raise AssertionError("repeat() ends never")


def _passes(error: BaseException | None) -> bool:
    """Whether it may be otherwise in a moment; a job's error has what it came from as its cause."""
    return error is not None and (isinstance(error, _PASSING) or _passes(error.__cause__))
