"""The liveness loop: one task for each running model that wants to be watched. Knows probes and decisions, not systemd."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cortexd.health.policy import Decision, HealthState, Probe, after_probe
from cortexd.health.probe import Prober
from cortexd.model import HealthPolicy

log = logging.getLogger(__name__)

Report = Callable[[str, HealthState, HealthState, Decision], Awaitable[None]]
"""Called with the model's name, its health before and after a probe, and what was decided."""


class Watched:
    """What the loop needs to know of a model, asked anew before every probe, since settings change."""

    def __init__(
        self, name: str, run: str, policy: Callable[[], HealthPolicy], url: Callable[[], str], grace: float = 0
    ) -> None:
        self.name, self.run, self.policy, self.url = name, run, policy, url
        self.grace = grace
        """Seconds before the first probe, where nothing told that the server is ready."""


class Monitor:
    """Starts and ends the watching of runs."""

    def __init__(self, prober: Prober, report: Report) -> None:
        self._prober, self._report = prober, report
        self._loops: dict[str, _Loop] = {}

    def watch(self, model: Watched) -> None:
        """Watch this run from now on, with the settings as they are now; a former run of the same model no longer."""
        current = self._loops.get(model.name)
        if current is not None and current.model.run == model.run and not current.task.done():
            current.settings_changed.set()
            return
        self.forget(model.name)
        changed = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._run(model, changed))
        self._loops[model.name] = _Loop(model, changed, task)

    def forget(self, name: str) -> None:
        """Stop watching a model."""
        if current := self._loops.pop(name, None):
            current.task.cancel()

    async def close(self) -> None:
        """Stop watching all."""
        tasks = [current.task for current in self._loops.values()]
        for name in list(self._loops):
            self.forget(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, model: Watched, settings_changed: asyncio.Event) -> None:
        """Probe at once, then every `interval`, start to start, in a phase that the name decides, so that many models
        that became ready together are not probed together."""
        loop = asyncio.get_running_loop()
        state = HealthState(run=model.run)
        due = loop.time() + model.grace
        phase = (zlib.crc32(model.name.encode()) % 1000) / 1000
        while True:
            while not await _sleep_until(due, settings_changed):
                due = min(due, loop.time() + model.policy().interval)
            policy = model.policy()
            due = max(due + policy.interval * (phase or 1), loop.time())
            phase = 0
            probe: Probe = await self._prober.probe(model.url(), policy.timeout)
            before, (state, decision) = state, after_probe(state, policy, probe)
            try:
                await self._report(model.name, before, state, decision)
            except Exception:
                log.exception("the outcome of a probe of %s could not be handled", model.name)


@dataclass(frozen=True, slots=True)
class _Loop:
    model: Watched
    settings_changed: asyncio.Event
    task: asyncio.Task[None]


async def _sleep_until(when: float, interrupted: asyncio.Event) -> bool:
    """Sleep until the loop's time is `when`; False if `interrupted` was set before."""
    try:
        async with asyncio.timeout_at(when):
            await interrupted.wait()
    except TimeoutError:
        return True
    interrupted.clear()
    return False
