"""Liveness: what outcomes mean, what a probe makes of servers of every kind, and when the loop probes."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd.health.monitor import Monitor, Watched
from cortexd.health.policy import Decision, HealthState, Outcome, Probe, after_probe
from cortexd.health.probe import Prober
from cortexd.model import HealthPolicy
from tests.support.wait import aio_until

OK = Probe(outcome=Outcome.OK)
BAD = Probe(outcome=Outcome.REFUSED, reason="no connection: refused")

# -- The policy


@given(outcomes=st.lists(st.sampled_from(Outcome), max_size=60), limit=st.integers(1, 6))
@settings(deadline=None, database=None)
def test_a_run_is_condemned_after_enough_failures_in_a_row(outcomes: list[Outcome], limit: int) -> None:
    policy = HealthPolicy(endpoint="/health", max_failures=limit)
    state = HealthState(run="r")
    for number, outcome in enumerate(outcomes):
        state, decision = after_probe(state, policy, Probe(outcome=outcome, reason=f"reason {number}"))
        in_a_row = 0
        while in_a_row <= number and outcomes[number - in_a_row] is not Outcome.OK:
            in_a_row += 1
        assert (state.run, state.probed, state.failures) == ("r", True, in_a_row)
        assert state.reason == (f"reason {number}" if in_a_row else "")
        # And again by each one after them: should the run live on, it has not been ended.
        assert decision is (Decision.RESTART if in_a_row >= limit else Decision.NOTHING)


def test_a_limit_that_is_lowered_counts_at_once() -> None:
    policy = HealthPolicy(endpoint="/health", max_failures=5)
    state, decision = after_probe(HealthState(run="r", failures=3), replace(policy, max_failures=2), BAD)
    assert (state.failures, decision) == (4, Decision.RESTART)


# -- The prober

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    prober = Prober()
    yield prober
    await prober.close()


@asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[str]:
    """A server on a port of its own; yields its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/health"
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        await listener.wait_closed()


