"""Unit files that somebody deleted or edited are written again when that is asked for; what lay there is kept beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cortexd.catalog import Catalog
from cortexd.errors import InvalidConfig, UnitConflict
from cortexd.events import Event
from cortexd.intents import Intents
from cortexd.registered import Model
from cortexd.store import Intent
from cortexd.systemd.protocol import Systemd
from cortexd.unitfiles import Drift
from cortexd.units import files
from cortexd.units.files import FileState

NOTHING_THERE = (FileState.MISSING, FileState.OUTDATED)
"""Nothing of anybody's would be lost."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was found, and under which path it is kept; None where there was nothing to keep, or nothing was done."""

    drift: Drift
    kept: Path | None = None


class Repairs:
    """Of one catalog's models, whose locks are the caller's to hold."""

    def __init__(
        self, catalog: Catalog, systemd: Systemd, intents: Intents, now: Callable[[], float] = time.time
    ) -> None:
        self._catalog, self._systemd, self._intents, self._now = catalog, systemd, intents, now

    async def look(self, model: Model) -> Drift:
        """How its unit file differs from what cortexd writes. Raises InvalidConfig where nobody knows what that is."""
        if model.backend_problem:
            raise InvalidConfig(model.backend_problem)
        await self._catalog.look([model])
        return await asyncio.to_thread(self._catalog.units.drift, model)

    async def repair(self, model: Model, actor: str, done: Event) -> Repaired:
        """Write its unit file again, where it is not as cortexd writes it. Raises UnitConflict where that cannot be done, and
        what systemd refuses; then all is as it was. `done` is the event of success, whose message is made here."""
        drift = await self.look(model)
        if drift.state is FileState.CURRENT:
            if self._systemd.cached(model.unit).need_daemon_reload:
                await self._systemd.reload()
            return Repaired(drift)
        kept = None if drift.state in NOTHING_THERE else files.name_aside(drift.path, self._now())
        message = f"unit file written again, which was {drift.state.value}"
        if kept:
            message += f"; what was there is kept as {kept}"
        intent = Intent(model=model.name, kind="repair", details={"message": message}, actor=actor)
        async with self._intents.doing(intent, replace(done, message=message)):
            await self._replace(model, kept)
        return Repaired(drift, kept)

    async def _replace(self, model: Model, kept: Path | None) -> None:
        units = self._catalog.units
        try:
            await asyncio.to_thread(units.replace, model, kept)
        except OSError as e:
            path = units.path(model.name)
            raise UnitConflict(f"{path} cannot be written: {e.strerror}; check the disk and the folder") from e
        try:
            await self._systemd.reload()
        except BaseException:
            with suppress(OSError):
                await asyncio.to_thread(units.put_back, model, kept)
            raise
        finally:
            await self._catalog.look([model])
