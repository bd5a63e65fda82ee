"""Spends the restart budget: when too many runs of a model have failed in a row, its unit is stopped and stays so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from cortexd.budget import AT_REST, GAVE_UP, STABLE, failed_runs, with_last
from cortexd.catalog import Catalog
from cortexd.errors import CortexError, NoSuchModel
from cortexd.events import Ending, Event, Priority
from cortexd.lifecycle import bringing_to_end
from cortexd.recorder import Recorder, cancel, spawn
from cortexd.registered import Model
from cortexd.systemd.protocol import Systemd, UnitState

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
"""From a stop that systemd did not take to the next try."""


class Restarts:
    """One per daemon. `on_change` is called with a model's name when it is given up, or counts from the beginning.

    What is counted, and what is done then, happens under the model's lock: a person's start comes before all of it, and
    is what it finds, or after it.
    """

    def __init__(
        self, catalog: Catalog, recorder: Recorder, systemd: Systemd, on_change: Callable[[str], None]
    ) -> None:
        self._catalog, self._recorder, self._systemd, self._on_change = catalog, recorder, systemd, on_change
        self._unwell: dict[str, tuple[str, float]] = {}
        """Models' runs that were found not to be well, and when last: seconds of the event loop's clock."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """Of a model that goes well, or of one whose unit could not be stopped."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End our own work."""
        for pending in self._timers.values():
            pending.cancel()
        await cancel(self._tasks)

    def forget(self, name: str) -> None:
        """The model is unregistered."""
        self._unwell.pop(name, None)
        self._cancel(name)

    def _cancel(self, name: str) -> None:
        if pending := self._timers.pop(name, None):
            pending.cancel()

    def _later(self, model: Model, due: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._cancel(model.name)
        loop = asyncio.get_running_loop()
        self._timers[model.name] = loop.call_at(due, lambda: spawn(self._tasks, work()))

    # Runs that fail

    async def take_over(self, model: Model, seen: str) -> None:
        """Act on a budget that was spent while nobody lived to act on it. `seen`: the run that a former daemon saw begin last,
        and let go on."""
        unit = self._systemd.cached(model.unit)
        if unit.active_state == "inactive":
            lets_be = not model.budget.start_limit
        elif unit.active_state == "failed" or unit.sub_state.startswith("auto-restart"):
            lets_be = False
        else:
            lets_be = unit.invocation_id == seen or self._seconds(model, unit) >= _enough(model)
        if model.gave_up or not lets_be:
            await self.failed(model, unit)

    async def failed(self, model: Model, unit: UnitState) -> None:
        """A run has failed, and the event that says so is written."""
        try:
            async with self._catalog.locked(model):
                await self._decide(model, unit)
        except NoSuchModel:
            pass  # unregistered meanwhile

    async def _decide(self, model: Model, unit: UnitState) -> None:
        """What was given up and is not at rest is stopped again: systemd may have refused, or the last daemon have died."""
        budget = model.budget
        if not budget.gave_up and self._is_its_own(model, unit):
            await self._give_up_if_spent(model, unit)
        if budget.gave_up and not budget.at_rest and self._is_its_own(model, unit):  # still: writing takes a moment
            await self._stop(model, unit)

    async def _give_up_if_spent(self, model: Model, unit: UnitState) -> None:
        budget = model.budget
        if budget.spent(model.spec.restart.max_restarts):
            what = failed_runs(budget.failed)
        elif budget.start_limit and not unit.running:
            runs = "1 failed run" if budget.failed == 1 else f"{budget.failed} failed runs in a row"
            what = f"systemd gave up at its own limit of starts, after {runs}"
        else:
            return
        message = f"{with_last(what, budget.why)}; it is restarted no more until it is started by hand or at boot"
        event = Event(
            model=model.name, kind=GAVE_UP, message=message, priority=Priority.ERROR, invocation_id=unit.invocation_id,
            details={"failed": budget.failed, "what": what},
        )  # fmt: skip
        self._recorder.log(event)
        await self._recorder.add(event)
        self._on_change(model.name)

    def _is_its_own(self, model: Model, failed: UnitState) -> bool:
        """Whether what there is now is the failed run or what systemd made of it, and nothing that a person asked for.

        systemd counts its own restarts, but not yet in the pause before one (252), and begins with nothing where it is
        asked for a start. What a person asked for and has failed since is known by its event, which clears the budget.
        """
        now = self._systemd.cached(model.unit)
        if model.ending == Ending(failed.invocation_id, "stop"):
            return False
        if now.invocation_id == failed.invocation_id:
            return failed.running or not now.job  # what is at rest is started by nobody but a person
        return now.n_restarts >= max(failed.n_restarts, 1)

    async def _stop(self, model: Model, unit: UnitState) -> None:
        """Keep systemd from starting it again. Also a run that it has begun meanwhile."""
        now = self._systemd.cached(model.unit)
        if not (now.running or now.job):
            message = "it is stopped and stays so"
            await self._recorder.add(
                Event(model=model.name, kind=AT_REST, message=message, invocation_id=unit.invocation_id)
            )
            return
        ending = Ending(now.invocation_id or unit.invocation_id, "gave-up")
        if model.ending == ending:
            return  # systemd is at it
        try:
            with bringing_to_end(model, ending):
                await self._systemd.stop_unit(model.unit)
        except CortexError as e:
            log.error("%s: it cannot be kept from restarting, which is tried again: %s", model.name, e)
            due = asyncio.get_running_loop().time() + _RETRY_SECONDS
            self._later(model, due, lambda: self.failed(model, unit))

    # Runs that go well

    def follow(self, model: Model, unit: UnitState) -> None:
        """A unit or its settings have changed. Where nobody asks a run whether it is well, it is so while it is active."""
        if model.gave_up:
            return  # it is to be stopped
        self._cancel(model.name)
        if unit.active_state == "active" and not model.probed and self._is_to_clear(model, unit):
            due = self._well_since(model, unit) + _enough(model)
            self._later(model, due, lambda: self._stable(model, unit.invocation_id))

    def probed(self, model: Model) -> None:
        """A round of probes has found what the model's health is now. A run that is probed is stable when it is found well and
        has been for long enough: it is not where time goes by while it hangs, excused for a while."""
        unit, health = self._systemd.cached(model.unit), model.health
        if health.failures or health.excused_since is not None:
            self._unwell[model.name] = (health.run, asyncio.get_running_loop().time())
            return
        answered = health.history and health.history[-1].meaning != "void"
        if answered and self._seconds(model, unit) >= _enough(model) and self._is_to_clear(model, unit):
            spawn(self._tasks, self._stable(model, health.run))

    def _well_since(self, model: Model, unit: UnitState) -> float:
        """Since when it is ready and was not found otherwise: by the clock of systemd and the event loop that nobody sets, and
        that stands still while the machine sleeps (CLOCK_MONOTONIC)."""
        run, found = self._unwell.get(model.name, ("", 0.0))
        began = unit.active_enter / 1e6
        return max(began, found) if run == unit.invocation_id else began

    def _seconds(self, model: Model, unit: UnitState) -> float:
        """For how long it has been well."""
        if unit.active_state != "active":
            return 0.0
        return asyncio.get_running_loop().time() - self._well_since(model, unit)

    def _is_to_clear(self, model: Model, unit: UnitState) -> bool:
        """Whether there are failures to forget."""
        return bool(model.budget.failed or unit.n_restarts) and not model.gave_up

    async def _stable(self, model: Model, run: str) -> None:
        try:
            async with self._catalog.locked(model):
                unit = self._systemd.cached(model.unit)
                if (unit.invocation_id, unit.active_state) != (run, "active") or model.gave_up:
                    return
                if model.budget.failed:
                    await self._recorder.add(stable(model, run))
                if unit.n_restarts:  # systemd's own count, by which the pause before a restart grows
                    await self._systemd.reset_failed(model.unit)
                    await self._systemd.refresh(model.unit)
            self._on_change(model.name)
        except NoSuchModel:
            pass
        except CortexError as e:
            log.warning("%s: systemd goes on counting its restarts: %s", model.name, e)


def _enough(model: Model) -> float:
    return model.spec.restart.stable_after


def stable(model: Model, run: str, time: int = 0) -> Event:
    """The event of a run that has been ready for long enough."""
    seconds = _enough(model)
    message = f"ready for {seconds:g} s: what failed before counts no more"
    return Event(model=model.name, kind=STABLE, message=message, invocation_id=run, time=time)
