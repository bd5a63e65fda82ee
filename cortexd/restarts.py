"""Spends the restart budget: when too many runs of a model have failed in a row, its unit is stopped and stays so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cortexd.budget import AT_REST, GAVE_UP, STABLE
from cortexd.catalog import Catalog
from cortexd.errors import CortexError, NoSuchModel
from cortexd.events import Ending, Event, Priority
from cortexd.recorder import Recorder, cancel, spawn
from cortexd.registered import Model
from cortexd.states import describe_end
from cortexd.systemd.protocol import Systemd, UnitState

log = logging.getLogger(__name__)


class Restarts:
    """One per daemon. `on_change` is called with a model's name when it is given up, or counts from the beginning.

    What is counted, and what is done then, happens under the model's lock: a person's start comes before all of it, and
    is what it finds, or after it.
    """

    def __init__(
        self, catalog: Catalog, recorder: Recorder, systemd: Systemd, on_change: Callable[[str], None]
    ) -> None:
        self._catalog, self._recorder, self._systemd, self._on_change = catalog, recorder, systemd, on_change
        self._ripening: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End our own work."""
        for name in list(self._ripening):
            self.forget(name)
        await cancel(self._tasks)

    async def take_over(self, model: Model) -> None:
        """Act on a budget that was spent while nobody lived to act on it."""
        unit, budget = self._systemd.cached(model.unit), model.budget
        if budget.gave_up and not budget.at_rest:
            async with self._catalog.locked(model):
                await self._stop(model, unit)
        elif (unit.n_restarts and unit.sub_state.startswith("auto-restart")) or budget.start_limit:
            await self.failed(model, unit)

    async def failed(self, model: Model, unit: UnitState) -> None:
        """A run has failed, and the event that says so is written."""
        try:
            async with self._catalog.locked(model):
                await self._decide(model, unit)
        except NoSuchModel:
            pass  # unregistered meanwhile

    async def _decide(self, model: Model, unit: UnitState) -> None:
        budget, why = model.budget, describe_end(unit)
        if budget.gave_up or not self._is_its_own(model, unit):
            return
        if budget.spent(model.spec.restart.max_restarts):
            what = f"{budget.failed} runs failed in a row"
        elif budget.start_limit and unit.active_state == "failed":
            what = f"systemd gave up at its own limit of starts, after {budget.failed} failed runs in a row"
        else:
            return
        last = f", the last: {why}" if why else ""
        message = f"{what}{last}; it is restarted no more until it is started by hand or at boot"
        event = Event(
            model=model.name, kind=GAVE_UP, message=message, priority=Priority.ERROR, invocation_id=unit.invocation_id,
            details={"failed": budget.failed, "what": what},
        )  # fmt: skip
        self._recorder.log(event)
        await self._recorder.add(event)
        if self._is_its_own(model, unit):  # still: writing takes a moment
            await self._stop(model, unit)
        self._on_change(model.name)

    def _is_its_own(self, model: Model, failed: UnitState) -> bool:
        """Whether what there is now is the failed run or what systemd made of it, and nothing that a person asked for."""
        now = self._systemd.cached(model.unit)
        if model.ending == Ending(failed.invocation_id, "stop"):
            return False
        return now.invocation_id == failed.invocation_id or 0 < failed.n_restarts <= now.n_restarts

    async def _stop(self, model: Model, unit: UnitState) -> None:
        """Keep systemd from starting it again. Also a run that it has begun meanwhile."""
        now = self._systemd.cached(model.unit)
        if not (now.running or now.job):
            message = "it is stopped and stays so"
            await self._recorder.add(
                Event(model=model.name, kind=AT_REST, message=message, invocation_id=unit.invocation_id)
            )
            return
        model.ending = Ending(now.invocation_id or unit.invocation_id, "gave-up")
        try:
            await self._systemd.stop_unit(model.unit)
        except CortexError as e:
            log.error("%s: it cannot be kept from restarting: %s", model.name, e)

    # Runs that go well

    def follow(self, model: Model, unit: UnitState) -> None:
        """Where there are failures to forget, see whether the run stays ready for `stable_after`: by the clock of systemd and
        the event loop that nobody sets, and that stands still while the machine sleeps (CLOCK_MONOTONIC)."""
        self.forget(model.name)
        if unit.active_state == "active" and (model.budget.failed or unit.n_restarts):
            due = unit.active_enter / 1e6 + model.spec.restart.stable_after
            loop = asyncio.get_running_loop()
            self._ripening[model.name] = loop.call_at(
                due, lambda: spawn(self._tasks, self._stable(model, unit.invocation_id))
            )

    def forget(self, name: str) -> None:
        """Look at the model's run no more."""
        if pending := self._ripening.pop(name, None):
            pending.cancel()

    async def _stable(self, model: Model, run: str) -> None:
        try:
            async with self._catalog.locked(model):
                unit = self._systemd.cached(model.unit)
                if (unit.invocation_id, unit.active_state) != (run, "active"):
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


def stable(model: Model, run: str, time: int = 0) -> Event:
    """The event of a run that has been ready for long enough."""
    seconds = model.spec.restart.stable_after
    message = f"ready for {seconds:g} s: what failed before counts no more"
    return Event(model=model.name, kind=STABLE, message=message, invocation_id=run, time=time)