def says(answer: bytes, *, then_wait: bool = False) -> Talk:
    """A server that reads the request, says this, and closes (or does not)."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if then_wait:
            await asyncio.Event().wait()

    return talk


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Outcome.OK, ""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Outcome.OK, ""),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", Outcome.OK, ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Outcome.OK, ""),
        # What it says is nobody's business: neither too much of it nor nonsense in it.
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", Outcome.OK, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(1 << 22)), Outcome.OK, ""),
        (b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 503"),
        (b"HTTP/1.1 500 Dead\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 500"),
        (b"HTTP/1.1 401 Who\r\nWWW-Authenticate: Basic\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 401"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 404"),
        (b"HTTP/1.1 302 Found\r\nLocation: /ok\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 302"),
        (b"HTTP/1.1 307 T\r\nLocation: http://example.org/\r\n\r\n", Outcome.HTTP_ERROR, "the endpoint answers 307"),
        (b"", Outcome.BROKEN, "the answer is broken: ServerDisconnectedError"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Outcome.BROKEN, "the answer is broken: "),
        (b"\0\xff\r\n\r\n" * 10, Outcome.BROKEN, "the answer is broken: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok", Outcome.BROKEN, "the answer is broken: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok", Outcome.BROKEN, "the answer is broken: "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Outcome.BROKEN, "the answer is broken: "),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n", Outcome.BROKEN, "the answer is broken: "),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65_537, Outcome.BROKEN, "the answer is longer than 64 KiB"),
    ],
)
async def test_what_a_server_says(prober: Prober, answer: bytes, outcome: Outcome, reason: str) -> None:
    async with server(says(answer)) as url:
        probe = await prober.probe(url, 10)
    assert (probe.outcome, probe.ok) == (outcome, outcome is Outcome.OK), probe.reason
    assert probe.reason.startswith(reason) and (not reason) == (not probe.reason)
    assert 0 < probe.latency < 10


async def test_a_redirect_is_not_followed(prober: Prober) -> None:
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")

    async with server(talk) as url:
        assert not (await prober.probe(url, 10)).ok
    assert asked == [b"GET /health HTTP/1.1\r\n"]


async def test_nothing_of_ours_is_told_or_kept(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cookie comes back, no proxy is used, and each probe has a connection of its own."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    requests: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        requests.append(await reader.read(100))  # a kept connection would hang here

    async with server(talk) as url:
        for _ in range(2):
            assert (await prober.probe(url, 10)).ok
        await aio_until(lambda: len(requests) == 4, "both ends")
    assert [r for r in requests if not r] == [b"", b""]
    assert b"Cookie" not in b"".join(requests)


async def test_nobody_listens(prober: Prober) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        probe = await prober.probe(f"http://127.0.0.1:{sock.getsockname()[1]}/health", 10)
    assert (probe.outcome, probe.reason) == (Outcome.REFUSED, "no connection: Connection refused")


@pytest.mark.parametrize("url", ["http://[::1/", "http://256.1.1.1:80/x", "http://127.0.0.1:99999/", "ftp://a/", "/x"])
async def test_a_url_that_is_none_is_an_outcome(prober: Prober, url: str) -> None:
    probe = await prober.probe(url, 10)
    assert not probe.ok and probe.reason


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _drip_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(10**6):
        writer.write(b"A%d: b\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.02)


async def _continue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "talk", [_drip, _drip_headers, _continue, _silent, says(b"HTTP/1.1 200 OK\r\n", then_wait=True)]
)
async def test_a_server_that_never_ends_its_answer(prober: Prober, talk: Talk) -> None:
    async with server(talk) as url:
        probe = await prober.probe(url, 0.3)
    assert (probe.outcome, probe.reason) == (Outcome.TIMEOUT, "no answer within 0.3 s")
    assert 0.25 < probe.latency < 5


async def test_an_endless_body_is_not_read_to_its_end(prober: Prober) -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with server(talk) as url:
        probe = await prober.probe(url, 10)
    assert probe.outcome is Outcome.BROKEN
    assert sent < 32 << 20


async def test_hung_servers_do_not_use_up_the_time_of_others() -> None:
    """More hang than are probed at a time: a healthy one has to wait, but its own time begins with its probe."""
    prober = Prober(concurrent=4)
    async with server(_silent) as hung, server(says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as healthy:
        waiting = [asyncio.create_task(prober.probe(hung, 0.3)) for _ in range(8)]
        await asyncio.sleep(0)
        probe = await prober.probe(healthy, 0.2)
        assert probe.ok, probe.reason
        assert {p.outcome for p in await asyncio.gather(*waiting)} == {Outcome.TIMEOUT}
    await prober.close()


async def test_a_cancelled_probe_gives_its_place_back() -> None:
    prober = Prober(concurrent=1)
    async with server(_silent) as hung, server(says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as healthy:
        task = asyncio.create_task(prober.probe(hung, 60))
        await asyncio.sleep(0)
        task.cancel()
        assert (await prober.probe(healthy, 10)).ok
    await prober.close()


# -- The loop


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time runs as fast as nothing happens."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        selector = self._selector  # type: ignore[attr-defined]
        really = selector.select

        def select(timeout: float | None = None) -> object:
            if timeout:
                self._now += timeout
            return really(0 if timeout is not None else None)

        selector.select = select

    def time(self) -> float:
        return self._now


class Scripted(Prober):
    """Answers from a script, after a while, and notes when it was asked."""

    def __init__(self, *script: Probe, takes: float = 0) -> None:
        self.script, self.takes, self.asked = [*script], takes, []  # type: tuple[list[Probe], float, list[tuple[float, str]]]

    async def probe(self, url: str, timeout: float) -> Probe:
        self.asked.append((asyncio.get_running_loop().time(), url))
        await asyncio.sleep(self.takes)
        return self.script.pop(0) if self.script else OK

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.asked]


class Reports:
    """What the loop reported."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.all: list[tuple[str, HealthState, Decision]] = []

    async def __call__(self, name: str, before: HealthState, after: HealthState, decision: Decision) -> None:
        self.all.append((name, after, decision))
        if self.fails:
            raise RuntimeError("a bug")


POLICY = HealthPolicy(endpoint="/health", interval=30, timeout=10)


def watched(name: str = "a", run: str = "r1", policy: HealthPolicy = POLICY, grace: float = 0) -> Watched:
    return Watched(name, run, lambda: policy, lambda: f"http://{name}/", grace)


