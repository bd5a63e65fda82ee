"""Watches the models' units: writes what happened to the audit log, keeps failed runs' logs, and counts what failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cortexd import budget, missed, runlog
from cortexd.budget import Budget
from cortexd.catalog import Catalog
from cortexd.diagnosis.diagnoser import Diagnoser
from cortexd.diagnosis.why import Cause
from cortexd.errors import CortexError
from cortexd.events import Ending, Event, Priority
from cortexd.health.probe import Prober
from cortexd.history import histories
from cortexd.liveness import Liveness
from cortexd.names import model_name
from cortexd.recorder import Recorder, cancel, spawn
from cortexd.registered import Model, Serving
from cortexd.restarts import Restarts, stable
from cortexd.runs import EXITED, GOES_ON, became_ready, ending_told, follow_stop, transitions, unclean, was_an_end
from cortexd.scope import Scope
from cortexd.startup import Startups
from cortexd.states import BY_SYSTEMD, describe_end
from cortexd.store import Store
from cortexd.systemd.protocol import Systemd, UnitState

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.1
"""How long a unit has to be inactive or failed until that counts as its end."""

_LOADS = 5
"""Loads from which the usual time is told."""

_RUN_EVENTS = 4
"""Events that one run leaves at most, of those that the budget is counted from."""

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
        self.recorder = Recorder(store, catalog.count)
        self.liveness = Liveness(catalog, systemd, prober, self.recorder, on_change)
        self._restarts = Restarts(catalog, self.recorder, systemd, on_change)
        self.liveness.on_round = self._restarts.probed
        self._startups = Startups(scope.runtime, systemd.cached)
        self._seen: dict[str, UnitState] = {}
        self._settling: dict[str, tuple[UnitState, asyncio.TimerHandle]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take over the models that run, and listen from now on. What is asked of the audit log is asked of all models at
        once."""
        models = list(self._catalog.models.values())
        known = await histories(self._store, missed.KINDS, missed.LAST, since=["run"])
        await self._remember(models)
        found = [(model, self._systemd.cached(model.unit)) for model in models]
        self._seen = {model.name: unit for model, unit in found}
        self._systemd.listen(self._on_unit)  # now: from here on others have their turn
        past = {name: [*events] for name, events in known.items()}
        for event in await missed.missed_runs(found, known, missed.boot_time()):
            self.recorder.log(event)
            await self.recorder.add(event)
            past[event.model].append(event)
        for model, unit in found:
            now = self._seen.get(model.name, unit)
            if (now.invocation_id, now.active_state) != (unit.invocation_id, unit.active_state):
                pass  # it has changed meanwhile, and that was told
            elif now.running and not now.sub_state.startswith("auto-restart"):
                self._adopt(model, now, known.get(model.name, ()))
            elif now.invocation_id:
                await self._catch_up(model, now, past.get(model.name, ()))
            elif last := missed.rested_by_itself(past.get(model.name, ())):
                _remember_exit(model, replace(last, invocation_id=""))  # systemd has forgotten it, run and all
            self.watch(model)
        await self.recorder.written()
        for model in models:
            await self._restarts.take_over(model, missed.last_run(known.get(model.name, ())))
        spawn(self._tasks, self._diagnoser.catch_up(found))

    async def _remember(self, models: Sequence[Model]) -> None:
        """Take from the audit log what a former daemon knew: failed runs in a row, and how long loads take."""
        most = max((model.spec.restart.max_restarts for model in models), default=0)
        counted = await histories(self._store, budget.KINDS, _RUN_EVENTS * (most + 1), since=budget.ASKED)
        loads = await histories(self._store, ["ready"], _LOADS)
        for model in models:
            model.budget = Budget()
            for event in counted.get(model.name, ()):
                model.budget.add(event)
            told = [event.details.get("seconds") for event in loads.get(model.name, ())]
            model.loads = tuple(float(seconds) for seconds in told if seconds is not None)

    async def close(self) -> None:
        """Write the events that are still queued and stop."""
        for _, pending in self._settling.values():
            pending.cancel()
        await self.liveness.close()
        await self._startups.close()
        await self.recorder.close()
        await self._restarts.close()
        await cancel(self._tasks)

    def _adopt(self, model: Model, unit: UnitState, known: Sequence[Event]) -> None:
        """Take over a run; the event of its begin tells what it was started with."""
        run = unit.invocation_id
        self._adopt_run(model, run, unit, known)
        told = ending_told(event for event in reversed(known) if event.invocation_id == run)
        if told.by != "stop":  # of one that goes on, recovery knows
            model.ending = told
        model.ending = follow_stop(model.ending, unit, unit)
        if unit.active_state == "active" and not any((e.kind, e.invocation_id) == ("ready", run) for e in known):
            self.recorder.write(replace(became_ready(model.name, unit), time=unit.state_change))

    def _adopt_run(self, model: Model, run: str, unit: UnitState, known: Sequence[Event]) -> None:
        last = next((event for event in known if event.kind == "run"), None)
        told: Mapping[str, Any] = last.details if last and last.invocation_id == run else {}
        if {"url", "endpoint", "digest"} <= told.keys():
            model.serving = Serving(run, str(told["url"]), str(told["endpoint"]), str(told["digest"]))
            if not model.outdated:
                model.serving = replace(model.serving, questions=model.definition.questions)
            return
        model.serving = model.serves(run, known=not model.rewritten)
        if last is None or last.invocation_id != run:
            details: dict[str, Any] = {"restart": bool(unit.n_restarts), "n_restarts": unit.n_restarts}
            message = "run began while cortexd was not there"
            details |= _told(model.serving)
            began = unit.exec_main_start
            self.recorder.write(
                Event(model=model.name, kind="run", message=message, invocation_id=run, details=details, time=began)
            )

    async def _catch_up(self, model: Model, unit: UnitState, known: Sequence[Event]) -> None:
        """Say how a run ended while cortexd was not there. A stop that was asked for ends stopped, also when it took
        SIGKILL and nobody lived to see it."""
        run = unit.invocation_id
        kinds = {event.kind: event for event in known if event.invocation_id == run}
        if EXITED in kinds:
            _remember_exit(model, kinds[EXITED])
            return
        over = kinds.keys() & {*_ENDED_BADLY, "stopped", "stop-unclean", budget.AT_REST}
        if over:
            await self._diagnoser.remember(model, run)
            if over != {"ended"} or "stop" in kinds or GOES_ON not in kinds["ended"].details:
                return
        elif "stop" in kinds:
            model.ending = Ending(run, "stop")
            if unit.active_state == "failed":
                message = f"the stop asked for ended with: {describe_end(unit)}"
                self.recorder.tell(model, "stop-unclean", message, Priority.WARNING, run=run)
                await self._systemd.reset_failed(model.unit)
                return
        else:
            model.ending = ending_told(event for event in reversed(known) if event.invocation_id == run)
            if not unit.running and await self._diagnoser.was_stopped(model, unit):
                model.ending = Ending(run, "systemd")
        ready = kinds["ready"].details if "ready" in kinds else {}
        seconds = (unit.active_exit - unit.active_enter) / 1e6
        went_well = ready.get("active_enter") == unit.active_enter and missed.CONDEMNED not in kinds
        if went_well and seconds >= model.spec.restart.stable_after:
            self.recorder.write(stable(model, run, unit.state_change))
        began = kinds["run"].details.get("n_restarts", unit.n_restarts) if "run" in kinds else unit.n_restarts
        before = replace(unit, active_state="active", sub_state="running", n_restarts=began)
        paused = replace(before, active_state="activating", sub_state="auto-restart")
        if over:  # what was told of it is that systemd was to start the next one
            before = paused
        elif unit.active_state == "inactive" and unit.result != "success":  # it was stopped in that pause
            self._report(model, before, paused, unit.state_change)
            before = paused
        if model.gave_up and not unit.running:
            model.ending = Ending(run, "gave-up")
        self._report(model, before, unit, unit.state_change)

    def added(self, model: Model) -> None:
        """A model was registered."""
        self._seen[model.name] = self._systemd.cached(model.unit)

    async def removed(self, name: str) -> None:
        """A model was unregistered: forget it, and the logs of its failed runs."""
        await asyncio.to_thread(runlog.forget, self._scope.logs, name)
        self.liveness.forget(name)
        self._restarts.forget(name)
        self._startups.forget(name)
        self._diagnoser.forget(name)
        self._seen.pop(name, None)
        self._settled(name)

    def watch(self, model: Model) -> None:
        """Watch a running model, or no longer, as its settings and its unit say."""
        unit = self._systemd.cached(model.unit)
        self._diagnoser.watch(model.name, unit)
        self._startups.follow(model.name, unit, model.spec.health.startup_stall)
        if not unit.running:
            model.serving = Serving()
        elif model.serving.run != unit.invocation_id:
            model.serving = model.serves(unit.invocation_id)
        self._restarts.follow(model, unit)
        self.liveness.watch(model, unit)

    def _on_unit(self, unit: str, new: UnitState) -> None:
        name = model_name(unit)
        model = self._catalog.models.get(name) if name else None
        if model is None:
            return
        if (passed := self._settled(model.name)) and was_an_end(passed, new):
            self._take(model, passed)
        asked = model.ending == Ending(new.invocation_id, "stop") and not new.job
        if new.active_state in ("inactive", "failed") and not asked:
            # On the way to a restart systemd passes through both; what follows comes at once.
            timer = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._settle, model)
            self._settling[model.name] = (new, timer)
        else:
            self._take(model, new)

    def _settle(self, model: Model) -> None:
        if state := self._settled(model.name):
            self._take(model, state)

    def _settled(self, name: str) -> UnitState | None:
        """The state that was to last, which waits no longer."""
        state, timer = self._settling.pop(name, (None, None))
        if timer:
            timer.cancel()
        return state

    def _take(self, model: Model, new: UnitState) -> None:
        """This state will last a while: say what has happened since the last such one."""
        self.watch(model)
        if new.sub_state != "start-pre":  # else nothing serves yet, and what comes next tells the run's process, too
            old = self._seen.get(model.name, UnitState(unit=model.unit))
            self._seen[model.name] = new
            if new.sub_state.startswith("auto-restart") and new.invocation_id == old.invocation_id:
                # 252 counts before it has tried, and then its limit may forbid it: what counts is what the run began with.
                self._seen[model.name] = replace(new, n_restarts=old.n_restarts)
            self._report(model, old, new)
        self._on_change(model.name)

    def _report(self, model: Model, old: UnitState, new: UnitState, at: int = 0) -> None:
        """Write what happened between two states; `at`: when, where that is not now."""
        model.ending = follow_stop(model.ending, old, new)
        for event in transitions(model.name, old, new, model.ending, is_last=model.is_last(new.invocation_id)):
            self.recorder.log(event)
            event = replace(event, time=at)
            if event.kind == "run":
                event = replace(event, details={**_told(model.serving), **event.details})
            elif event.kind == "ready" and "seconds" in event.details:
                model.loads = (*model.loads, event.details["seconds"])[-_LOADS:]
            if event.kind in _ENDED_BADLY and event.priority is not Priority.INFO:
                if event.invocation_id == new.invocation_id:  # else its end was not seen, nor what it was like
                    spawn(self._tasks, self._diagnoser.ended(model, new, event.priority, at))
                self.recorder.spawn(self._failed(model, new, event))
            else:
                if event.kind == EXITED:
                    _remember_exit(model, event)
                self.recorder.write(event)
        if new.active_state == "failed" and old.running and model.ending == Ending(new.invocation_id, "systemd"):
            message = f"stopped by systemd ({BY_SYSTEMD}): {unclean(new, model.plan.stop_seconds)}"
            self.recorder.tell(model, "stop-unclean", message, Priority.WARNING, run=new.invocation_id)
            spawn(self._tasks, self._reset_stopped(model, new.invocation_id))

    async def _reset_stopped(self, model: Model, run: str) -> None:
        """What was stopped has not failed, to systemd either, although it had to be killed."""
        unit = self._systemd.cached(model.unit)
        if (unit.invocation_id, unit.active_state, unit.job) != (run, "failed", 0):
            return
        try:
            await self._systemd.reset_failed(model.unit)
            await self._systemd.refresh(model.unit)
        except CortexError as e:
            log.warning("%s: systemd goes on calling it failed: %s", model.name, e)

    async def _failed(self, model: Model, unit: UnitState, event: Event) -> None:
        await self.recorder.add(event)
        await self._restarts.failed(model, unit)
        self._on_change(model.name)


def _remember_exit(model: Model, event: Event) -> None:
    """Have the state tell that its run ended by itself."""
    model.cause, model.cause_run = Cause(cause=EXITED, sentence=event.message), event.invocation_id


def _told(serving: Serving) -> dict[str, Any]:
    return {"url": serving.url, "endpoint": serving.endpoint, "digest": serving.digest}
