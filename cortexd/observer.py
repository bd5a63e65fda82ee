"""Watches the models' units: writes what happened to the audit log, keeps failed runs' logs, and acts on bad health."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from cortexd.catalog import Catalog
from cortexd.diagnosis.diagnoser import Diagnoser
from cortexd.door import Door
from cortexd.errors import CortexError
from cortexd.events import Ending, Event, Priority
from cortexd.health.monitor import Monitor, Watched
from cortexd.health.policy import Change, Decision, HealthState, Verdict
from cortexd.health.probe import Prober
from cortexd.history import history
from cortexd.missed import missed_runs
from cortexd.names import model_name
from cortexd.registered import Model, Serving
from cortexd.restarts import Restarts
from cortexd.runs import transitions
from cortexd.scope import Scope
from cortexd.startup import Startups
from cortexd.states import describe_end
from cortexd.store import EventQuery, Store
from cortexd.systemd.protocol import UNKNOWN, Systemd, UnitState
from cortexd.units.files import FileState

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.1
"""How long a unit has to be inactive or failed until that counts as its end."""

_WRITE_SECONDS = 2.0
"""What the end waits for events that are not written yet."""

_LOADS = 5
"""Loads from which the usual time is told."""

_ENDED_BADLY = frozenset({"failed", "ended"})


class Observer:
    """One per daemon. `on_change` is called with a model's name whenever something about it may have changed."""

    def __init__(
        self,
        scope: Scope,
        catalog: Catalog,
        store: Store,
        systemd: Systemd,
        prober: Prober,
        diagnoser: Diagnoser,
        on_change: Callable[[str], None],
    ) -> None:
        self._scope, self._catalog, self._store, self._systemd = scope, catalog, store, systemd
        self._diagnoser, self._on_change = diagnoser, on_change
        self._monitor = Monitor(prober, self._on_probe)
        self._restarts = Restarts(catalog, store, systemd, on_change)
        self._startups = Startups(scope.runtime, systemd.cached)
        self.door = Door(catalog.secrets, systemd)
        self._seen: dict[str, UnitState] = {}
        self._settling: dict[str, asyncio.TimerHandle] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take over the models that run, and listen from now on."""
        found = [(model, self._systemd.cached(model.unit)) for model in self._catalog.models.values()]
        self._seen = {model.name: unit for model, unit in found}
        self._systemd.listen(self._on_unit)  # now: from here on others have their turn
        for event in await missed_runs(found, self._store):
            log.log(_LEVELS[event.priority], "%s: %s", event.model, event.message)
            await self._add(event)
        for model, unit in found:
            now = self._seen.get(model.name, unit)
            if (now.invocation_id, now.active_state) != (unit.invocation_id, unit.active_state):
                pass  # it has changed meanwhile, and that was told
            elif now.running and not now.sub_state.startswith("auto-restart"):
                await self._adopt(model, now)
            elif now.invocation_id:
                await self._catch_up(model, now)
            loads = await history(self._store, model.name, ["ready"], _LOADS)
            model.loads = tuple(float(e.details["seconds"]) for e in loads if "seconds" in e.details)
            await asyncio.gather(*self._writing)
            await self._restarts.load(model)
            self.watch(model)

    async def close(self) -> None:
        """Write the events that are still queued and stop."""
        for pending in self._settling.values():
            pending.cancel()
        await self._monitor.close()
        await self._startups.close()
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=_WRITE_SECONDS)
            if late:
                log.warning("%d events were not written in time", len(late))
        tasks = [*self._tasks, *self._writing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _write(self, event: Event) -> None:
        """Write an event in its turn: the store serves those who wait in their order, us and the use-cases alike."""
        _spawn(self._writing, self._add(event))

    async def _add(self, event: Event) -> None:
        try:
            await self._store.add_event(event)
        except CortexError as e:
            log.error("event %s of %s is lost: %s", event.kind, event.model, e)

    async def _last(self, model: Model, *kinds: str) -> Event | None:
        found = await self._store.events(EventQuery(models=[model.name], kinds=kinds, limit=1))
        return found[0] if found else None

    async def _adopt(self, model: Model, unit: UnitState) -> None:
        """Take over a run; the event of its begin tells what it was started with."""
        run = unit.invocation_id
        known = await self._last(model, "run")
        if known and known.invocation_id == run and {"url", "endpoint", "digest"} <= known.details.keys():
            told = known.details
            model.serving = Serving(run, str(told["url"]), str(told["endpoint"]), str(told["digest"]))
            if not model.outdated:
                model.serving = replace(model.serving, questions=model.definition.questions)
            return
        model.serving = model.definition.serving(run, known=not model.rewritten)
        if not known or known.invocation_id != run:
            message = "run began while cortexd was not there"
            told = _told(model.serving) | {"restart": bool(unit.n_restarts)}
            await self._add(Event(model=model.name, kind="run", message=message, invocation_id=run, details=told))

    async def _catch_up(self, model: Model, unit: UnitState) -> None:
        """Say how a run ended while cortexd was not there. A stop that was asked for ends stopped, also when it took
        SIGKILL and nobody lived to see it."""
        asked, ended = (
            await self._last(model, "stop"),
            await self._last(model, "ended", "failed", "stopped", "stop-unclean"),
        )
        if ended and ended.invocation_id == unit.invocation_id:
            await self._diagnoser.remember(model, unit.invocation_id)
            return
        if asked and asked.invocation_id == unit.invocation_id:
            model.ending = Ending(unit.invocation_id, "stop")
            if unit.active_state == "failed":
                message = f"the stop asked for ended with: {describe_end(unit)}"
                self._tell(model, "stop-unclean", message, Priority.WARNING, run=unit.invocation_id)
                await self._systemd.reset_failed(model.unit)
                return
        self._report(model, replace(unit, active_state="active", sub_state="running"), unit)

    def added(self, model: Model) -> None:
        """A model was registered."""
        self._seen[model.name] = self._systemd.cached(model.unit)

    async def removed(self, name: str) -> None:
        """A model was unregistered: forget it, and the logs of its failed runs."""
        await asyncio.to_thread(shutil.rmtree, self._scope.logs / name, ignore_errors=True)
        self._monitor.forget(name)
        self._startups.forget(name)
        self._diagnoser.forget(name)
        self._seen.pop(name, None)
        if pending := self._settling.pop(name, None):
            pending.cancel()

    def watch(self, model: Model) -> None:
        """Watch a running model's health, or no longer, as its settings and its unit say."""
        unit = self._systemd.cached(model.unit)
        self._diagnoser.watch(model.name, unit)
        self._startups.follow(model.name, unit)
        if not unit.running:
            model.serving = Serving()
        elif model.serving.run != unit.invocation_id:
            model.serving = model.definition.serving(unit.invocation_id)
        if model.health.run != unit.invocation_id:
            model.health = HealthState(run=unit.invocation_id)
        if unit.active_state == "active" and model.spec.health.enabled and model.endpoint:
            # A unit that is not ours may lack the waiter: active does not mean ready then.
            grace = 0.0 if model.file_state is FileState.CURRENT else model.spec.health.startup_delay
            self._monitor.watch(self._watched(model, unit.invocation_id, grace))
        else:
            self._monitor.forget(model.name)
            if unit.active_state == "active":
                model.health = HealthState(run=unit.invocation_id)

    def _watched(self, model: Model, run: str, grace: float) -> Watched:
        def current() -> str:
            unit = self._systemd.cached(model.unit)
            return unit.invocation_id if unit.active_state == "active" else ""

        async def cpu() -> int | None:
            try:
                used = (await self._systemd.usage([model.unit]))[model.unit].cpu_nsec
            except CortexError:
                return None
            return None if used == UNKNOWN else used

        return Watched(
            name=model.name,
            run=run,
            current=current,
            policy=lambda: model.spec.health,
            server=lambda: self.door.server(model),
            cpu=cpu,
            grace=grace,
        )

    def resumed(self) -> None:
        """The machine has slept."""
        self._monitor.resumed()

    def _on_unit(self, unit: str, new: UnitState) -> None:
        name = model_name(unit)
        model = self._catalog.models.get(name) if name else None
        if model is None:
            return
        if pending := self._settling.pop(model.name, None):
            pending.cancel()
        asked = model.ending == Ending(new.invocation_id, "stop") and not new.job
        if new.active_state in ("inactive", "failed") and not asked:
            # On the way to a restart systemd passes through both; what follows comes at once.
            loop = asyncio.get_running_loop()
            self._settling[model.name] = loop.call_later(_SETTLE_SECONDS, self._take, model, new)
        else:
            self._take(model, new)

    def _take(self, model: Model, new: UnitState) -> None:
        """This state will last a while: say what has happened since the last such one."""
        old = self._seen.get(model.name, UnitState(unit=model.unit))
        self._seen[model.name] = new
        self.watch(model)
        self._report(model, old, new)
        self._on_change(model.name)

    def _report(self, model: Model, old: UnitState, new: UnitState) -> None:
        for event in transitions(model.name, old, new, model.ending):
            log.log(_LEVELS[event.priority], "%s: %s", model.name, event.message)
            if event.kind == "run":
                if not event.details["restart"]:
                    model.gave_up = ""  # somebody started it
                event = replace(event, details={**_told(model.serving), **event.details})
            elif event.kind == "ready" and "seconds" in event.details:
                model.loads = (*model.loads, event.details["seconds"])[-_LOADS:]
            if event.kind in _ENDED_BADLY and event.priority is not Priority.INFO:
                if event.invocation_id == new.invocation_id:  # else its end was not seen, nor what it was like
                    _spawn(self._tasks, self._diagnoser.ended(model, new, event.priority))
                _spawn(self._writing, self._failed(model, new, event))
            else:
                self._write(event)

    async def _failed(self, model: Model, unit: UnitState, event: Event) -> None:
        await self._add(event)
        try:
            await self._restarts.failed(model, unit, describe_end(unit))
        except CortexError as e:
            log.error("%s: its restarts cannot be counted: %s", model.name, e)

    async def _on_probe(self, name: str, before: HealthState, verdict: Verdict) -> None:
        model, after = self._catalog.models.get(name), verdict.state
        if model is None or self._systemd.cached(model.unit).invocation_id != after.run:
            return
        model.health = after
        for change in verdict.changes:
            if change is Change.DEGRADED:
                self._tell(model, "degraded", f"health probe failed: {after.reason}", Priority.WARNING)
            elif change is Change.BUSY:
                self._tell(model, "busy", after.reason)
            elif change is Change.RECOVERED and before.failures:
                self._tell(model, "recovered", f"healthy again after {before.failures} failed probes")
            elif change is Change.RECOVERED:
                self._tell(model, "recovered", "answers again, after it was busy")
            elif change is Change.AFRESH:
                message = "the machine slept or stalled: failed probes are counted from the beginning"
                self._tell(model, "health-afresh", message)
        if verdict.decision is Decision.RESTART:
            await self._condemn(model, after, first=Change.CONDEMNED in verdict.changes)
        if after != before:
            self._on_change(name)

    async def _condemn(self, model: Model, health: HealthState, *, first: bool = True) -> None:
        """End this run, and this run only: systemd's own Restart= starts the next, with its pause and its count.

        SIGKILL, since a hung server would sit out TimeoutStopSec, and since a clean exit on SIGTERM is no failure to
        Restart=on-failure. What a person stopped meanwhile has no such run any more.
        """
        what = f"{health.failures} health probes failed in a row, the last: {health.reason}"
        if model.spec.restart.restart == "no":
            if first:
                self._tell(model, "unhealthy", f"{what}; not restarted, since Restart=no", Priority.ERROR)
            return
        if first:
            self._tell(model, "health-restart", f"{what}; it is killed and systemd starts it again", Priority.ERROR)
        model.ending = Ending(health.run, "health", signal.SIGKILL)
        try:
            if not await self._systemd.kill_run(health.run, signal.SIGKILL):
                log.info("%s: its unhealthy run was over already", model.name)
        except CortexError as e:
            log.error("%s: its unhealthy run could not be ended, which the next probe tries again: %s", model.name, e)

    def _tell(
        self, model: Model, kind: str, message: str, priority: Priority = Priority.INFO, run: str | None = None
    ) -> None:
        log.log(_LEVELS[priority], "%s: %s", model.name, message)
        run = model.health.run if run is None else run
        self._write(Event(model=model.name, kind=kind, message=message, priority=priority, invocation_id=run))


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Run it, and keep it from the garbage collector in `tasks` until it ends."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


_LEVELS = {Priority.INFO: logging.INFO, Priority.WARNING: logging.WARNING, Priority.ERROR: logging.ERROR}


def _told(serving: Serving) -> dict[str, Any]:
    return {"url": serving.url, "endpoint": serving.endpoint, "digest": serving.digest}
