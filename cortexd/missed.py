"""Runs that were over before anybody looked: systemd counts restarts, and the journal tells of the runs themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cortexd import journal
from cortexd.budget import AT_REST, FAILED_ENDS
from cortexd.events import Event, Priority
from cortexd.journal import Entry, What
from cortexd.registered import Model
from cortexd.restarts import stable
from cortexd.runs import AT_ITS_LIMIT, EXITED, GOES_ON
from cortexd.states import BY_SYSTEMD
from cortexd.systemd.protocol import UnitState

_TOLD = (*FAILED_ENDS, EXITED, "stopped", "stop-unclean", AT_REST)
_ASKED = ("stop", "restart")
CONDEMNED = "health-restart"
"""The event of a run that is killed since it hung: however long it was ready for systemd, it was not well."""
KINDS = ("registered", "run", "ready", CONDEMNED, "kill", *_TOLD, *_ASKED)
"""Events by which it is known what was seen of a model's runs."""
LAST = 50
"""So many of them at most, from the last run's begin on."""

Told = Mapping[What, Entry]
"""What the journal tells of one run."""


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
        runs: dict[str, dict[What, Entry]] = {}
        for entry in entries.get(model.unit, ()):
            former = entry.run != last_run(known) and model.budget.knows(entry.run)  # told already; journald is late
            goes_on = entry.run == unit.invocation_id and not _is_over(unit)
            if entry.time > _last(known) and not goes_on and not former:
                told = runs.setdefault(entry.run, {})
                what = What.LIMIT if entry.what is What.FAILED and What.FAILED in told else entry.what
                told.setdefault(what, entry)
        unseen = _Unseen(model, unit, known, booted, runs)
        events += (told_now := list(unseen.events()))
        last = unseen.without_end([*known, *told_now])
        if last and last.time / 1e6 > booted and not await journal.manager_started(last.time):
            events.append(_unknown_end(last))
    return events


def boot_time() -> float:
    """When this machine was booted, in seconds since the epoch (clock_gettime(2))."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def last_run(known: Sequence[Event]) -> str:
    """The last run that is known."""
    return next((event.invocation_id for event in reversed(known) if event.kind == "run"), "")


def rested_by_itself(known: Sequence[Event]) -> Event | None:
    """The event of the last run's end, where nobody asked for it and no other run was to come."""
    ends = _ends(known, last_run(known))
    last = ends[-1] if ends else None
    by_itself = last and (last.kind == EXITED or (last.kind == "ended" and GOES_ON not in last.details))
    return last if last and by_itself and last.priority is not Priority.INFO else None


def _is_open(unit: UnitState, known: Sequence[Event]) -> bool:
    """Whether there are runs of which nothing is known, or one is over and nothing told of its end."""
    run = last_run(known)
    if unit.invocation_id:  # how the last one ended is told by the unit itself
        return bool(known) and run != unit.invocation_id and not _ends(known, unit.invocation_id)
    ends = _ends(known, run)
    return bool(run) and not unit.running and (not ends or GOES_ON in ends[-1].details)


def _is_over(unit: UnitState) -> bool:
    """Whether the unit's run has ended, so that the unit itself tells how."""
    return not unit.running or unit.sub_state.startswith("auto-restart")


def _ends(known: Sequence[Event], run: str) -> list[Event]:
    """What was told of how that run ended, oldest first."""
    return [e for e in known if e.kind in _TOLD and (e.invocation_id == run or e.kind == AT_REST)]


def _unknown_end(run: Event) -> Event:
    """The event of a run, that began with this one, of whose end there is no word: no silent stop."""
    message = (
        "it ended while cortexd was away, and how is not known: neither systemd nor the journal has a word of it, as of a "
        "server that ends by itself with status 0, or by SIGTERM"
    )
    return Event(
        model=run.model, kind=EXITED, message=message, priority=Priority.WARNING, invocation_id=run.invocation_id
    )


def _last(known: Sequence[Event]) -> int:
    return max(event.time for event in known)


