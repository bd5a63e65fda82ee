"""Spends the restart budget: when too many runs of a model have failed in a row, its unit is stopped and stays so."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cortexd.budget import GAVE_UP, KINDS, Budget, count
from cortexd.errors import CortexError
from cortexd.events import Ending, Event, Priority
from cortexd.registered import Model
from cortexd.store import EventQuery, Store
from cortexd.systemd.protocol import Systemd, UnitState

log = logging.getLogger(__name__)

_RUN_EVENTS = 4
"""Events that one run leaves at most, of those that are counted."""


class Restarts:
    """One per daemon. `on_change` is called with a model's name when it is given up."""

    def __init__(self, store: Store, systemd: Systemd, on_change: Callable[[str], None]) -> None:
        self._store, self._systemd, self._on_change = store, systemd, on_change

    async def load(self, model: Model, unit: UnitState) -> None:
        """Take over where a model stands, from before this daemon began; a budget that was spent while nobody lived to
        act on it is acted on now."""
        budget = await self._budget(model)
        model.gave_up = budget.gave_up
        if unit.running and unit.n_restarts:
            if budget.gave_up:
                await self._stop(model, unit)
            elif unit.sub_state.startswith("auto-restart"):
                await self._decide(model, unit, budget)

    async def failed(self, model: Model, unit: UnitState, why: str) -> None:
        """A run has failed, and the event that says so is written."""
        await self._decide(model, unit, await self._budget(model), why)

    async def _budget(self, model: Model) -> Budget:
        policy = model.spec.restart
        limit = _RUN_EVENTS * (policy.max_restarts + 1)
        events = await self._store.events(EventQuery(models=[model.name], kinds=KINDS, limit=limit))
        registered = await self._store.events(EventQuery(models=[model.name], kinds=["registered"], limit=1))
        since = registered[-1].id if registered else 0  # not those of a former model of its name
        return count((event for event in events if event.id > since), stable_seconds=policy.stable_after)

    async def _decide(self, model: Model, unit: UnitState, budget: Budget, why: str = "") -> None:
        if budget.gave_up or budget.failed < model.spec.restart.max_restarts:
            return
        last = f", the last: {why}" if why else ""
        message = f"{budget.failed} runs failed in a row{last}; it is restarted no more until it is started by hand or at boot"
        log.error("%s: %s", model.name, message)
        run = unit.invocation_id
        event = Event(
            model=model.name, kind=GAVE_UP, message=message, priority=Priority.ERROR, invocation_id=run,
            details={"failed": budget.failed},
        )  # fmt: skip
        await self._store.add_event(event)
        model.gave_up = message
        await self._stop(model, unit)
        self._on_change(model.name)

    async def _stop(self, model: Model, unit: UnitState) -> None:
        """Keep systemd from starting it again. Also a run that it has begun meanwhile."""
        now = self._systemd.cached(model.unit)
        if not (now.running or now.job):
            return
        model.ending = Ending(now.invocation_id or unit.invocation_id, "gave-up")
        try:
            await self._systemd.stop_unit(model.unit)
        except CortexError as e:
            log.error("%s: it cannot be kept from restarting: %s", model.name, e)
