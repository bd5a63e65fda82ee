"""cortexd's own jobs: work that outlives the call that asked for it, and can be waited for by anybody."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any

from cortexd.errors import Busy, CortexError, JobCanceled, JobFailed, JobTimeout, ShuttingDown
from cortexd.registration import Caller

log = logging.getLogger(__name__)

KEEP_SECONDS = 60.0
"""How long an ended job can still be asked."""

MAX_RUNNING = 4096
"""Jobs that run; one more is Busy."""

MAX_ENDED = 4096
"""Jobs that can still be asked; of more the oldest are forgotten early."""


Cancel = Callable[[Caller], Awaitable[object]]
"""Asks for the end of what a job does."""

Work = Callable[["Job"], Coroutine[Any, Any, object]]


class JobState(StrEnum):
    """Where a job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMEOUT = "timeout"


class Job:
    """One job. `warnings` holds what went well only in part."""

    def __init__(self, job_id: int, kind: str, model: str, cancel: Cancel | None) -> None:
        self.id, self.kind, self.model = job_id, kind, model
        self.state = JobState.RUNNING
        self.error: CortexError | None = None
        self.warnings: list[str] = []
        self._cancel = cancel
        self._ended = asyncio.Event()

    async def wait(self, timeout: float | None = None) -> list[str]:
        """Wait for the end and return the warnings; raises the job's own error, or JobTimeout after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            raise JobTimeout(
                f"the {self.kind} of {self.model} goes on after {timeout:g} s; 'cortexctl status {self.model}' shows how far it is"
            ) from None
        if self.error is not None:
            raise type(self.error)(str(self.error)) from self.error
        return self.warnings

    async def cancel(self, caller: Caller) -> None:
        """Ask for the end in a caller's name; Busy where this kind of job cannot be cancelled."""
        if self._ended.is_set():
            return
        if self._cancel is None:
            raise Busy(f"a {self.kind} cannot be cancelled; wait for its end")
        await self._cancel(caller)

    def end(self, state: JobState, error: CortexError | None = None) -> None:
        """Record the end, once."""
        if not self._ended.is_set():
            self.state, self.error = state, error
            self._ended.set()


class JobTable:
    """Every job that runs or ended less than a minute ago."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._ended: deque[Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_new: Callable[[Job], None] = lambda job: None
        self.on_end: Callable[[Job], None] = lambda job: None
        self.on_forget: Callable[[Job], None] = lambda job: None

    def spawn(
        self,
        kind: str,
        model: str,
        work: Work,
        cancel: Cancel | None = None,
    ) -> Job:
        """Run `work` as a job; a CortexError that it raises is the job's error."""
        if len(self._tasks) >= MAX_RUNNING:
            raise Busy(f"{MAX_RUNNING} jobs are running; wait until some have ended")
        job = Job(next(self._ids), kind, model, cancel)
        self._jobs[job.id] = job
        self.on_new(job)
        task = asyncio.get_running_loop().create_task(self._run(job, work))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
        return job

    async def _run(self, job: Job, work: Work) -> None:
        try:
            await work(job)
            job.end(JobState.DONE)
        except JobCanceled as e:
            job.end(JobState.CANCELED, e)
        except JobTimeout as e:
            job.end(JobState.TIMEOUT, e)
        except JobFailed as e:
            job.end(JobState.FAILED, e)
        except CortexError as e:
            failed = JobFailed(str(e))
            failed.__cause__ = e
            job.end(JobState.FAILED, failed)
        except asyncio.CancelledError:
            what = f"cortexd is ending; systemd goes on with the {job.kind} of {job.model}"
            job.end(JobState.CANCELED, ShuttingDown(what))
            raise
        except Exception:
            log.exception("job %s of %s broke", job.kind, job.model)
            job.end(JobState.FAILED, JobFailed("internal error; the daemon's log has the details"))
        finally:
            self.on_end(job)
            self._ended.append(job)
            if len(self._ended) > MAX_ENDED:
                self._forget(self._ended[0])
            asyncio.get_running_loop().call_later(KEEP_SECONDS, self._forget, job)

    def _forget(self, job: Job) -> None:
        if self._jobs.pop(job.id, None):
            self._ended.remove(job)
            self.on_forget(job)

    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self._jobs.values() if job.state is JobState.RUNNING]

    async def close(self) -> None:
        """End every job's waiting; what systemd does about it goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
