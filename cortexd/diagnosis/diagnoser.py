"""Finds out why runs ended: collects the evidence while it is there, keeps the cause as an event, and answers `why`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from cortexd import journal, runlog
from cortexd.budget import FAILED_ENDS, GAVE_UP
from cortexd.catalog import Catalog
from cortexd.diagnosis.evidence import Evidence, lines_of, with_status
from cortexd.diagnosis.why import Cause, explain, from_details, given_up
from cortexd.errors import CortexError, NoSuchModel
from cortexd.events import REFUSED, Event, Priority
from cortexd.history import histories, history
from cortexd.registered import Model
from cortexd.runlog import RunLog
from cortexd.runs import ending_told
from cortexd.scope import Scope
from cortexd.states import Judgement, State
from cortexd.store import Store
from cortexd.systemd.cgroup import mount_point
from cortexd.systemd.memory import MemoryWatch
from cortexd.systemd.protocol import UnitState

log = logging.getLogger(__name__)

SAVING = 4
"""Failed runs whose logs are read at a time: a hundred may fail together."""

_REMEMBERED = 1024
"""Runs whose cause can still be waited for."""

_PENDING_SECONDS = 2.0
"""What `why` waits for a cause that is being found."""

_HISTORY = 50
"""Events of a model that are looked at for who did what to its last run."""

_UNEXPLAINED = 20
"""Ends and causes of a model among which ends without a cause are looked for."""

_LIFE = ("start", "run", REFUSED, "cause", "stop", "stopped", "stop-unclean", *FAILED_ENDS, GAVE_UP)
"""Events by which `why` knows a run and its end."""


class Diagnoser:
    """One per daemon. `on_change` is called with a model's name when its cause is known."""

    def __init__(self, scope: Scope, catalog: Catalog, store: Store, on_change: Callable[[str], None]) -> None:
        self._scope, self._catalog, self._store, self._on_change = scope, catalog, store, on_change
        self._memory = MemoryWatch()
        self._watched: dict[str, str] = {}  # run by model
        self._found: dict[str, asyncio.Future[Cause]] = {}  # by run
        self._saving = asyncio.Semaphore(SAVING)
        self._root = _cgroup_root()

    def close(self) -> None:
        """Stop watching."""
        self._memory.close()

    # While it runs

    def watch(self, name: str, unit: UnitState) -> None:
        """Watch the memory of a model's run, or no longer, as its unit says."""
        before = self._watched.get(name, "")
        if before and (before != unit.invocation_id or not unit.running):
            self.forget(name)
        if unit.running and unit.invocation_id and unit.control_group and self._root:
            self._watched[name] = unit.invocation_id
            self._memory.watch(unit.invocation_id, self._root / unit.control_group.lstrip("/"))

    def forget(self, name: str) -> None:
        """The model's run is over, or the model is gone."""
        self._memory.forget(self._watched.pop(name, ""))

    # When it ended

    async def ended(self, model: Model, unit: UnitState, priority: Priority, at: int = 0) -> None:
        """A run failed: find the cause, and keep it and the run's log. `at`: when, where that is not now."""
        run, ended = unit.invocation_id, unit.state_change or time.time_ns() // 1000
        found = self._future(run)
        async with self._saving:
            # Of one that has failed the manager has a word, to be waited for; of one that has not, it has none.
            read = runlog.read_ended if unit.active_state != "inactive" else runlog.read
            log_ = await read(model.unit, run, unit.exec_main_start, ended)
        cause = await self._explain(model, unit, log_)
        if cause is None:
            return
        model.cause, model.cause_run = cause, run
        if not found.done():
            found.set_result(cause)
        self._on_change(model.name)
        await self._keep(model, cause, run, ended, log_, priority, at)

    async def was_stopped(self, model: Model, unit: UnitState) -> bool:
        """Whether systemd was told to stop the unit's last run, as the journal has it."""
        return (await runlog.read(model.unit, unit.invocation_id, unit.exec_main_start)).stopped

    async def catch_up(self, models: Iterable[tuple[Model, UnitState]]) -> None:
        """Find the causes of failed runs of which the audit log has the end and no cause: a former cortexd did not live to
        find it, or nobody saw that end. `models`: with what their units are like now."""
        past = await histories(self._store, ["cause", *FAILED_ENDS], _UNEXPLAINED)
        for model, unit in models:
            events = past.get(model.name, [])
            known = {event.invocation_id for event in events if event.kind == "cause"}
            for event in events:
                run = event.invocation_id
                if event.priority is Priority.INFO or run in known or run in self._found:
                    continue
                known.add(run)
                if run == unit.invocation_id and event.kind in FAILED_ENDS:
                    await self.ended(model, unit, event.priority, event.time)
                    continue
                async with self._saving:
                    log_ = await runlog.read(model.unit, run, 0, event.time)
                if log_.end and (cause := await self._explain(model, log_.end, log_)):
                    await self._keep(model, cause, run, event.time, log_, event.priority, event.time)

    async def _explain(self, model: Model, unit: UnitState, log_: RunLog) -> Cause | None:
        try:
            return explain(await self._evidence(model, unit, log_))
        except CortexError as e:
            log.warning("%s: why its run failed is not known: %s", model.name, e)
            return None

    async def _keep(
        self, model: Model, cause: Cause, run: str, ended: int, log_: RunLog, priority: Priority, at: int
    ) -> None:
        """Write the run's log and its cause, unless the model was unregistered meanwhile: they would be another's, of its
        name. `at`: the time of that event, where it is not now."""
        event = Event(
            model=model.name, kind="cause", message=cause.sentence, priority=priority, details=cause.details(),
            invocation_id=run, time=at,
        )  # fmt: skip
        try:
            async with self._catalog.locked(model):
                if log_.lines:
                    try:
                        await asyncio.to_thread(runlog.save, self._scope.logs, model.name, run, ended, log_.text)
                    except OSError as e:
                        log.warning("%s: the log of its failed run is not saved: %s", model.name, e)
                await self._store.add_event(event)
        except NoSuchModel:
            return
        except CortexError as e:
            log.error("event %s of %s is lost: %s", event.kind, event.model, e)
        if log_.lost:
            journal.tell(model.unit, run, f"{model.name}: {log_.lost}")

    async def cause_of(self, run: str, seconds: float) -> Cause | None:
        """Why a run failed, as soon as that is known; None if it is not within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self._future(run))
        except TimeoutError:
            return None

    def _future(self, run: str) -> asyncio.Future[Cause]:
        if run not in self._found:
            self._found[run] = asyncio.get_running_loop().create_future()
            while len(self._found) > _REMEMBERED:
                del self._found[next(iter(self._found))]
        return self._found[run]

    async def remember(self, model: Model, run: str) -> None:
        """Take the cause of a run that was found before this daemon began."""
        if cause := _cause_in(await self._history(model, "cause"), run):
            model.cause, model.cause_run = cause, run

    # When somebody asks

    async def why(self, model: Model, unit: UnitState, judgement: Judgement) -> Cause:
        """The cause of the last run's end; or that it runs, was stopped, or never ran."""
        state = judgement.state
        if state not in (State.STOPPED, State.FAILED, State.RESTARTING):
            reason = f": {judgement.reason}" if judgement.reason else ""
            return Cause(cause="running", sentence=f"it is {state}{reason}")
        past = await self._history(model, *_LIFE)
        last = next((event for event in past if event.kind in ("start", "run", REFUSED)), None)
        if last and last.kind == REFUSED:
            sentence, _, remedy = last.message.partition("; ")
            return Cause(cause=REFUSED, sentence=f"its start was refused: {sentence}", remedy=remedy)
        run = unit.invocation_id or next((e.invocation_id for e in past if e.kind in ("run", "cause")), "")
        gave_up = next((event for event in past if event.kind == GAVE_UP), None) if model.gave_up else None
        if gave_up:  # systemd may have begun one more before it was stopped
            run = next((e.invocation_id for e in past[past.index(gave_up) :] if _is_failure(e)), run)
        if not run:
            return Cause(
                cause="never-started",
                sentence="it has never been started",
                remedy=f"'cortexctl start {model.name}' starts it",
            )
        cause = _cause_in(past, run)
        if cause is None and run in self._found:
            cause = await self.cause_of(run, _PENDING_SECONDS)
        if cause is None:
            is_last = run == unit.invocation_id
            log_ = await runlog.read(model.unit, run, unit.exec_main_start if is_last else 0)
            # systemd forgets a unit that nobody needs; the journal may have its last words on it.
            end = unit if is_last else log_.end
            cause = await self._explain(model, end, log_) if end else None
        if cause is None:
            cause = await _from_events(model.name, [event for event in past if event.invocation_id == run])
        if model.gave_up:
            what = str(gave_up.details.get("what") or "") if gave_up else ""
            return given_up(model.name, model.gave_up, what, cause)
        if state is State.RESTARTING:
            return replace(cause, sentence=f"{cause.sentence}; systemd starts it again")
        return cause

    async def _history(self, model: Model, *kinds: str) -> list[Event]:
        """The model's last events of these kinds, newest first."""
        return (await history(self._store, model.name, kinds, _HISTORY))[::-1]

    async def _evidence(self, model: Model, unit: UnitState, log_: RunLog) -> Evidence:
        run = unit.invocation_id
        kinds = ("stop", "stopped", "stop-unclean", "kill", "health-restart", "degraded", "unhealthy")
        told = [event for event in await self._history(model, *kinds) if event.invocation_id == run]
        known = model.ending.run == run and model.ending.by != "gave-up"  # that is no word of how the run itself ended
        ending = model.ending if known else ending_told(told)
        stopped = any(event.kind in ("stopped", "stop-unclean") for event in told)
        asked = [event.actor for event in told if event.kind == "stop"]
        failing = [event for event in told if event.kind in ("health-restart", "degraded", "unhealthy")]
        failing.sort(key=lambda event: event.kind != "health-restart")  # that one has the whole story
        probes = failing[0].message if failing else ""
        if model.health.run == run and model.health.failures and "health-restart" not in {e.kind for e in failing[:1]}:
            probes = f"{model.health.failures} health probes failed in a row, the last: {model.health.reason}"
        lines = lines_of(log_)
        return Evidence(
            spec=model.spec,
            unit=with_status(unit, lines),
            executable=model.plan.argv[0],
            stop_seconds=model.plan.stop_seconds,
            ending=ending,
            stopped_by=asked[0] if asked and (stopped or ending.by == "stop") else "",
            probes=probes.partition("; it is killed")[0],
            memory=self._memory.seen(run),
            lines=lines,
            lost=log_.lost,
        )


