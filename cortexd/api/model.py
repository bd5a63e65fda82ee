"""org.cortexlinux.Cortex1.Model: each method checks its options, names its caller and delegates."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cortexd.api import describe
from cortexd.api.caller import caller_of, options_of
from cortexd.api.interfaces import load
from cortexd.api.job import path_of
from cortexd.api.server import Exported
from cortexd.bus import Bus, Call
from cortexd.limits import Verdict
from cortexd.manager import Manager
from cortexd.names import MODEL_INTERFACE
from cortexd.registration import Caller
from cortexd.systemd.protocol import UnitUsage


class ModelObject(Exported):
    """org.cortexlinux.Cortex1.Model."""

    interface = load(MODEL_INTERFACE)

    def __init__(self, bus: Bus, manager: Manager, name: str) -> None:
        self._bus, self._manager, self._name = bus, manager, name
        self._usage = UnitUsage()
        self._limits: list[Verdict] = []

    def properties(self) -> Mapping[str, Any]:
        """See the XML."""
        counters = describe.usage_properties(self._usage) | describe.limits_property(self._limits)
        return describe.model_properties(self._manager.view(self._name)) | counters

    async def refresh(self) -> None:
        """Read the counters, and what systemd does not signal."""
        await self._manager.refresh([self._name])
        self._usage = (await self._manager.usage([self._name]))[self._name]
        self._limits = (await self._manager.limits([self._name]))[self._name]

    async def _caller(self, call: Call, options: Mapping[str, Any] | None = None) -> Caller:
        """Who changes it, as soon as somebody may."""
        await self._manager.recovery.admit([self._name])
        return await caller_of(self._bus, call, options)

    async def Start(self, call: Call, options: dict[str, Any]) -> list[Any]:
        enable = options_of(options, enable=bool).get("enable", False)
        caller = await self._caller(call)
        start = self._manager.start_and_enable if enable else self._manager.life.start
        return [path_of(await start(self._name, caller))]

    async def Stop(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        return [path_of(await self._manager.life.stop(self._name, await self._caller(call)))]

    async def Restart(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        return [path_of(await self._manager.life.restart(self._name, await self._caller(call)))]

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

    async def SetSecret(self, call: Call, key: str, value: bytes, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        return [await self._manager.set_secret(self._name, key, bytes(value), await self._caller(call))]

    async def RemoveSecret(self, call: Call, key: str, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        await self._manager.remove_secret(self._name, key, await self._caller(call))
        return []

    async def Repair(self, call: Call, options: dict[str, Any]) -> list[Any]:
        dry_run = options_of(options, dry_run=bool).get("dry_run", False)
        return [
            describe.repair_values(await self._manager.repair(self._name, await self._caller(call), dry_run=dry_run))
        ]

    async def Kill(self, call: Call, signal: str, options: dict[str, Any]) -> list[Any]:
        whom = options_of(options, whom=str).get("whom", "all")
        await self._manager.kill(self._name, signal, whom, await self._caller(call))
        return []

    async def ResetFailed(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        await self._manager.reset_failed(self._name, await self._caller(call))
        return []

    async def Check(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        found = await self._manager.check(self._name)
        return [[[f.level.value, f.what, f.value, f.problem, f.remedy] for f in found]]

    async def GetSecurity(self, call: Call, options: dict[str, Any]) -> list[Any]:
        probe = options_of(options, probe=bool).get("probe", False)
        rows = await self._manager.security(self._name, again=probe)
        return [[[row.directive, row.requested, row.effect.value, row.why] for row in rows]]

    async def CheckHealth(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        probe = await self._manager.check_health(self._name)
        view = self._manager.view(self._name)
        return [describe.probe_values(view, probe)]

    async def Why(self, call: Call, options: dict[str, Any]) -> list[Any]:
        options_of(options)
        return [describe.cause_values(await self._manager.why(self._name))]

    async def GetUnitFiles(self, call: Call) -> list[Any]:
        await self._manager.refresh([self._name])
        unit = self._manager.view(self._name).unit
        paths = [p for p in (unit.fragment_path, *unit.drop_in_paths) if p]
        return [[(p, await asyncio.to_thread(_text, Path(p))) for p in paths]]


def _text(path: Path) -> str:
    """A unit file's text, bounded; one that has gone meanwhile is empty."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError as e:
        return f"# {e.strerror}\n"
