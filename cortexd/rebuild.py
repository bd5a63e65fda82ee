"""Makes a lost database again from the unit files, which carry what was asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from cortexd.errors import CortexError
from cortexd.events import Event, Priority
from cortexd.kinds import Value
from cortexd.model import stored_settings
from cortexd.names import check_name, model_name
from cortexd.store import Store
from cortexd.units import files
from cortexd.units.files import FileState

log = logging.getLogger(__name__)


async def rebuild(store: Store, folder: Path) -> list[str]:
    """Register every model of which there is a unit file that cortexd wrote and nobody changed; returns what there is to
    say about it, a sentence each."""
    found = await asyncio.to_thread(lambda: dict(_models(folder)))
    message = "registered again from its unit file, since the database was lost"

    def event(name: str) -> Event:
        return Event(model=name, kind="registered", message=message, priority=Priority.WARNING)

    await store.take_over(found, event)
    told = []
    if store.set_aside:
        told.append(f"the database was damaged and is kept as {store.set_aside}: past events are in it alone")
    if found:
        told.append(
            f"the database was lost; registered again from their unit files: {', '.join(found)}; "
            "'cortexctl unregister' removes what should not be there"
        )
    return told


def _models(folder: Path) -> Iterator[tuple[str, dict[str, Value]]]:
    for path in sorted(folder.glob("cortex-*.service")):
        name = model_name(path.name)
        if not name or files.inspect(path) is not FileState.CURRENT:
            continue
        raw = files.settings_in(files.read(path))
        if raw is None:
            continue
        try:
            yield check_name(name), stored_settings(raw)
        except CortexError as e:
            log.warning("%s cannot be registered again: %s", path, e)