def _cause_in(events: list[Event], run: str) -> Cause | None:
    found = (from_details(event.details) for event in events if event.kind == "cause" and event.invocation_id == run)
    return next(filter(None, found), None)


def _is_failure(event: Event) -> bool:
    return event.kind in FAILED_ENDS and event.priority is not Priority.INFO


async def _from_events(name: str, events: list[Event]) -> Cause:
    """What the audit log knows of a run of which systemd and the journal know nothing any more; newest first."""
    remedy = f"'cortexctl start {name}' starts it"
    actor = next((event.actor for event in events if event.kind == "stop"), "")
    for event in events:
        if event.kind in ("stopped", "stop-unclean"):
            return Cause(cause="stopped", sentence=f"it was stopped{f' by {actor}' if actor else ''}", remedy=remedy)
        if event.kind in FAILED_ENDS:
            return Cause(cause="unknown", sentence=event.message, remedy=remedy)
    began = next((event.time for event in events if event.kind == "run"), 0)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began / 1e6))
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    if began < boot * 1e6 or await journal.manager_started(began):
        return Cause(
            cause="machine-down",
            sentence=f"its run of {when} ended with your session or the machine, and it was not started since",
            remedy=f"{remedy}; 'cortexctl enable --linger {name}' starts it at boot",
        )
    sentence = f"its run of {when} is over, and neither systemd nor the journal has a word on how it ended"
    return Cause(
        cause="unknown", sentence=f"{sentence}: as of a server that ends by itself with status 0", remedy=remedy
    )


def _cgroup_root() -> Path | None:
    try:
        return mount_point(Path("/proc/self/mountinfo").read_text())
    except OSError:
        return None
