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
from cortexd.runs import EXITED
from cortexd.states import BY_SYSTEMD
from cortexd.systemd.protocol import UnitState

_TOLD = (*FAILED_ENDS, EXITED, "stopped", "stop-unclean")
_ASKED = ("stop", "restart")
CONDEMNED = "health-restart"
"""The event of a run that is killed since it hung: however long it was ready for systemd, it was not well."""
KINDS = ("registered", "run", "ready", CONDEMNED, *_TOLD, *_ASKED)
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
            if entry.time > _last(known) and entry.run != unit.invocation_id and not former:
                runs.setdefault(entry.run, {}).setdefault(entry.what, entry)
        events += _Unseen(model, unit, known, booted).events(runs)
    return events


def boot_time() -> float:
    """When this machine was booted, in seconds since the epoch (clock_gettime(2))."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def last_run(known: Sequence[Event]) -> str:
    """The last run that is known."""
    return next((event.invocation_id for event in reversed(known) if event.kind == "run"), "")


def _is_open(unit: UnitState, known: Sequence[Event]) -> bool:
    """Whether there are runs of which nothing is known, or one is over and nothing told of its end."""
    run = last_run(known)
    if unit.invocation_id:
        return bool(known) and run != unit.invocation_id
    return bool(run) and not unit.running and not _is_told(known, run)


def _is_told(known: Sequence[Event], run: str) -> bool:
    return any(event.kind in _TOLD and event.invocation_id == run for event in known)


def _last(known: Sequence[Event]) -> int:
    return max(event.time for event in known)


class _Unseen:
    """What happened to one model meanwhile.

    journald drops lines in a flood, those of no importance (a run began, is ready, is started again) before warnings (it
    failed). So a run may be known by its end alone, and some by systemd's count alone.
    """

    def __init__(self, model: Model, unit: UnitState, known: Sequence[Event], booted: float) -> None:
        self._model, self._unit, self._known, self._booted = model, unit, known, booted
        self._last = last_run(known)
        self._asked = {event.invocation_id for event in known if event.kind in _ASKED}
        self._condemned = {event.invocation_id for event in known if event.kind == CONDEMNED}
        self._ready = {e.invocation_id: e.details.get("active_enter") for e in known if e.kind == "ready"}
        self._restarts = self._count()

    def events(self, runs: Mapping[str, Told]) -> Iterator[Event]:
        """`runs`: what the journal tells of each but the one that is now, in their order."""
        begun = len([run for run in runs if run != self._last]) + bool(self._unit.invocation_id)
        all_restarted = self._restarts >= begun > 0  # a person's start has the count begin anew
        again, accounted = False, int(_is_told(self._known, self._last))
        for run, told in runs.items():
            if run != self._last:
                began = told.get(What.BEGAN)
                # Whether it is a restart is not known where the line is lost: then it clears nothing.
                restart = {"restart": True} if again or all_restarted else {"restart": False} if began else {}
                accounted = 0 if restart.get("restart") is False else accounted
                first = began or min(told.values(), key=lambda entry: entry.time)
                yield self._event(first, "run", "run began while unobserved", details=restart)
            if What.READY in told:
                yield self._event(told[What.READY], "ready", "ready")
            ended = list(self._end(run, told, all_restarted))
            accounted += any(event.kind in FAILED_ENDS for event in ended)
            yield from ended
            again = What.AGAIN in told
        if self._restarts > accounted:
            yield self._counted(self._restarts - accounted, "" if runs or accounted else self._last)

    def _end(self, run: str, told: Told, restarted: bool) -> Iterator[Event]:
        """How a run ended, where nothing was told of that yet. What a person asked systemd to stop has not failed, and what
        ended with the machine's last boot was not stopped either."""
        failed, stopped = told.get(What.FAILED) or told.get(What.AGAIN), told.get(What.STOPPED)
        if _is_told(self._known, run):
            return
        if stopped and What.AGAIN not in told:
            if stopped.time / 1e6 > self._booted:
                by = "" if run in self._asked else f": {BY_SYSTEMD}"
                yield self._event(stopped, "stopped", f"stopped while cortexd was away{by}")
        elif failed and run not in self._asked:
            ready = told[What.READY].monotonic if What.READY in told else self._ready.get(run)
            enough = self._model.spec.restart.stable_after * 1e6
            if ready is not None and failed.monotonic - ready >= enough and run not in self._condemned:
                yield stable(self._model, run, failed.time)
            what = "restarted" if restarted or What.AGAIN in told else "ended"
            how = f"it ended with the result {failed.result!r}" if failed.result else "it ended by itself"
            yield self._event(failed, "ended", f"{what} while unobserved: {how}", Priority.WARNING)

    def _event(
        self,
        entry: Entry,
        kind: str,
        message: str,
        priority: Priority = Priority.INFO,
        details: Mapping[str, bool] | None = None,
    ) -> Event:
        return Event(
            model=self._model.name, kind=kind, message=message, priority=priority, invocation_id=entry.run, time=entry.time,
            details=details or {},
        )  # fmt: skip

    def _count(self) -> int:
        """How often systemd has restarted it since the last run that is known began, or since a person's start after it."""
        then = next((e.details.get("n_restarts") for e in reversed(self._known) if e.kind == "run"), None)
        # At its own limit it counts one that was none.
        count = self._unit.n_restarts - (self._unit.active_state == "failed")
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
