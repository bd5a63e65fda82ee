"""org.cortexlinux.Cortex1.Manager: each method checks its options, names its caller and delegates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cortexd.api import describe
from cortexd.api.caller import caller_of, options_of
from cortexd.api.interfaces import load
from cortexd.api.job import path_of
from cortexd.api.server import Exported
from cortexd.budget import AT_REST
from cortexd.bus import Bus, Call, Variant
from cortexd.errors import InvalidConfig
from cortexd.manager import Manager
from cortexd.model import SETTINGS
from cortexd.names import MANAGER_INTERFACE, MODEL_INTERFACE, job_path, model_path
from cortexd.registered import Model
from cortexd.registration import Caller
from cortexd.store import EventQuery
from cortexd.version import VERSION

_MAX_EVENTS = 10_000
_MAX_MODELS = 10_000


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

    async def refresh(self) -> None:
        """Nobody tells of files that come and go."""
        await self._manager.catalog.look_around()

    async def Register(self, call: Call, name: str, settings: dict[str, Any], options: dict[str, Any]) -> list[Any]:
        (model,) = await self._register(call, {name: settings}, options)
        return [model_path(name), list(model.warnings)]

    async def RegisterModels(self, call: Call, models: list[Any], options: dict[str, Any]) -> list[Any]:
        wanted: dict[str, dict[str, Any]] = {}
        for name, settings in models:
            if name in wanted:
                raise InvalidConfig(f"models: {name!r} is there twice; leave one of them out")
            wanted[name] = settings
        if not 1 <= len(wanted) <= _MAX_MODELS:
            raise InvalidConfig(f"models: {len(wanted)} were given; give 1 to {_MAX_MODELS} at a time")
        made = await self._register(call, wanted, options)
        return [[(model_path(model.name), list(model.warnings)) for model in made]]

    async def _caller(self, call: Call, names: Iterable[str], options: Mapping[str, Any] | None = None) -> Caller:
        """Who changes these models, as soon as somebody may."""
        await self._manager.recovery.admit(names)
        return await caller_of(self._bus, call, options)

    async def _register(self, call: Call, wanted: dict[str, dict[str, Any]], options: dict[str, Any]) -> list[Model]:
        given = options_of(options, search_path=str, working_directory=str, api_key=str)
        if given.get("api_key", "auto") != "auto":  # without the value: it may be a key
            raise InvalidConfig("api_key: takes only auto; register, then give your own with 'cortexctl secret set'")
        caller = await self._caller(call, wanted, given)
        return await self._manager.register_all(wanted, caller, api_key="api_key" in given)

    async def Unregister(self, call: Call, name: str, options: dict[str, Any]) -> list[Any]:
        force = options_of(options, force=bool).get("force", False)
        return [path_of(await self._manager.unregister(name, await self._caller(call, [name]), force=force))]

    async def StartModel(self, call: Call, name: str) -> list[Any]:
        return [path_of(await self._manager.life.start(name, await self._caller(call, [name])))]

    async def StopModel(self, call: Call, name: str) -> list[Any]:
        return [path_of(await self._manager.life.stop(name, await self._caller(call, [name])))]

    async def RestartModel(self, call: Call, name: str) -> list[Any]:
        return [path_of(await self._manager.life.restart(name, await self._caller(call, [name])))]

    async def GetModel(self, call: Call, name: str) -> list[Any]:
        return [model_path(self._manager.catalog.get(name).name)]

    async def ListModels(self, call: Call, patterns: list[str], options: dict[str, Any]) -> list[Any]:
        given = options_of(options, settings=bool, usage=bool, limits=bool, properties=list)
        kinds = load(MODEL_INTERFACE).properties
        every = kinds.keys() if given.get("settings") else kinds.keys() - {"Settings"}
        wanted = frozenset(given.get("properties") or every)
        if unknown := [str(key) for key in given.get("properties", []) if key not in kinds]:
            raise InvalidConfig(f"properties: a model has no property {unknown[0]!r}")
        names = self._manager.match(patterns)
        await self._manager.catalog.look_at_units()
        if given:  # somebody looks closely
            await self._manager.refresh([name for name in names if name in patterns])
        usage = await self._manager.usage(names) if given.get("usage") else {}
        limits = await self._manager.limits(names) if given.get("limits") else {}
        await call.room()  # those that asked at the same time have come this far at the same time
        models = []
        for name in self._manager.match(patterns):  # one may have gone meanwhile
            values = describe.model_properties(self._manager.view(name), wanted)
            if name in usage:
                values |= describe.usage_properties(usage[name])
            if name in limits:
                values |= describe.limits_property(limits[name])
            models.append({key: Variant(kinds[key].signature, value) for key, value in values.items() if key in wanted})
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
        without = () if kinds else (AT_REST,)
        query = EventQuery(models=names, kinds=kinds, without=without, since=given.get("since", 0), limit=limit)
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

    async def ListBackends(self, call: Call, options: dict[str, Any]) -> list[Any]:
        search_path = options_of(options, search_path=str).get("search_path", "")
        found = await self._manager.backends(search_path)
        return [[describe.backend_values(listed, executable) for listed, executable in found]]

    async def ListJobs(self, call: Call) -> list[Any]:
        jobs = self._manager.life.jobs.running()
        return [[(job_path(job.id), job.model, job.kind, job.state.value) for job in jobs]]
