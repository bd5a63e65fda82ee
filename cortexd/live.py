"""Bringing limits to a unit that runs, without a restart.

SetUnitProperties applies them at once, in a drop-in that outranks the unit file. Of these only ours are deleted: those that
say what the unit file says. What anybody else set, in whatever drop-in, wins and stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from cortexd.errors import CortexError
from cortexd.limits import NOT_APPLIED, Limit, Verdict, assigned, is_ours, properties, verdicts
from cortexd.model import ModelSpec, ResourceLimits
from cortexd.scope import Scope
from cortexd.systemd.protocol import Systemd
from cortexd.units import files

log = logging.getLogger(__name__)


def control_folder(scope: Scope) -> Path | None:
    """Where SetUnitProperties leaves what is to last until the machine or the user's manager ends."""
    return scope.runtime / "systemd" / "user.control" if scope.runtime else None


class LiveLimits:
    """Of one scope's units."""

    def __init__(self, scope: Scope, systemd: Systemd) -> None:
        self._control = control_folder(scope)
        self._systemd = systemd

    async def apply(self, unit: str, limits: ResourceLimits) -> list[str]:
        """Have a running unit held to `limits`, which its unit file says already. Returns what stands in the way, a sentence
        each. Raises UnitFailed, SystemdUnavailable."""
        wanted = properties(limits)
        await asyncio.to_thread(self._remove, unit, wanted)  # a rest of ours is nobody's word
        state = await self._systemd.refresh(unit)
        drop_ins = await asyncio.to_thread(directives_of, state.drop_in_paths)
        theirs = {directive: path for path, found in drop_ins.items() for directive in found}
        ours = {limit: value for limit, value in wanted.items() if limit.directive not in theirs}
        kept: list[str] = []
        try:
            if ours:
                await self._systemd.set_properties(unit, {limit.bus_property: value for limit, value in ours.items()})
        finally:
            removed, kept = await asyncio.to_thread(self._remove, unit, ours)
            if removed or state.need_daemon_reload:
                await self._systemd.reload()
        return kept + [
            f"{limit.setting}={limit.text(getattr(limits, limit.attribute))} does not reach it: "
            f"{theirs[limit.directive]} sets {limit.directive}=; delete that line there, then 'systemctl --user daemon-reload'"
            for limit in wanted
            if limit.directive in theirs
        ]

    async def undo(self, unit: str, limits: ResourceLimits, tried: ResourceLimits) -> None:
        """Go back to `limits` after a failure, as far as systemd lets us; of what was `tried` nothing is left to come back."""
        await asyncio.to_thread(self._remove, unit, properties(tried))
        with suppress(CortexError):
            if self._systemd.cached(unit).running:
                await self.apply(unit, limits)
            else:
                await self._systemd.reload()

    async def clean(self, units: Mapping[str, ResourceLimits]) -> list[str]:
        """Delete what a daemon left that was killed between two steps. Returns what cannot be deleted, a sentence each."""
        found = [await asyncio.to_thread(self._remove, unit, properties(limits)) for unit, limits in units.items()]
        if any(removed for removed, _ in found):
            log.info("deleted drop-ins that a killed cortexd had left")
            await self._systemd.reload()
        return [sentence for _, kept in found for sentence in kept]

    async def verdicts(self, specs: Mapping[str, ModelSpec]) -> dict[str, list[Verdict]]:
        """Which limits of these units are in force; nothing of those that do not run."""
        found = await self._systemd.limits(list(specs))
        told = {}
        for unit, limits in found.items():
            drop_ins = await asyncio.to_thread(directives_of, self._systemd.cached(unit).drop_in_paths)
            told[unit] = verdicts(specs[unit].limits, limits, drop_ins, specs[unit].name)
        return told

    async def settle(self, specs: Mapping[str, ModelSpec]) -> None:
        """Bring to the units that run what their files say: a daemon may have been killed before it did (systemd 257 shows
        a changed file's limits without applying them)."""
        for unit, told in (await self.verdicts(specs)).items():
            if any(verdict.reason == NOT_APPLIED for verdict in told):
                try:
                    await self.apply(unit, specs[unit].limits)
                except CortexError as e:
                    log.warning("the limits of %s are not in force: %s", unit, e)

    def _remove(self, unit: str, values: Mapping[Limit, int]) -> tuple[int, list[str]]:
        """Delete the drop-ins that say just these values. Returns how many, and those that cannot be deleted."""
        folder = self._control / f"{unit}.d" if self._control else None
        if folder is None or not folder.is_dir():
            return 0, []
        removed, kept = 0, []
        for limit, value in values.items():
            path = folder / f"50-{limit.directive}.conf"
            if not is_ours(limit, value, files.read(path)):
                continue
            try:
                path.unlink()
                removed += 1
            except OSError as e:
                kept.append(f"{path} cannot be deleted and outranks later settings: {e.strerror}; delete it")
        with suppress(OSError):  # somebody else's are in it
            folder.rmdir()
        return removed, kept


def directives_of(paths: Iterable[str]) -> dict[str, set[str]]:
    """Which limits each of these drop-ins sets; blocking."""
    return {path: assigned(files.read(Path(path))) for path in paths}
