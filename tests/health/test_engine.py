"""What a server has done, by its own count and its CPU time, and whether its engine generates."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from cortexd.backends.base import Activity, EngineProbe
from cortexd.health.activity import Watch, total
from cortexd.health.engine import check_engine
from cortexd.health.policy import EngineCheck, HealthState, Outcome, Round, after_round
from cortexd.health.probe import Prober, Questions
from cortexd.model import HealthPolicy
from tests.health.servers import Talk, server

METRICS = b"""# HELP a:tokens_total Tokens.
# TYPE a:tokens_total counter
a:tokens_total{model="x y",n="1"} 12.0
a:tokens_total{model="z"} 3e1 1700000000000
a:tokens_total_created{model="z"} 1.7e9
b_requests 5\r
c_broken 1.2.3
d_nan NaN
"""


@pytest.mark.parametrize(
    ("names", "sum_of_them"),
    [
        (("a:tokens_total",), 42.0), (("a:tokens_total", "b_requests"), 47.0), (("b_requests", "missing"), 5.0),
        (("missing",), None), (("c_broken",), None), (("d_nan",), None), ((), None), (("a.tokens_total",), None),
    ],
)  # fmt: skip
def test_the_sum_of_counters(names: tuple[str, ...], sum_of_them: float | None) -> None:
    assert total(METRICS, names) == sum_of_them


@pytest.fixture
def prober() -> Prober:
    return Prober()


def routes(asked: list[str], **answers: bytes | Callable[[], bytes] | None) -> Talk:
    """Answers by the path's last word; None never does, and what is not there is 404."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split()
        word = line[1].decode().rpartition("/")[2]
        asked.append(word)
        body = answers.get(word, b"")
        if body is None:
            await asyncio.Event().wait()
        body = body() if callable(body) else body
        status = b"200 OK" if word in answers else b"404 Not Found"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body or b""), body or b""))
        await writer.drain()

    return talk


def counting() -> Callable[[], bytes]:
    numbers = itertools.count()
    return lambda: b"tokens %d\n" % next(numbers)


QUESTIONS = Questions(
    engine=EngineProbe("/generate", "{}", asleep=("/sleeping", r"yes")), activity=Activity("/metrics", ("tokens",))
)


async def check(prober: Prober, talk: Talk, before: float | None = None, timeout: float = 5) -> EngineCheck:
    async with server(talk, QUESTIONS) as found:
        return await check_engine(prober, found, timeout, before)


async def test_one_token_and_the_count_after_it(prober: Prober) -> None:
    asked: list[str] = []
    found = await check(prober, routes(asked, generate=b'{"text":"a"}', metrics=b"tokens 7\n"), 7)
    assert found.probe is not None and found.probe.ok and found.alive and not found.failed
    assert found.work == 7 and asked == ["sleeping", "metrics", "generate", "metrics"]


async def test_what_sleeps_is_asked_nothing_else(prober: Prober) -> None:
    """Not even its metrics."""
    asked: list[str] = []
    found = await check(prober, routes(asked, sleeping=b"yes", generate=b"{}", metrics=b"tokens 9\n"), 7)
    assert (found, asked) == (EngineCheck(asleep=True), ["sleeping"])


async def test_what_has_generated_meanwhile_is_not_asked_to(prober: Prober) -> None:
    asked: list[str] = []
    found = await check(prober, routes(asked, generate=b"{}", metrics=b"tokens 9\n"), 7)
    assert (found, asked) == (EngineCheck(generated=True, work=9), ["sleeping", "metrics"])


@pytest.mark.parametrize(
    ("answers", "outcome", "failed"),
    [
        ({"generate": None}, Outcome.TIMEOUT, True),
        ({"sleeping": None, "generate": b"{}"}, Outcome.TIMEOUT, True),
        ({"generate": b"<html>"}, Outcome.WRONG, True),
        ({"generate": b""}, Outcome.WRONG, True),
        ({}, Outcome.HTTP_ERROR, False),
    ],
)
async def test_no_token(prober: Prober, answers: dict[str, bytes | None], outcome: Outcome, failed: bool) -> None:
    found = await check(prober, routes([], **answers), timeout=0.4)
    assert found.probe is not None and found.probe.latency < 3
    assert (found.probe.outcome, found.failed, found.alive) == (outcome, failed, False)


async def test_a_token_counts_although_the_metrics_never_answer(prober: Prober) -> None:
    found = await check(prober, routes([], generate=b"{}", metrics=None), timeout=0.5)
    assert found.alive and found.work is None


async def test_samples_are_taken_of_what_is_overdue(prober: Prober) -> None:
    used = itertools.count(0, 10)

    async def cpu() -> int | None:
        return next(used)

    asked: list[str] = []
    async with (
        server(routes(asked, health=None, metrics=counting()), QUESTIONS) as found,
        Watch(prober, found, cpu, 1) as watch,
    ):
        assert (await prober.probe(found, 1)).timed_out
    work = [s.work for s in watch.samples if s.work is not None]
    assert len(work) >= 2 and work == sorted(set(work))
    assert [s.cpu for s in watch.samples if s.cpu is not None] == [0, 10]
    assert watch.samples[0].cpu == 0 and watch.samples[-1].cpu == 10


class Gpu:
    """Works, or stands still, from look to look; the first one takes a while, as a program to run does."""

    def __init__(self, step: int) -> None:
        self.total, self.step, self.looks = 0, step, 0

    async def look(self) -> None:
        await asyncio.sleep(0.05)
        self.looks += 1
        self.total += self.step if self.looks > 1 else 0


@pytest.mark.parametrize("step", [0, 10**9])
async def test_gpu_time_is_no_less_an_excuse_than_cpu_time(prober: Prober, step: int) -> None:
    """A server that waits for its GPU asleep: its control group has used no CPU time."""

    async def cpu() -> int | None:
        return 7

    gpu = Gpu(step)
    async with (
        server(routes([], health=None)) as found,
        Watch(prober, found, cpu, 1, gpu) as watch,
    ):
        probe = await prober.probe(found, 1)
    assert gpu.looks >= 2
    state = after_round(
        HealthState(run="r"), HealthPolicy(), Round(at=1, run="r", probe=probe, samples=watch.samples)
    ).state
    assert (state.busy, state.failures) == ((True, 0) if step else (False, 1))


async def test_nothing_more_is_asked_of_what_answers(prober: Prober) -> None:
    async def cpu() -> int | None:
        raise AssertionError("is read")

    asked: list[str] = []
    gpu = Gpu(1)
    async with server(routes(asked, health=b""), QUESTIONS) as found, Watch(prober, found, cpu, 10, gpu) as watch:
        assert (await prober.probe(found, 10)).ok
    assert (asked, watch.samples, gpu.looks) == (["health"], (), 0)


async def test_metrics_and_a_clock_that_never_answer_do_not_hold_the_round(prober: Prober) -> None:
    async def cpu() -> int | None:
        return None

    async with (
        server(routes([], health=None, metrics=None), QUESTIONS) as found,
        asyncio.timeout(10),
        Watch(prober, found, cpu, 0.3) as watch,
    ):
        assert (await prober.probe(found, 0.3)).timed_out
    assert [s.work for s in watch.samples] == [None, None]
