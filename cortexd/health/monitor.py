"""The liveness loop: one task for each running model that wants to be watched. Knows probes and decisions, not systemd."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable

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
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}

    def watch(self, model: Watched) -> None:
        """Watch this run from now on; a former run of the same model no longer."""
        running = self._tasks.get(model.name)
        if running is not None and running[0] == model.run and not running[1].done():
            return
        self.forget(model.name)
        self._tasks[model.name] = (model.run, asyncio.get_running_loop().create_task(self._loop(model)))

    def forget(self, name: str) -> None:
        """Stop watching a model."""
        if running := self._tasks.pop(name, None):
            running[1].cancel()

    async def close(self) -> None:
        """Stop watching all."""
        tasks = [task for _, task in self._tasks.values()]
        for name in list(self._tasks):
            self.forget(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _loop(self, model: Watched) -> None:
        """Probe at once, then every `interval`, start to start, in a phase that the name decides, so that many models
        that became ready together are not probed together."""
        loop = asyncio.get_running_loop()
        state = HealthState(run=model.run)
        due = loop.time() + model.grace
        phase = (zlib.crc32(model.name.encode()) % 1000) / 1000
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            policy = model.policy()
            due = max(due + policy.interval * (phase or 1), loop.time())
            phase = 0
            probe: Probe = await self._prober.probe(model.url(), policy.timeout)
            before, (state, decision) = state, after_probe(state, policy, probe)
            try:
                await self._report(model.name, before, state, decision)
            except Exception:
                log.exception("the outcome of a probe of %s could not be handled", model.name)
