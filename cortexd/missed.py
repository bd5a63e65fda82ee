"""Runs that ended while cortexd was not there and were followed by others: systemd counts them, the journal tells of them."""

from __future__ import annotations

from collections.abc import Iterable

from cortexd import journal
from cortexd.budget import FAILED_ENDS
from cortexd.events import Event, Priority
from cortexd.registered import Model
from cortexd.store import EventQuery, Store
from cortexd.systemd.protocol import UnitState

_KNOWN = 100
"""Events among which the runs are looked for whose end is known."""


async def missed_ends(models: Iterable[tuple[Model, UnitState]], store: Store) -> list[Event]:
    """An event for each, oldest first, with the time of its end. Of the runs of `models` that are now, nothing is said."""
    missed: dict[str, tuple[Model, set[str]]] = {}
    since = 0
    for model, unit in models:
        if not unit.n_restarts:
            continue
        known = await store.events(EventQuery(models=[model.name], kinds=["run", *FAILED_ENDS], limit=_KNOWN))
        if known and known[-1].invocation_id != unit.invocation_id:
            told = {event.invocation_id for event in known if event.kind in FAILED_ENDS}
            missed[unit.unit] = model, {*told, unit.invocation_id}
            since = min(since or known[-1].time, known[-1].time)
    if not missed:
        return []
    return [
        Event(
            model=missed[ended.unit][0].name, kind="ended", message=f"restarted while unobserved: {ended.message}",
            priority=Priority.WARNING, invocation_id=ended.run, time=ended.time,
        )
        for ended in await journal.ends(since)
        if ended.unit in missed and ended.run not in missed[ended.unit][1]
    ]  # fmt: skip
