"""Bringing limits to a unit that runs, without a restart.

SetUnitProperties applies them at once, in a drop-in that outranks the unit file. Of these only those are deleted that we had
it make, where none was before: what they are is in the database until they are gone, for the next daemon where this one is
killed. What anybody else set, in whatever drop-in, wins and stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from cortexd.errors import CortexError, StoreFailed
from cortexd.intents import Intents
from cortexd.limits import LIFTED, LIMITS, NOT_APPLIED, Limit, Verdict, assigned, is_ours, properties, verdicts
from cortexd.model import ModelSpec, ResourceLimits
from cortexd.names import model_name, unit_name
from cortexd.scope import Scope
from cortexd.store import Intent
from cortexd.systemd.protocol import Systemd
from cortexd.units import files

log = logging.getLogger(__name__)

KIND = "limits"
"""Of the intent in which drop-ins of ours may be there."""


def control_folder(scope: Scope) -> Path | None:
    """Where SetUnitProperties leaves what is to last until the machine or the user's manager ends."""
    return scope.runtime / "systemd" / "user.control" if scope.runtime else None


class LiveLimits:
    """Of one scope's units."""

    def __init__(self, scope: Scope, systemd: Systemd, intents: Intents) -> None:
        self._control = control_folder(scope)
        self._systemd, self._intents = systemd, intents
        self._made: dict[str, dict[Limit, int]] = {}
        """By unit, what SetUnitProperties was last asked for."""

    async def apply(self, unit: str, limits: ResourceLimits, *, noted: bool = True) -> list[str]:
        """Have a running unit held to `limits`, which its unit file says already. Returns what stands in the way, a sentence
        each. `noted`: written down first, or else StoreFailed. Raises UnitFailed, SystemdUnavailable."""
        wanted = properties(limits)
        state = await self._systemd.refresh(unit)
        paths = [*self._there(unit, wanted), *state.drop_in_paths]  # also what systemd has not read yet
        drop_ins = await asyncio.to_thread(directives_of, paths)
        theirs = {directive: path for path, found in drop_ins.items() for directive in found}
        ours = {limit: value for limit, value in wanted.items() if limit.directive not in theirs}
        kept: list[str] = []
        details = {"made": {limit.directive: value for limit, value in ours.items()}}
        intent = Intent(model=model_name(unit) or unit, kind=KIND, details=details)
        async with self._intents.doing(intent) if noted else nullcontext():
            self._made[unit] = ours
            try:
                if ours:
                    await self._systemd.set_properties(unit, {limit.bus_property: n for limit, n in ours.items()})
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

    async def undo(self, unit: str, limits: ResourceLimits) -> None:
        """Go back to `limits` after a failure, as far as systemd lets us; of what was tried nothing is left to come back."""
        await asyncio.to_thread(self._remove, unit, self._made.pop(unit, {}))
        with suppress(CortexError):
            if self._systemd.cached(unit).running:
                try:
                    await self.apply(unit, limits)
                except StoreFailed:  # the disk may be full, which is why we are here
                    await self.apply(unit, limits, noted=False)
            else:
                await self._systemd.reload()

    async def clean(self, begun: Iterable[Intent]) -> tuple[int, list[str]]:
        """Delete what a daemon left that was killed between two steps, as `begun` says. Returns how many drop-ins were deleted,
        of which systemd is the caller's to tell, and what cannot be deleted, a sentence each."""
        left: dict[str, dict[Limit, int]] = {}
        for intent in begun:
            made = intent.details.get("made")
            if intent.kind == KIND and isinstance(made, dict):
                values = {limit: made[limit.directive] for limit in LIMITS if limit.directive in made}
                left.setdefault(unit_name(intent.model), {}).update(values)
        found = await asyncio.to_thread(lambda: [self._remove(unit, values) for unit, values in left.items()])
        if removed := sum(removed for removed, _ in found):
            log.info("deleted %d drop-ins that a killed cortexd had left", removed)
        return removed, [sentence for _, kept in found for sentence in kept]

    async def verdicts(self, specs: Mapping[str, ModelSpec]) -> dict[str, list[Verdict]]:
        """Which limits of these units are in force; nothing of those that do not run."""
        found = await self._systemd.limits(list(specs))
        paths = {unit: self._systemd.cached(unit).drop_in_paths for unit in found}
        drop_ins = await asyncio.to_thread(lambda: {unit: directives_of(there) for unit, there in paths.items()})
        return {u: verdicts(specs[u].limits, limits, drop_ins[u], specs[u].name) for u, limits in found.items()}

    async def settle(self, specs: Mapping[str, ModelSpec]) -> None:
        """Bring to the units that run what their files say: a daemon may have been killed before it did (systemd 257 shows
        a changed file's limits without applying them)."""
        for unit, told in (await self.verdicts(specs)).items():
            if any(verdict.reason in (NOT_APPLIED, LIFTED) for verdict in told):
                try:
                    await self.apply(unit, specs[unit].limits)
                except CortexError as e:
                    log.warning("the limits of %s are not in force: %s", unit, e)

    def _there(self, unit: str, values: Iterable[Limit]) -> list[str]:
        folder = self._control / f"{unit}.d" if self._control else None
        return [str(folder / f"50-{limit.directive}.conf") for limit in values] if folder else []

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
