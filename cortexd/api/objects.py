"""The three interfaces of cortexd: each method checks its options, names its caller and delegates."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cortexd.api import describe
from cortexd.api.caller import caller_of, options_of
from cortexd.api.interfaces import load
from cortexd.api.server import Exported, Server
from cortexd.bus import Bus, Call, Variant
from cortexd.errors import CortexError, InvalidConfig, NoSuchJob, NoSuchModel
from cortexd.jobs import KEEP_SECONDS, Job, JobState
from cortexd.manager import Manager
from cortexd.model import SETTINGS
from cortexd.names import (
    JOB_INTERFACE,
    JOB_PREFIX,
    MANAGER_INTERFACE,
    MODEL_INTERFACE,
    MODEL_PREFIX,
    ROOT_PATH,
    job_path,
    model_of_path,
    model_path,
)
from cortexd.registration import Caller
from cortexd.store import EventQuery
from cortexd.systemd.protocol import UnitUsage
from cortexd.version import VERSION

_MAX_EVENTS = 10_000


class ManagerObject(Exported):
    """org.cortexlinux.Cortex1.Manager."""

    interface = load(MANAGER_INTERFACE)

    def __init__(self, bus: Bus, manager: Manager) -> None:
        self._bus, self._manager = bus, manager

    def properties(self) -> Mapping[str, Any]:
        """See the XML."""
        return {
            "Version": VERSION,
            "SystemdVersion": self._manager.systemd_version,
            "ModelCount": len(self._manager.catalog.models),
            "Warnings": self._manager.catalog.warnings,
        }

    async def Register(self, call: Call, name: str, settings: dict[str, Any], options: dict[str, Any]) -> list[Any]:
        given = options_of(options, search_path=str, working_directory=str)
        caller = await caller_of(self._bus, call, given)
        warnings = await self._manager.register(name, settings, caller)
        return [model_path(name), list(warnings)]

    async def Unregister(self, call: Call, name: str, options: dict[str, Any]) -> list[Any]:
        force = options_of(options, force=bool).get("force", False)
        return [_path(await self._manager.unregister(name, await caller_of(self._bus, call), force=force))]

    async def StartModel(self, call: Call, name: str) -> list[Any]:
        return [_path(await self._manager.life.start(name, await caller_of(self._bus, call)))]

    async def StopModel(self, call: Call, name: str) -> list[Any]:
        return [_path(await self._manager.life.stop(name, await caller_of(self._bus, call)))]

    async def RestartModel(self, call: Call, name: str) -> list[Any]:
        return [_path(await self._manager.life.restart(name, await caller_of(self._bus, call)))]

    async def GetModel(self, call: Call, name: str) -> list[Any]:
        return [model_path(self._manager.catalog.get(name).name)]

    async def ListModels(self, call: Call, patterns: list[str], options: dict[str, Any]) -> list[Any]:
        given = options_of(options, settings=bool, usage=bool)
        names = self._manager.match(patterns)
        if given:  # somebody looks closely
            await self._manager.refresh([name for name in names if name in patterns])
        usage = await self._manager.usage(names) if given.get("usage") else {}
        kinds = load(MODEL_INTERFACE).properties
        models = []
        for name in names:
            values = describe.model_properties(self._manager.view(name))
            if not given.get("settings"):
                del values["Settings"]
            if name in usage:
                values |= describe.usage_properties(usage[name])
            models.append({key: Variant(kinds[key].signature, value) for key, value in values.items()})
        return [models]

    async def ListEvents(self, call: Call, names: list[str], options: dict[str, Any]) -> list[Any]:
        given = options_of(options, limit=int, since=int, kinds=list)
        limit = given.get("limit", 50)
        if not 1 <= limit <= _MAX_EVENTS:
            raise InvalidConfig(f"limit={limit}: use a number from 1 to {_MAX_EVENTS}")
        kinds = given.get("kinds", [])
        if not all(isinstance(kind, str) for kind in kinds):
            raise InvalidConfig("kinds: use a list of strings, such as start and failed")
        if len(names) + len(kinds) > _MAX_EVENTS:
            raise InvalidConfig(
                f"names and kinds: {len(names) + len(kinds)} were given, at most {_MAX_EVENTS} are possible"
            )
        query = EventQuery(models=names, kinds=kinds, since=given.get("since", 0), limit=limit)
        return [[describe.event_values(event) for event in await self._manager.events(query)]]

    async def ListSettings(self, call: Call) -> list[Any]:
        rows = [
            (
                row.name,
                row.kind.hint,
                "" if row.default is None else row.kind.text(row.default),
                "none" if row.live else "restart",
                row.doc,
            )
            for row in SETTINGS.values()
        ]
        return [rows]

    async def ListJobs(self, call: Call) -> list[Any]:
        jobs = self._manager.life.jobs.running()
        return [[(job_path(job.id), job.model, job.kind, job.state.value) for job in jobs]]


class ModelObject(Exported):
    """org.cortexlinux.Cortex1.Model."""

    interface = load(MODEL_INTERFACE)

    def __init__(self, bus: Bus, manager: Manager, name: str) -> None:
        self._bus, self._manager, self._name = bus, manager, name
        self._usage = UnitUsage()

    def properties(self) -> Mapping[str, Any]:
        """See the XML."""
        return describe.model_properties(self._manager.view(self._name)) | describe.usage_properties(self._usage)

    async def refresh(self) -> None:
        """Read the counters, and what systemd does not signal."""
        await self._manager.refresh([self._name])
        self._usage = (await self._manager.usage([self._name]))[self._name]

    async def _caller(self, call: Call, options: Mapping[str, Any] | None = None) -> Caller:
        return await caller_of(self._bus, call, options)

    async def Start(self, call: Call, options: dict[str, Any]) -> list[Any]:
        enable = options_of(options, enable=bool).get("enable", False)
        caller = await self._caller(call)
        job = await self._manager.life.start(self._name, caller)
        if enable:
            job.warnings += await self._manager.enable(self._name, caller, linger=False)
        return [_path(job)]

    async def Stop(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        return [_path(await self._manager.life.stop(self._name, await self._caller(call)))]

    async def Restart(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        return [_path(await self._manager.life.restart(self._name, await self._caller(call)))]

    async def Enable(self, call: Call, options: dict[str, Any]) -> list[Any]:
        linger = options_of(options, linger=bool).get("linger", False)
        return [await self._manager.enable(self._name, await self._caller(call), linger=linger)]

    async def Disable(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        await self._manager.disable(self._name, await self._caller(call))
        return []

    async def Set(self, call: Call, settings: dict[str, Any], options: dict[str, Any]) -> list[Any]:
        given = options_of(options, search_path=str, working_directory=str)
        needed, warnings = await self._manager.set(self._name, settings, await self._caller(call, given))
        return [needed, list(warnings)]

    async def Kill(self, call: Call, signal: str, options: dict[str, Any]) -> list[Any]:
        whom = options_of(options, whom=str).get("whom", "all")
        await self._manager.kill(self._name, signal, whom, await self._caller(call))
        return []

    async def ResetFailed(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        await self._manager.reset_failed(self._name, await self._caller(call))
        return []

    async def CheckHealth(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        probe = await self._manager.check_health(self._name)
        view = self._manager.view(self._name)
        return [describe.probe_values(view, probe)]

    async def GetUnitFiles(self, call: Call) -> list[Any]:
        await self._manager.refresh([self._name])
        unit = self._manager.view(self._name).unit
        paths = [p for p in (unit.fragment_path, *unit.drop_in_paths) if p]
        return [[(p, await asyncio.to_thread(_text, Path(p))) for p in paths]]


class JobObject(Exported):
    """org.cortexlinux.Cortex1.Job."""

    interface = load(JOB_INTERFACE)

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


def _path(job: Job) -> str:
    return job_path(job.id)


def _text(path: Path) -> str:
    """A unit file's text, bounded; one that has gone meanwhile is empty."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError as e:
        return f"# {e.strerror}\n"


