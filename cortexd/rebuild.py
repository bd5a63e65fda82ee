"""Makes a lost database again from the unit files, which carry what was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cortexd.errors import CortexError, InvalidConfig
from cortexd.events import Event, Priority
from cortexd.kinds import Value
from cortexd.model import stored_settings
from cortexd.names import check_name, model_name
from cortexd.store import EventQuery, Store
from cortexd.units import files
from cortexd.units.files import FileState

LOST = "database-lost"
"""The kind of the events, of no model, that say so; each with a sentence for a person."""

_TOLD_SECONDS = 7 * 24 * 3600
"""So long it is said at every start: who was not there is to learn of it, however often cortexd was killed meanwhile."""

_MOST = 20
"""Models that are named."""


async def rebuild(store: Store, folder: Path) -> dict[str, str]:
    """Register every model of which there is a unit file of cortexd's, edited or not, and write down that the database was lost,
    unless there was no cortexd before. Returns why some cannot be registered, a sentence each."""
    found, failed = await asyncio.to_thread(_models, folder)
    message = "registered again from its unit file, since the database was lost"
    events = [Event(model=name, kind="registered", message=message, priority=Priority.WARNING) for name in found]
    told = _sentences(store, list(found), lost=bool(failed))
    events += [Event(model="", kind=LOST, message=sentence, priority=Priority.WARNING) for sentence in told]
    await store.take_over(found, events)
    return failed


async def losses(store: Store, now: float) -> list[str]:
    """What there is to say of a database that was lost not long ago. `now`: seconds since the epoch."""
    query = EventQuery(models=[""], kinds=[LOST], since=int((now - _TOLD_SECONDS) * 1e6))
    return [event.message for event in await store.events(query)]


def _sentences(store: Store, found: Sequence[str], *, lost: bool) -> list[str]:
    told = []
    if store.damaged:
        told.append(f"the database that was damaged is kept as {store.damaged}: past events are in it alone")
    if found:
        more = f" and {len(found) - _MOST} more" if found[_MOST:] else ""
        told.append(
            f"the database was lost; registered again from their unit files: {', '.join(found[:_MOST])}{more}; "
            "'cortexctl unregister' removes what should not be there"
        )
    elif lost or store.damaged:
        told.append("the database was lost, and no model can be registered again from a unit file")
    return told


def _models(folder: Path) -> tuple[dict[str, dict[str, Value]], dict[str, str]]:
    """The settings that unit files carry, by name, and why some do not, a sentence each."""
    found, failed = {}, {}
    for path in sorted(folder.glob("cortex-*.service")):
        name = model_name(path.name)
        if not name or files.inspect(path) not in (FileState.CURRENT, FileState.EDITED):
            continue
        try:
            raw = files.settings_in(files.read(path))
            if raw is None:
                raise InvalidConfig("it does not say with which settings")
            found[check_name(name)] = stored_settings(raw)
        except CortexError as e:
            failed[name] = f"{path} cannot be registered again: {e}"
    return found, failed
