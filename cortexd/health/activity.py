"""How much a server has done: read from its own metrics, and while an answer is overdue, watched."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol

from cortexd.health.policy import Sample
from cortexd.health.probe import Prober, Server

_MAX_METRICS = 4 * 1024 * 1024  # bytes; vLLM's histograms run to some hundred KiB
_CPU_SECONDS = 2.0  # for a small file of the kernel's, or one call to systemd
_LOOKS = 8  # at the metrics, at most, within a probe's time

ReadCpu = Callable[[], Awaitable[int | None]]
"""The CPU time that a run's control group has used, in nanoseconds; None where it cannot be told."""


class Gpu(Protocol):
    """The GPU time that a run has used: `look` brings `total`, in nanoseconds, up to date, and may take a second or two."""

    total: int

    async def look(self) -> None:
        """Have another look."""


def total(text: bytes, names: tuple[str, ...]) -> float | None:
    """The sum of these counters, all label sets of them, in Prometheus' text format; None if there is none of them."""
    found = None
    for name in names:
        pattern = rb"^%s(?:\{[^\n]*\})?[ \t]+([0-9.eE+]+)(?:[ \t]|\r?$)" % re.escape(name.encode())
        for number in re.findall(pattern, text, re.MULTILINE):
            try:
                found = (found or 0.0) + float(number)
            except ValueError:
                continue
    return found


async def work_done(prober: Prober, server: Server, timeout: float) -> float | None:
    """What the server has counted so far; None where it does not say."""
    activity = server.questions.activity
    if activity is None or server.stranger:
        return None
    answer = await prober.ask(server, activity.path, timeout, max_body=_MAX_METRICS)
    return total(answer.body, activity.counters)


class Watch:
    """Takes samples when a quarter of a probe's time is over, so that nothing more is asked of a server that answers soon:
    on some the question itself would count as use. A context manager; `samples` are there at its end. GPU time counts as CPU
    time."""

    def __init__(self, prober: Prober, server: Server, cpu: ReadCpu, timeout: float, gpu: Gpu | None = None) -> None:
        self._prober, self._server, self._cpu, self._timeout, self._gpu = prober, server, cpu, timeout, gpu
        self._task: asyncio.Task[None] | None = None
        self._samples: list[Sample] = []

    @property
    def samples(self) -> tuple[Sample, ...]:
        """In their order."""
        return tuple(self._samples)

    async def __aenter__(self) -> Watch:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + self._timeout
        self._timer = self._loop.call_later(self._timeout / 4, self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if kind is None:
            await self._sample_cpu()

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._look())

    async def _look(self) -> None:
        await self._sample_cpu()
        await asyncio.gather(self._look_at_work(), self._look_at_gpu())

    async def _look_at_gpu(self) -> None:
        while self._gpu is not None:
            await self._gpu.look()
            await asyncio.sleep(self._timeout / _LOOKS)

    async def _look_at_work(self) -> None:
        while self._server.questions.activity is not None and (left := self._end - self._loop.time()) > 0:
            work = await work_done(self._prober, self._server, left)
            if work is not None:
                self._samples.append(Sample(at=self._loop.time(), work=work))
            await asyncio.sleep(self._timeout / _LOOKS)

    async def _sample_cpu(self) -> None:
        try:
            async with asyncio.timeout(_CPU_SECONDS):
                cpu = await self._cpu()
        except TimeoutError:
            return
        if cpu is not None and self._gpu is not None:
            cpu += self._gpu.total
        self._samples.append(Sample(at=self._loop.time(), cpu=cpu))