def _missing(path: str) -> CortexError | None:
    if path.startswith(JOB_PREFIX):
        return NoSuchJob(f"job {path.removeprefix(JOB_PREFIX)} is unknown, or ended more than {KEEP_SECONDS:g} s ago")
    if path.startswith(MODEL_PREFIX):
        return NoSuchModel(model_of_path(path))
    return None


def export(bus: Bus, server: Server, manager: Manager) -> None:
    """Put every object on the bus, and keep them so as models and jobs come and go."""
    root = ManagerObject(bus, manager)
    server.missing = _missing
    server.add(ROOT_PATH, root)

    def add(name: str) -> None:
        server.add(model_path(name), ModelObject(bus, manager, name), managed=True)
        server.update(ROOT_PATH)

    def remove(name: str) -> None:
        server.remove(model_path(name))
        server.update(ROOT_PATH)

    def job_new(job: Job) -> None:
        server.add(job_path(job.id), JobObject(bus, job))
        server.signal(ROOT_PATH, root.interface, "JobNew", job_path(job.id), job.model, job.kind)

    def job_end(job: Job) -> None:
        server.update(job_path(job.id))
        server.signal(ROOT_PATH, root.interface, "JobRemoved", job_path(job.id), job.model, job.kind, job.state.value)

    for name in manager.catalog.models:
        server.add(model_path(name), ModelObject(bus, manager, name), managed=True)
    manager.on_add, manager.on_remove = add, remove
    manager.on_change = lambda name: server.update(model_path(name))
    manager.on_event = lambda event: server.signal(ROOT_PATH, root.interface, "EventAdded", event.model, event.kind)
    jobs = manager.life.jobs
    jobs.on_new, jobs.on_end, jobs.on_forget = job_new, job_end, lambda job: server.remove(job_path(job.id))
