"""org.cortexlinux.Cortex1.Job: each method delegates to the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cortexd.api.caller import caller_of, options_of
from cortexd.api.interfaces import load
from cortexd.api.server import Exported
from cortexd.bus import Bus, Call
from cortexd.jobs import Job, JobState
from cortexd.names import JOB_INTERFACE, job_path


class JobObject(Exported):
    """org.cortexlinux.Cortex1.Job."""

    interface = load(JOB_INTERFACE)
    waits = frozenset({"Wait"})

    def __init__(self, bus: Bus, job: Job) -> None:
        self._bus, self._job = bus, job

    def properties(self) -> Mapping[str, Any]:
        """See the XML."""
        job = self._job
        return {
            "Id": job.id,
            "Kind": job.kind,
            "Model": job.model,
            "State": job.state.value,
            "Message": str(job.error or ""),
        }

    async def Wait(self, call: Call, options: dict[str, Any]) -> list[Any]:
        timeout = options_of(options, timeout=int).get("timeout")
        warnings = await self._job.wait(None if timeout is None else timeout / 1e6)
        return [JobState.DONE.value, warnings]

    async def Cancel(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        await self._job.cancel(await caller_of(self._bus, call))
        return []


def path_of(job: Job) -> str:
    """Its object path."""
    return job_path(job.id)
