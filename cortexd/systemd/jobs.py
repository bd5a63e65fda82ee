"""systemd's jobs: who waits for which, whenever JobRemoved comes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Literal

from cortexd.errors import CortexError, JobTimeout
from cortexd.systemd.protocol import UnitState

Kind = Literal["start", "stop", "restart"]
MEMORY = 256


def result_by_state(kind: Kind, state: UnitState) -> str:
    """The result of a job that is gone without a word, from the state in which it left its unit."""
    if kind == "stop":
        return "canceled" if state.running else "done"
    if state.active_state in ("active", "reloading"):
        return "done"
    # A start that fails leaves its unit failed (or about to be restarted); dead, it was stopped in between.
    return "canceled" if state.active_state == "inactive" else "failed"


class Job:
    """One queued job; what `SystemdJob` describes."""

    def __init__(self, path: str, unit: str, kind: Kind, recheck: Callable[[Job], Awaitable[None]]) -> None:
        self.path = path
        self.unit = unit
        self.kind = kind
        self._recheck = recheck
        self._ended = asyncio.Event()
        self._result: str | CortexError = ""

    def end(self, result: str | CortexError) -> None:
        """Wake all waiters with the result, or with an error; the first call counts."""
        if not self._ended.is_set():
            self._result = result
            self._ended.set()

    async def ended(self) -> None:
        """Wait for the end, however long."""
        await self._ended.wait()

    async def wait(self, timeout: float) -> str:
        """See SystemdJob.wait."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            await self._recheck(self)
            if not self._ended.is_set():
                raise JobTimeout(f"the {self.kind} job of {self.unit} is still waiting after {timeout:g} s") from None
        if isinstance(self._result, CortexError):
            raise self._result
        return self._result


class JobTable:
    """The jobs that systemd still has, and the last ones that it removed.

    JobRemoved may be handled before the reply that names the job: it was sent later, but the coroutine that awaits the reply resumes only
    afterwards. So a job that is removed before anybody knows it is remembered, and found when the reply names it.
    """

    def __init__(self, recheck: Callable[[Job], Awaitable[None]]) -> None:
        self._recheck = recheck
        self._queued: dict[str, Job] = {}
        self._removed: OrderedDict[str, Job] = OrderedDict()

    def queued(self, path: str, unit: str, kind: Kind) -> Job:
        """The job that a reply named; requests that systemd merged get the same one."""
        job = self._queued.get(path) or self._removed.get(path)
        if job is None:
            job = self._queued[path] = Job(path, unit, kind, self._recheck)
        return job

    def removed(self, path: str, unit: str) -> Job | None:
        """The job that JobRemoved named, to be ended by the caller; None if it was told before."""
        if path in self._removed:
            return None
        job = self._queued.pop(path, None) or Job(path, unit, "start", self._recheck)
        self._removed[path] = job
        while len(self._removed) > MEMORY:
            self._removed.popitem(last=False)
        return job

    def waiting(self) -> list[Job]:
        """Jobs that were queued and not removed."""
        return list(self._queued.values())

    def forget_removed(self) -> None:
        """A new manager may count from 1 again."""
        self._removed.clear()

    def fail(self, error: CortexError) -> None:
        """End every job with an error and forget it."""
        for job in [*self._queued.values(), *self._removed.values()]:
            job.end(error)
        self._queued.clear()
        self._removed.clear()
