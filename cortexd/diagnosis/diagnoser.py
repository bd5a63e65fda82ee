"""Finds out why runs ended: collects the evidence while it is there, keeps the cause as an event, and answers `why`."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal as signals
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cortexd import journal
from cortexd.diagnosis.evidence import Evidence, parse_log
from cortexd.diagnosis.why import Cause, explain, from_details
from cortexd.errors import CortexError
from cortexd.events import REFUSED, Ending, Event, Priority
from cortexd.registered import Model
from cortexd.scope import Scope
from cortexd.states import Judgement, State
from cortexd.store import EventQuery, Store
from cortexd.systemd.cgroup import mount_point
from cortexd.systemd.memory import MemoryWatch
from cortexd.systemd.protocol import Systemd, UnitState

log = logging.getLogger(__name__)

SAVING = 4
"""Failed runs whose logs are read at a time: a hundred may fail together."""

_REMEMBERED = 1024
"""Runs whose cause can still be waited for."""

_PENDING_SECONDS = 2.0
"""What `why` waits for a cause that is being found."""

_HISTORY = 50
"""Events of a model that are looked at for who did what to its last run."""


class Diagnoser:
    """One per daemon. `on_change` is called with a model's name when its cause is known."""

    def __init__(self, scope: Scope, store: Store, systemd: Systemd, on_change: Callable[[str], None]) -> None:
        self._scope, self._store, self._systemd, self._on_change = scope, store, systemd, on_change
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

    async def ended(self, model: Model, unit: UnitState, priority: Priority) -> None:
        """A run failed: keep its log, find the cause, and keep that, too."""
        run = unit.invocation_id
        text = b""
        try:
            async with self._saving:
                path = await journal.save_run(self._scope.logs, model.name, run, unit.exec_main_start)
            text = await asyncio.to_thread(path.read_bytes) if path else b""
        except OSError as e:
            log.warning("%s: the log of its failed run is not saved: %s", model.name, e)
        try:
            cause = explain(await self._evidence(model, unit, text))
        except CortexError as e:
            log.warning("%s: why its run failed is not known: %s", model.name, e)
            return
        model.cause, model.cause_run = cause, run
        found = self._future(run)
        if not found.done():
            found.set_result(cause)
        self._on_change(model.name)
        event = Event(
            model=model.name, kind="cause", message=cause.sentence, priority=priority, details=cause.details(),
            invocation_id=run,
        )  # fmt: skip
        try:
            await self._store.add_event(event)
        except CortexError as e:
            log.error("event %s of %s is lost: %s", event.kind, model.name, e)

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
        history = await self._history(model, "run", "cause", "stop", "stopped", "stop-unclean", "ended", "failed")
        last = await self._history(model, "start", "run", REFUSED)
        if last and last[0].kind == REFUSED:
            sentence, _, remedy = last[0].message.partition("; ")
            return Cause(cause=REFUSED, sentence=f"its start was refused: {sentence}", remedy=remedy)
        run = unit.invocation_id or next((e.invocation_id for e in history if e.kind in ("run", "cause")), "")
        if not run:
            return Cause(
                cause="never-started",
                sentence="it has never been started",
                remedy=f"'cortexctl start {model.name}' starts it",
            )
        cause = _cause_in(history, run)
        if cause is None and run in self._found:
            cause = await self.cause_of(run, _PENDING_SECONDS)
        if cause is None and unit.invocation_id:
            text = await journal.read_run(model.name, run, unit.exec_main_start)
            cause = explain(await self._evidence(model, unit, text))
        if cause is None:
            cause = _from_events(model.name, [event for event in history if event.invocation_id == run])
        if model.gave_up:
            return _given_up(model.gave_up, cause)
        if state is State.RESTARTING:
            return replace(cause, sentence=f"{cause.sentence}; systemd starts it again")
        return cause

    async def _history(self, model: Model, *kinds: str) -> list[Event]:
        """The model's last events of these kinds, newest first; not those of a former model of its name."""
        query = EventQuery(models=[model.name], kinds=[*kinds, "registered"], limit=_HISTORY)
        newest_first = (await self._store.events(query))[::-1]
        return list(itertools.takewhile(lambda event: event.kind != "registered", newest_first))

    async def _evidence(self, model: Model, unit: UnitState, text: bytes) -> Evidence:
        run = unit.invocation_id
        kinds = ("stop", "stopped", "stop-unclean", "kill", "health-restart", "degraded", "unhealthy")
        told = [event for event in await self._history(model, *kinds) if event.invocation_id == run]
        known = model.ending.run == run and model.ending.by != "gave-up"  # that is no word of how the run itself ended
        ending = model.ending if known else _ending(told)
        stopped = any(event.kind in ("stopped", "stop-unclean") for event in told)
        asked = [event.actor for event in told if event.kind == "stop"]
        failing = [event for event in told if event.kind in ("health-restart", "degraded", "unhealthy")]
        failing.sort(key=lambda event: event.kind != "health-restart")  # that one has the whole story
        probes = failing[0].message if failing else ""
        if model.health.run == run and model.health.failures and "health-restart" not in {e.kind for e in failing[:1]}:
            probes = f"{model.health.failures} health probes failed in a row, the last: {model.health.reason}"
        return Evidence(
            spec=model.spec,
            unit=unit,
            executable=model.plan.argv[0],
            stop_seconds=model.plan.stop_seconds,
            ending=ending,
            stopped_by=asked[0] if asked and (stopped or ending.by == "stop") else "",
            probes=probes.partition("; it is killed")[0],
            memory=self._memory.seen(run),
            lines=parse_log(text),
        )


