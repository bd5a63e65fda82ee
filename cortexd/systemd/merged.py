"""Work that is worth doing once for many who ask for it at the same time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from cortexd.errors import CortexError

log = logging.getLogger(__name__)

K = TypeVar("K")


def in_background(task: asyncio.Task[None], problem: str) -> None:
    """Log the error of a task that nobody awaits, after the words `problem`."""

    def report(task: asyncio.Task[None]) -> None:
        if task.cancelled() or not (error := task.exception()):
            return
        if isinstance(error, CortexError):
            log.warning("%s: %s", problem, error)
        else:
            log.error("%s", problem, exc_info=error)

    task.add_done_callback(report)


class Merged(Generic[K]):
    """Runs an action one at a time for each key; requests that arrive while it runs share the next run.

    So a run that answers a request always began after the request.
    """

    def __init__(self, action: Callable[[K], Awaitable[object]]) -> None:
        self._action = action
        self._next: dict[K, asyncio.Task[None]] = {}
        self._running: dict[K, asyncio.Task[None]] = {}

    def request(self, key: K) -> asyncio.Task[None]:
        """Ask for a run. Shield it when awaiting: it belongs to others, too."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.get_running_loop().create_task(self._run(key))
            # Those who await it get its exception; a run that nobody awaits has to be no "never retrieved".
            task.add_done_callback(lambda t: t.cancelled() or t.exception())
        return task

    def last(self, key: K) -> asyncio.Task[None] | None:
        """The last run asked for that has not ended."""
        return self._next.get(key) or self._running.get(key)

    def cancel(self) -> None:
        """Cancel every run."""
        for task in [*self._next.values(), *self._running.values()]:
            task.cancel()

    async def _run(self, key: K) -> None:
        try:
            if before := self._running.get(key):
                await asyncio.wait([before])
        finally:
            task = self._next.pop(key)
        self._running[key] = task
        try:
            await self._action(key)
        finally:
            del self._running[key]