class _Unseen:
    """What happened to one model meanwhile.

    journald drops lines in a flood, those of no importance (a run began, is ready, is started again) before warnings (it
    failed). So a run may be known by its end alone, and some by systemd's count alone.
    """

    def __init__(
        self, model: Model, unit: UnitState, known: Sequence[Event], booted: float, runs: Mapping[str, Told]
    ) -> None:
        """`runs`: what the journal tells of each but the one that goes on, in their order."""
        self._model, self._unit, self._known, self._booted, self._runs = model, unit, known, booted, runs
        self._last, self._own = last_run(known), unit.invocation_id
        self._asked = {event.invocation_id for event in known if event.kind in _ASKED}
        self._condemned = {event.invocation_id for event in known if event.kind == CONDEMNED}
        self._ready = {e.invocation_id: e.details.get("active_enter") for e in known if e.kind == "ready"}
        self._restarts = self._count()

    def events(self) -> Iterator[Event]:
        """What was not told yet."""
        begun = len({*self._runs, self._own} - {self._last, ""})
        all_restarted = self._restarts >= begun > 0  # a person's start has the count begin anew
        again, accounted = False, int(bool(_ends(self._known, self._last)))
        count: int | None = None
        for run, told in self._runs.items():
            if run != self._last:
                began = told.get(What.BEGAN)
                # Whether it is a restart is not known where the line is lost: then it clears nothing.
                restart = {"restart": True} if again or all_restarted else {"restart": False} if began else {}
                accounted = 0 if restart.get("restart") is False else accounted
                first = began or min(told.values(), key=lambda entry: entry.time)
                count = self._own_count() if run == self._own else 0 if restart.get("restart") is False else count
                counted = {} if count is None else {"n_restarts": count}
                yield self._event(first, "run", "run began while unobserved", details={**restart, **counted})
            if What.READY in told and run not in self._ready:
                entered = {"active_enter": self._unit.active_enter} if run == self._own else {}
                yield self._event(told[What.READY], "ready", "ready", details=entered)
            ended = list(self._end(run, told, all_restarted))
            accounted += any(event.kind in FAILED_ENDS for event in ended)
            yield from ended
            again = What.AGAIN in told
            count = told[What.AGAIN].restarts or None if again else None
        if _is_over(self._unit) and self._own not in ("", self._last, *self._runs):
            yield self._own_begin()
        if self._restarts > accounted:
            yield self._counted(self._restarts - accounted, "" if self._runs or accounted else self._last)

    def without_end(self, events: Sequence[Event]) -> Event | None:
        """The event of the last run's begin, where neither the unit nor `events`, all that are known, tell of its end."""
        begin = next((event for event in reversed(events) if event.kind == "run"), None)
        if begin is None or self._own or self._unit.running or begin.invocation_id in self._asked:
            return None
        return None if _ends(events, begin.invocation_id) else begin

    def _own_begin(self) -> Event:
        """The begin of the unit's last run, of which the journal has no word."""
        count = self._own_count()
        return Event(
            model=self._model.name, kind="run", message="run began while unobserved", invocation_id=self._own,
            time=self._unit.exec_main_start, details={"restart": bool(count), "n_restarts": count},
        )  # fmt: skip

    def _own_count(self) -> int:
        """systemd's count of restarts when the unit's last run began: at its own limit it counts one that was none."""
        told = self._runs.get(self._own, {})
        limit = self._unit.active_state == "failed" and (not told or bool(told.keys() & {What.LIMIT, What.AGAIN}))
        return max(self._unit.n_restarts - limit, 0)

    def _end(self, run: str, told: Told, restarted: bool) -> Iterator[Event]:
        """How a run ended, as far as that was not told yet: the unit's own is told by the unit. What was to be stopped when it
        failed has not failed, and what ended with the machine's last boot was not stopped either."""
        failed = told.get(What.FAILED) or told.get(What.AGAIN)
        ends = _ends(self._known, run)
        if run == self._own or (ends and GOES_ON not in ends[-1].details):
            return
        asked = run in self._asked
        if failed and What.STOPPING not in told and not asked and not ends:
            yield from self._failed(run, told, failed, restarted)
        stopped = told.get(What.STOPPED) or (None if asked else told.get(What.STOPPING))  # that alone: started anew
        if stopped and What.AGAIN not in told and stopped.time / 1e6 > self._booted:
            by = "" if asked else ": it was to be restarted no more" if self._model.gave_up else f": {BY_SYSTEMD}"
            how = f"stopped while cortexd was away{by}"
            if What.STOPPED not in told:
                how = "stopped and started anew while cortexd was away: with systemctl"
            yield self._event(stopped, "stopped", how)

    def _failed(self, run: str, told: Told, failed: Entry, restarted: bool) -> Iterator[Event]:
        ready = told[What.READY].monotonic if What.READY in told else self._ready.get(run)
        enough = self._model.spec.restart.stable_after * 1e6
        if ready is not None and failed.monotonic - ready >= enough and run not in self._condemned:
            yield stable(self._model, run, failed.time)
        limit = told.get(What.LIMIT)
        what = "restarted" if (restarted or What.AGAIN in told) and not limit else "ended"
        how = f"it ended with the result {failed.result!r}" if failed.result else "it ended by itself"
        why = {"why": how}
        yield self._event(failed, "ended", f"{what} while unobserved: {how}", Priority.WARNING, why)
        if limit:
            yield self._event(limit, "failed", AT_ITS_LIMIT, Priority.ERROR, {**why, "start_limit": True})

    def _event(
        self,
        entry: Entry,
        kind: str,
        message: str,
        priority: Priority = Priority.INFO,
        details: Mapping[str, Any] | None = None,
    ) -> Event:
        return Event(
            model=self._model.name, kind=kind, message=message, priority=priority, invocation_id=entry.run, time=entry.time,
            details=details or {},
        )  # fmt: skip

    def _count(self) -> int:
        """How often systemd has restarted it since the last run that is known began, or since a person's start after it."""
        then = next((e.details.get("n_restarts") for e in reversed(self._known) if e.kind == "run"), None)
        count = self._own_count()
        return count - then if isinstance(then, int) and then <= count else count

    def _counted(self, restarts: int, run: str) -> Event:
        """What systemd's count tells and the journal does not. How long those runs were ready is not known, so that they count
        as no more than one that failed: `run`, where nothing else is told of it."""
        times = "once" if restarts == 1 else f"{restarts} times"
        message = f"restarted while unobserved: {times}, and the journal does not tell why"
        return Event(
            model=self._model.name, kind="ended", message=message, priority=Priority.WARNING, invocation_id=run,
            details={"restarts": restarts},
        )  # fmt: skip
