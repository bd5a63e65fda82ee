"""Runs that were over before anybody looked: systemd counts restarts, and the journal tells of the runs themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cortexd import journal
from cortexd.budget import FAILED_ENDS
from cortexd.events import Event, Priority
from cortexd.journal import Entry, What
from cortexd.registered import Model
from cortexd.restarts import stable
from cortexd.states import BY_SYSTEMD
from cortexd.systemd.protocol import UnitState

_TOLD = (*FAILED_ENDS, "stopped", "stop-unclean")
_ASKED = ("stop", "restart")
KINDS = ("run", "ready", *_TOLD, *_ASKED)
"""Events by which it is known what was seen of a model's runs."""
LAST = 50
"""So many of them at most, from the last run's begin on."""


async def missed_runs(
    models: Iterable[tuple[Model, UnitState]], past: Mapping[str, Sequence[Event]], booted: float
) -> list[Event]:
    """The events of the runs of each model since the last one that is known, with the times at which all that was, each
    model's oldest first. Of the runs that are now, nothing is said. `past`: each model's last events of KINDS; `booted`:
    when the machine was, in seconds since the epoch."""
    asked = [(model, unit, past[model.name]) for model, unit in models if _is_open(unit, past.get(model.name, ()))]
    if not asked:
        return []
    entries: dict[str, list[Entry]] = {}
    for entry in await journal.runs(min(_last(known) for _, _, known in asked)):
        entries.setdefault(entry.unit, []).append(entry)
    events: list[Event] = []
    for model, unit, known in asked:
        told = [entry for entry in entries.get(model.unit, ()) if entry.time > _last(known)]
        events += _events(model, unit, known, told, booted) if told else _counted(model, unit, known)
    return events


def boot_time() -> float:
    """When this machine was booted, in seconds since the epoch (clock_gettime(2))."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_open(unit: UnitState, known: Sequence[Event]) -> bool:
    """Whether there are runs of which nothing is known, or one is over and nothing told of its end."""
    if unit.n_restarts:
        return bool(known) and known[-1].invocation_id != unit.invocation_id
    run = _run(known)
    return bool(run) and not unit.running and not unit.invocation_id and not _is_told(known, run)


def _run(known: Sequence[Event]) -> str:
    """The last run that is known."""
    return next((event.invocation_id for event in reversed(known) if event.kind == "run"), "")


def _is_told(known: Sequence[Event], run: str) -> bool:
    return any(event.kind in _TOLD and event.invocation_id == run for event in known)


def _last(known: Sequence[Event]) -> int:
    return max(event.time for event in known)


def _events(
    model: Model, unit: UnitState, known: Sequence[Event], entries: Iterable[Entry], booted: float
) -> Iterator[Event]:
    """What the journal tells of one model's runs."""
    ended = {event.invocation_id for event in known if event.kind in _TOLD}
    asked = {event.invocation_id for event in known if event.kind in _ASKED}
    ready = {
        event.invocation_id: event.details["active_enter"]
        for event in known
        if event.kind == "ready" and "active_enter" in event.details
    }
    again = known[-1].kind == "ended" and known[-1].priority is not Priority.INFO  # it was about to be restarted

    def event(entry: Entry, kind: str, message: str, priority: Priority = Priority.INFO) -> Event:
        return Event(
            model=model.name, kind=kind, message=message, priority=priority, invocation_id=entry.run, time=entry.time,
            details={"restart": again} if kind == "run" else {},
        )  # fmt: skip

    runs = {_run(known)}
    for entry in entries:
        run = entry.run
        if run == unit.invocation_id:
            again = again and entry.what is not What.BEGAN
        elif entry.what is not What.BEGAN and run not in runs:
            pass  # of one before the last that is known
        elif entry.what is What.BEGAN:
            runs.add(run)
            yield event(entry, "run", "run began while unobserved")
            again = False
        elif entry.what is What.READY:
            ready[run] = entry.monotonic
            yield event(entry, "ready", "ready")
        elif entry.what in (What.FAILED, What.AGAIN):
            again = entry.what is What.AGAIN
            if run not in ended | asked:
                ended.add(run)
                if run in ready and entry.monotonic - ready[run] >= model.spec.restart.stable_after * 1e6:
                    yield stable(model, run, entry.time)
                how = f"it ended with the result {entry.result!r}" if entry.result else "it ended by itself"
                yield event(entry, "ended", f"restarted while unobserved: {how}", Priority.WARNING)
        elif entry.what is What.STOPPED and run not in ended and entry.time / 1e6 > booted:
            # What ended with the machine's last boot ended otherwise than by being stopped.
            ended.add(run)
            by = "" if run in asked else f": {BY_SYSTEMD}"
            yield event(entry, "stopped", f"stopped while cortexd was away{by}")


def _counted(model: Model, unit: UnitState, known: Sequence[Event]) -> Iterator[Event]:
    """What systemd's count tells where the journal tells nothing. How long those runs were ready is not known, so that they
    count as no more than the one that did end."""
    run = _run(known)
    then = next((e.details.get("n_restarts") for e in reversed(known) if e.kind == "run"), None)
    restarts = unit.n_restarts - (unit.active_state == "failed")  # at systemd's own limit it counts one that was none
    if isinstance(then, int) and then <= restarts:
        restarts -= then
    restarts -= _is_told(known, run)
    if restarts > 0:
        times = "once" if restarts == 1 else f"{restarts} times"
        message = f"restarted while unobserved: {times}, and the journal does not tell why"
        yield Event(
            model=model.name, kind="ended", message=message, priority=Priority.WARNING, invocation_id=run,
            details={"restarts": restarts},
        )  # fmt: skip
