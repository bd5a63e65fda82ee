"""Writes what is observed of models to the audit log, each thing in its turn, and to our own log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from cortexd.errors import CortexError
from cortexd.events import Event, Priority
from cortexd.registered import Model
from cortexd.store import Store

log = logging.getLogger(__name__)

_WRITE_SECONDS = 2.0
"""What the end waits for events that are not written yet."""

_LEVELS = {Priority.INFO: logging.INFO, Priority.WARNING: logging.WARNING, Priority.ERROR: logging.ERROR}


class Recorder:
    """One per daemon. `count` is called with events that cannot be written, which are lost to everything else."""

    def __init__(self, store: Store, count: Callable[[Event], None]) -> None:
        self._store, self._count = store, count
        self._writing: set[asyncio.Task[None]] = set()

    def write(self, event: Event) -> asyncio.Task[None]:
        """Write an event in its turn: the store serves those who wait in their order, us and the use-cases alike."""
        return self.spawn(self.add(event))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that begins with an event, in its turn."""
        return spawn(self._writing, work)

    def tell(
        self, model: Model, kind: str, message: str, priority: Priority = Priority.INFO, run: str = ""
    ) -> asyncio.Task[None]:
        """Write that something has happened to a run, by its InvocationID; to the one that is probed where it is not said."""
        event = Event(
            model=model.name, kind=kind, message=message, priority=priority, invocation_id=run or model.health.run
        )
        self.log(event)
        return self.write(event)

    def log(self, event: Event) -> None:
        """Say it in our own log."""
        log.log(_LEVELS[event.priority], "%s: %s", event.model, event.message)

    async def add(self, event: Event) -> None:
        """Write an event. One that cannot be written (the disk is full, say) counts all the same, while we live."""
        try:
            await self._store.add_event(event)
        except CortexError as e:
            log.error("event %s of %s is lost: %s", event.kind, event.model, e)
            self._count(event)

    async def written(self) -> None:
        """Wait until all events so far are written."""
        await asyncio.gather(*self._writing)

    async def close(self) -> None:
        """Write what is queued, and end."""
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=_WRITE_SECONDS)
            if late:
                log.warning("%d events were not written in time", len(late))
        await cancel(self._writing)


def spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run it, and keep it from the garbage collector in `tasks` until it ends."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def cancel(tasks: set[asyncio.Task[None]]) -> None:
    """End them all."""
    found = [*tasks]
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)
