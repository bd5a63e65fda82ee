"""Spends the restart budget: when too many runs of a model have failed in a row, its unit is stopped and stays so."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cortexd.budget import AT_REST, GAVE_UP, KINDS, Budget, count
from cortexd.catalog import Catalog
from cortexd.errors import CortexError, NoSuchModel
from cortexd.events import Ending, Event, Priority
from cortexd.history import history
from cortexd.registered import Model
from cortexd.store import Store
from cortexd.systemd.protocol import Systemd, UnitState

log = logging.getLogger(__name__)

_RUN_EVENTS = 4
"""Events that one run leaves at most, of those that are counted."""


class Restarts:
    """One per daemon. `on_change` is called with a model's name when it is given up.

    What is counted, and what is done then, happens under the model's lock: a person's start comes before all of it, and
    is what it finds, or after it.
    """

    def __init__(self, catalog: Catalog, store: Store, systemd: Systemd, on_change: Callable[[str], None]) -> None:
        self._catalog, self._store, self._systemd, self._on_change = catalog, store, systemd, on_change

    async def load(self, model: Model) -> None:
        """Take over where a model stands, from before this daemon began; a budget that was spent while nobody lived to
        act on it is acted on now."""
        async with self._catalog.locked(model):
            unit, budget = self._systemd.cached(model.unit), await self._budget(model)
            model.gave_up = budget.gave_up
            if budget.gave_up and not budget.at_rest:
                await self._stop(model, unit)
            elif unit.n_restarts and unit.sub_state.startswith("auto-restart"):
                await self._decide(model, unit, budget)

    async def failed(self, model: Model, unit: UnitState, why: str) -> None:
        """A run has failed, and the event that says so is written."""
        try:
            async with self._catalog.locked(model):
                await self._decide(model, unit, await self._budget(model), why)
        except NoSuchModel:
            pass  # unregistered meanwhile

    async def _budget(self, model: Model) -> Budget:
        policy = model.spec.restart
        events = await history(self._store, model.name, KINDS, _RUN_EVENTS * (policy.max_restarts + 1))
        return count(events, stable_seconds=policy.stable_after)

    async def _decide(self, model: Model, unit: UnitState, budget: Budget, why: str = "") -> None:
        if budget.gave_up or budget.failed < model.spec.restart.max_restarts or not self._is_its_own(model, unit):
            return
        last = f", the last: {why}" if why else ""
        message = f"{budget.failed} runs failed in a row{last}; it is restarted no more until it is started by hand or at boot"
        log.error("%s: %s", model.name, message)
        event = Event(
            model=model.name, kind=GAVE_UP, message=message, priority=Priority.ERROR, invocation_id=unit.invocation_id,
            details={"failed": budget.failed},
        )  # fmt: skip
        await self._store.add_event(event)
        model.gave_up = message
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
            event = Event(model=model.name, kind=AT_REST, message=message, invocation_id=unit.invocation_id)
            await self._store.add_event(event)
            return
        model.ending = Ending(now.invocation_id or unit.invocation_id, "gave-up")
        try:
            await self._systemd.stop_unit(model.unit)
        except CortexError as e:
            log.error("%s: it cannot be kept from restarting: %s", model.name, e)