def in_fast_time(story: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine in a loop whose clock does not wait."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(story())  # type: ignore[arg-type]


def gaps(times: list[float]) -> list[float]:
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


@pytest.mark.parametrize(("takes", "gap"), [(0, 30), (9, 30), (29.5, 30), (40, 40)])
def test_probes_come_every_interval_start_to_start_and_never_two_at_once(takes: float, gap: float) -> None:
    async def story() -> None:
        prober = Scripted(takes=takes)
        monitor = Monitor(prober, Reports())
        monitor.watch(watched())
        await asyncio.sleep(300)
        await monitor.close()
        found = gaps(prober.times)
        assert min(found) >= min(takes, gap * 0.9)  # at first on the way into the model's own phase
        assert len(found) >= 6 and set(found[-1:] if takes == 29.5 else found[1:]) == {gap}

    in_fast_time(story)


def test_models_started_together_are_probed_at_once_and_then_apart() -> None:
    async def story() -> None:
        prober = Scripted()
        monitor = Monitor(prober, Reports())
        for number in range(100):
            monitor.watch(watched(f"model-{number}"))
        await asyncio.sleep(0.01)
        assert len(prober.asked) == 100
        await asyncio.sleep(30)
        later = sorted(prober.times)[100:]
        assert len(later) == 100
        assert max(gaps(later)) < 5 and later[0] < 1005 and later[-1] > 1025
        await monitor.close()

        again = Scripted()
        monitor = Monitor(again, Reports())
        monitor.watch(watched("model-7"))
        await asyncio.sleep(31)
        await monitor.close()
        of_7 = [at for at, url in prober.asked if url == "http://model-7/"]
        assert gaps(again.times) == gaps(of_7)  # the phase is the name's

    in_fast_time(story)


def test_the_first_probe_waits_where_nothing_told_readiness() -> None:
    async def story() -> None:
        prober = Scripted()
        monitor = Monitor(prober, Reports())
        monitor.watch(watched(grace=60))
        await asyncio.sleep(59.9)
        assert prober.asked == []
        await asyncio.sleep(0.2)
        assert prober.times == [1060]
        await monitor.close()

    in_fast_time(story)


def test_failures_are_counted_and_reported_in_order() -> None:
    async def story() -> None:
        reports = Reports()
        monitor = Monitor(Scripted(BAD, OK, BAD, BAD, BAD, BAD, OK), reports)
        monitor.watch(watched(policy=replace(POLICY, max_failures=3)))
        await asyncio.sleep(30 * 6 + 29)
        await monitor.close()
        assert [after.failures for _, after, _ in reports.all][:7] == [1, 0, 1, 2, 3, 4, 0]
        assert [n for n, (_, _, decision) in enumerate(reports.all) if decision is Decision.RESTART] == [4, 5]
        assert {after.run for _, after, _ in reports.all} == {"r1"}

    in_fast_time(story)


def test_a_new_run_begins_anew_and_the_same_run_goes_on() -> None:
    async def story() -> None:
        reports, prober = Reports(), Scripted(*[BAD] * 6)
        monitor = Monitor(prober, reports)
        monitor.watch(watched(run="r1"))
        await asyncio.sleep(40)
        monitor.watch(watched(run="r1"))  # nothing new
        await asyncio.sleep(20)
        monitor.watch(watched(run="r2"))
        await asyncio.sleep(0.1)
        seen = [(after.run, after.failures) for _, after, _ in reports.all]
        assert seen == [("r1", 1), ("r1", 2), ("r1", 3), ("r2", 1)]
        monitor.forget("a")
        monitor.forget("a")
        asked = len(prober.asked)
        await asyncio.sleep(300)
        assert len(prober.asked) == asked
        await monitor.close()

    in_fast_time(story)


def test_forgetting_ends_a_probe_under_way() -> None:
    async def story() -> None:
        reports, prober = Reports(), Scripted(BAD, takes=1000)
        monitor = Monitor(prober, reports)
        monitor.watch(watched())
        await asyncio.sleep(1)
        assert len(prober.asked) == 1
        monitor.forget("a")
        await asyncio.sleep(2000)
        assert reports.all == [] and len(asyncio.all_tasks()) == 1
        await monitor.close()

    in_fast_time(story)


def test_changed_settings_count_at_once() -> None:
    async def story() -> None:
        policy = replace(POLICY, interval=1000)
        prober = Scripted()
        monitor = Monitor(prober, Reports())
        model = Watched("a", "r1", lambda: policy, lambda: "http://a/")
        monitor.watch(model)
        await asyncio.sleep(1500)
        asked = len(prober.asked)
        policy = replace(POLICY, interval=5)
        monitor.watch(model)
        await asyncio.sleep(60)
        shorter = prober.times[asked:]
        assert 11 <= len(shorter) <= 12 and set(gaps(shorter)) == {5}
        policy = replace(POLICY, interval=1000)
        monitor.watch(model)
        await asyncio.sleep(2000)
        assert gaps(prober.times)[-1] == 1000  # the one that was due came, and then the longer pause
        await monitor.close()

    in_fast_time(story)


def test_a_report_that_fails_does_not_end_the_watching(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        reports = Reports(fails=True)
        monitor = Monitor(Scripted(), reports)
        monitor.watch(watched())
        await asyncio.sleep(90)
        await monitor.close()
        assert len(reports.all) >= 2

    in_fast_time(story)
    assert "a probe of a could not be handled" in caplog.text


def test_a_run_that_is_ended_by_its_own_report() -> None:
    """Killing a run changes its unit, and that ends the watching from within the report."""

    async def story() -> None:
        told: list[Decision] = []

        async def report(name: str, before: HealthState, after: HealthState, decision: Decision) -> None:
            if decision is Decision.RESTART:
                monitor.forget(name)
            told.append(decision)

        monitor = Monitor(Scripted(BAD, BAD), report)
        monitor.watch(watched(policy=replace(POLICY, max_failures=2)))
        await asyncio.sleep(300)
        assert told == [Decision.NOTHING, Decision.RESTART]
        await monitor.close()

    in_fast_time(story)