def _given_up(why: str, last: Cause) -> Cause:
    """The cause of a model that failed too often, whose last run failed so: what is known of that one is the better word."""
    times, _, rest = why.partition(", the last: ")
    ends = rest.rpartition("; ")[2] if rest else ""
    if last.cause == "stopped" or not ends:  # what stopped it was cortexd itself
        return replace(last, cause="crash-loop", sentence=why, remedy="'cortexctl events' shows how each run ended")
    vague = last.cause in ("unknown", "crashed", "exited", "killed")
    word = "crash-loop" if vague else last.cause
    return replace(last, cause=word, sentence=f"{times}, the last: {last.sentence}; {ends}")


def _cause_in(events: list[Event], run: str) -> Cause | None:
    found = (from_details(event.details) for event in events if event.kind == "cause" and event.invocation_id == run)
    return next(filter(None, found), None)


def _ending(events: list[Event]) -> Ending:
    """How a former cortexd brought a run to its end, from the events of that run, newest first."""
    for event in events:
        if event.kind == "health-restart":
            return Ending(event.invocation_id, "health", signals.SIGKILL)
        if event.kind == "kill":
            name = event.message.partition(" ")[0]
            return Ending(event.invocation_id, "kill", getattr(signals.Signals.__members__.get(name), "value", 0))
    return Ending()


def _from_events(name: str, events: list[Event]) -> Cause:
    """What the audit log knows of a run of which systemd and the journal know nothing any more; newest first."""
    remedy = f"'cortexctl start {name}' starts it"
    actor = next((event.actor for event in events if event.kind == "stop"), "")
    for event in events:
        if event.kind in ("stopped", "stop-unclean"):
            return Cause(cause="stopped", sentence=f"it was stopped{f' by {actor}' if actor else ''}", remedy=remedy)
        if event.kind in ("ended", "failed"):
            return Cause(cause="unknown", sentence=event.message, remedy=remedy)
    began = next((event.time for event in events if event.kind == "run"), 0)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began / 1e6))
    return Cause(
        cause="machine-down",
        sentence=f"its run of {when} ended with your session or the machine, and it was not started since",
        remedy=f"{remedy}; 'cortexctl enable --linger {name}' starts it at boot",
    )


def _cgroup_root() -> Path | None:
    try:
        return mount_point(Path("/proc/self/mountinfo").read_text())
    except OSError:
        return None
