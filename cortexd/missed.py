"""Runs that were over before anybody looked: systemd counts restarts, and the journal tells of the runs themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cortexd import journal
from cortexd.budget import FAILED_ENDS
from cortexd.events import Event, Priority
from cortexd.history import history
from cortexd.journal import Entry, What
from cortexd.registered import Model
from cortexd.store import Store
from cortexd.systemd.protocol import UnitState

_KNOWN = 100
"""Events among which the runs are looked for that are known."""

_ENDS = (*FAILED_ENDS, "stopped", "stop-unclean", "stop", "restart")
"""Events of runs whose end is told, or was asked for."""


async def missed_runs(models: Iterable[tuple[Model, UnitState]], store: Store) -> list[Event]:
    """The events of the runs of each model since the last one that is known, with the times at which all that was, each
    model's oldest first. Of the runs that are now, nothing is said."""
    told: dict[str, tuple[UnitState, list[Event]]] = {}
    for model, unit in models:
        if unit.n_restarts:
            known = await history(store, model.name, ["run", "ready", *_ENDS], _KNOWN)
            if known and known[-1].invocation_id != unit.invocation_id:
                told[model.name] = unit, known
    if not told:
        return []
    entries = await journal.runs(min(_last(known) for _, known in told.values()))
    return [
        event
        for name, (unit, known) in told.items()
        for event in _events(name, unit, known, [entry for entry in entries if entry.unit == unit.unit])
    ]


def _last(known: Sequence[Event]) -> int:
    return max(event.time for event in known)


def _events(name: str, unit: UnitState, known: Sequence[Event], entries: Iterable[Entry]) -> Iterator[Event]:
    """What the journal tells of one model's runs."""
    ended = {event.invocation_id for event in known if event.kind in _ENDS}
    since = _last(known)
    again = known[-1].kind == "ended" and known[-1].priority is not Priority.INFO  # it was about to be restarted
    for entry in entries:
        run = entry.run
        if entry.time <= since:
            continue
        if entry.what is What.BEGAN and run != unit.invocation_id:
            message = "run began while unobserved"
            yield Event(
                model=name, kind="run", message=message, details={"restart": again}, invocation_id=run, time=entry.time
            )
        if entry.what is What.BEGAN:
            again = False
        elif entry.what is What.READY and run != unit.invocation_id:
            yield Event(model=name, kind="ready", message="ready", invocation_id=run, time=entry.time)
        elif entry.what in (What.FAILED, What.AGAIN) and run != unit.invocation_id:
            again = entry.what is What.AGAIN
            if run not in ended:
                ended.add(run)
                how = f"it ended with the result {entry.result!r}" if entry.result else "it ended by itself"
                yield Event(
                    model=name, kind="ended", message=f"restarted while unobserved: {how}", priority=Priority.WARNING,
                    invocation_id=run, time=entry.time,
                )  # fmt: skip
