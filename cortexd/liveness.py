"""What probes lead to: the watching of models that are ready, an event for every change, and the end of a run that is dead."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from cortexd import gpus
from cortexd.catalog import Catalog
from cortexd.door import Door
from cortexd.errors import CortexError
from cortexd.events import Ending, Priority
from cortexd.health.monitor import Monitor, Watched
from cortexd.health.policy import Change, Decision, HealthState, Verdict
from cortexd.health.probe import Prober
from cortexd.recorder import Recorder
from cortexd.registered import Model
from cortexd.startup import processes
from cortexd.systemd.protocol import UNKNOWN, Systemd, UnitState
from cortexd.units.files import FileState

log = logging.getLogger(__name__)

_AFTER_SIGKILL = ("always", "on-failure", "on-abnormal", "on-abort")
"""With these systemd starts again what was killed (systemd.service(5), Restart=)."""


class Liveness:
    """One per daemon. `on_change` is called with a model's name whenever its health has changed."""

    def __init__(
        self, catalog: Catalog, systemd: Systemd, prober: Prober, recorder: Recorder, on_change: Callable[[str], None]
    ) -> None:
        self._catalog, self._systemd, self._recorder, self._on_change = catalog, systemd, recorder, on_change
        self._monitor = Monitor(prober, self.judged)
        self.door = Door(catalog.secrets, systemd)
        self.on_round: Callable[[Model], None] = lambda model: None
        """Called after every round of probes, with what the model's health is then."""
        self._gpu_shares = gpus.Shares()

    async def close(self) -> None:
        """Watch no more."""
        await self._monitor.close()
        self._gpu_shares.close()

    def resumed(self) -> None:
        """The machine has slept."""
        self._monitor.resumed()

    def forget(self, name: str) -> None:
        """Watch a model no more."""
        self._monitor.forget(name)

    def watch(self, model: Model, unit: UnitState) -> None:
        """Watch a model that is ready, or no longer, as its settings and its unit say."""
        if model.health.run != unit.invocation_id:
            model.health = HealthState(run=unit.invocation_id)
        if unit.active_state == "active" and model.probed:
            # A unit that is not ours, or that a drop-in changes, may lack the waiter, whose last word is the unit's status: active
            # does not mean ready then.
            waited = model.file_state is FileState.CURRENT and bool(unit.status_text or not unit.drop_in_paths)
            grace = 0.0 if waited else model.spec.health.startup_delay
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
            gpu=gpus.Meter(lambda: processes(self._systemd.cached(model.unit).control_group), self._gpu_shares),
            grace=grace,
            ready=self._systemd.cached(model.unit).active_enter / 1e6 or None,
        )

    async def judged(self, name: str, before: HealthState, verdict: Verdict) -> None:
        """A round of probes came to this; nothing of it holds for a run that is gone."""
        model, after = self._catalog.models.get(name), verdict.state
        if model is None or self._systemd.cached(model.unit).invocation_id != after.run:
            return
        model.health, tell = after, self._recorder.tell
        self.on_round(model)
        for change in verdict.changes:
            if change is Change.DEGRADED:
                tell(model, "degraded", f"health probe failed: {after.reason}", Priority.WARNING)
            elif change is Change.BUSY:
                tell(model, "busy", after.reason)
            elif change is Change.RECOVERED and before.failures:
                probes = f"{before.failures} failed probe{'s' * (before.failures > 1)}"
                tell(model, "recovered", f"healthy again after {probes}")
            elif change is Change.RECOVERED:
                tell(model, "recovered", "answers again, after it was busy")
            elif change is Change.AFRESH:
                message = (
                    "the machine slept, or it or cortexd stood still: failed probes are counted from the beginning"
                )
                tell(model, "health-afresh", message)
            elif change is Change.BLIND:
                message = f"the last {len(after.history)} probes say nothing about it, the last of them: {verdict.void}"
                tell(model, "health-unknown", message, Priority.WARNING)
        if verdict.decision is Decision.RESTART:
            await self.condemn(model, after, first=Change.CONDEMNED in verdict.changes)
        if after != before:
            self._on_change(name)

    async def condemn(self, model: Model, health: HealthState, *, first: bool = True) -> None:
        """End this run, and this run only: systemd's own Restart= starts the next, with its pause and its count.

        SIGKILL, since a hung server would sit out TimeoutStopSec, and since a clean exit on SIGTERM is no failure to
        Restart=on-failure. What a person stopped meanwhile has no such run any more.
        """
        if model.ending.stops(health.run):
            return  # systemd is at it
        what = f"{health.failures} health probes failed in a row, the last: {health.reason}"
        # The unit's word, not the settings': a drop-in of the user's may say otherwise.
        restart = self._systemd.cached(model.unit).restart
        if restart and restart not in _AFTER_SIGKILL:
            if first:
                message = f"{what}; not restarted, since Restart={restart}"
                self._recorder.tell(model, "unhealthy", message, Priority.ERROR)
            return
        if first:
            coming = "its restart budget is spent with that" if model.is_last(health.run) else "systemd starts it again"
            message = f"{what}; it is killed and {coming}"
            # Written first: a cortexd that is killed now leaves word of why the run ended.
            await asyncio.wait([self._recorder.tell(model, "health-restart", message, Priority.ERROR, run=health.run)])
            if model.ending.stops(health.run):
                return
        model.ending = Ending(health.run, "health", signal.SIGKILL, what)
        try:
            if not await self._systemd.kill_run(health.run, signal.SIGKILL):
                log.info("%s: its unhealthy run was over already", model.name)
        except CortexError as e:
            log.error("%s: its unhealthy run could not be ended, which the next probe tries again: %s", model.name, e)
