"""The liveness loop: one task for each running model that wants to be watched. Knows probes and decisions, not systemd."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cortexd.health.activity import Gpu, ReadCpu, Watch
from cortexd.health.engine import check_engine
from cortexd.health.policy import HealthState, Round, Verdict, after_round, engine_due
from cortexd.health.probe import Prober, Server
from cortexd.model import HealthPolicy

log = logging.getLogger(__name__)

CONCURRENT = 200
"""Rounds at a time, of at most three connections each: below the usual limit of 1024 open files."""

Report = Callable[[str, HealthState, Verdict], Awaitable[None]]
"""Called with the model's name, its health before a round, and what the round came to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What the loop needs to know of a run of a model, asked anew for every round, since all but the run changes."""

    name: str
    run: str
    current: Callable[[], str]
    """The run that is ready now; empty if there is none."""
    policy: Callable[[], HealthPolicy]
    server: Callable[[], Awaitable[Server]]
    cpu: ReadCpu
    gpu: Gpu | None = None
    grace: float = 0
    """Seconds before the first probe, where nothing told that the server is ready."""
    ready: float | None = None
    """When it became ready, by the loop's clock, which is systemd's (CLOCK_MONOTONIC): what generates is asked for from then
    on, however often its watcher is another one. None where that is not known: from the first round on."""


def suspended() -> float:
    """Seconds that this machine has been suspended since its boot (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


class Monitor:
    """Starts and ends the watching of runs."""

    def __init__(self, prober: Prober, report: Report, suspended: Callable[[], float] = suspended) -> None:
        self._prober, self._report, self._suspended = prober, report, suspended
        self._loops: dict[str, _Loop] = {}
        # The bound is ours, since the time that a probe spends in the connector's queue behind hung servers would
        # count as its own.
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._resumes = 0

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

    def resumed(self) -> None:
        """The machine has slept: what failed before, or fails in a round that is under way, does not count."""
        self._resumes += 1

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
        state = HealthState(run=model.run, suspended=self._suspended(), generated=model.ready)
        resumes = self._resumes
        due = earliest = loop.time() + model.grace
        phase = (zlib.crc32(model.name.encode()) % 1000) / 1000
        while True:
            while not await _sleep_until(due, settings_changed):
                due = max(earliest, min(due, loop.time() + model.policy().interval))
            policy = model.policy()
            late = loop.time() - due
            try:
                async with self._slots:
                    # A round that had to wait for its turn, behind many others, is followed by a whole interval.
                    due = max(due, loop.time() - policy.interval) + policy.interval * (phase or 1)
                    phase = 0
                    found = await self._round(model, policy, state, late, resumes)
                resumes = self._resumes
                before, verdict = state, after_round(state, policy, found)
                state = verdict.state
                await self._report(model.name, before, verdict)
            except Exception:
                log.exception("a round of probes of %s could not be handled", model.name)
            due = max(due, loop.time())

    async def _round(
        self, model: Watched, policy: HealthPolicy, state: HealthState, late: float, resumes: int
    ) -> Round:
        """All that one decision needs, within the time of one probe."""
        began = asyncio.get_running_loop().time()
        server = await model.server()
        engine = None
        async with Watch(self._prober, server, model.cpu, policy.timeout, model.gpu) as watch:
            if engine_due(state, policy, began):
                probe, engine = await asyncio.gather(
                    self._prober.probe(server, policy.timeout),
                    check_engine(self._prober, server, policy.timeout, state.work),
                )
            else:
                probe = await self._prober.probe(server, policy.timeout)
        return Round(
            at=began,
            run=model.current(),
            probe=probe,
            samples=watch.samples,
            engine=engine,
            late=late,
            suspended=self._suspended(),
            resumed=self._resumes > resumes,
            time=time.time_ns() // 1000,
        )


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
