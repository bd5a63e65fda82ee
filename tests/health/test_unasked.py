"""What is our own fault, and what somebody sends to cost us time, harms no model."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cortexd.app import raise_descriptors
from cortexd.backends import BACKENDS
from cortexd.health.monitor import Monitor, Watched
from cortexd.health.policy import (
    HISTORY,
    Change,
    Decision,
    EngineCheck,
    HealthState,
    Outcome,
    Probe,
    Round,
    Verdict,
    after_round,
)
from cortexd.health.probe import Prober, Server
from cortexd.kinds import looks_secret
from cortexd.model import HealthPolicy
from tests.health.servers import says, server
from tests.support.wait import aio_until


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield soft, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_of_our_own_nobody_is_asked(limits: tuple[int, int]) -> None:
    prober = Prober()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            probe = await prober.probe(Server(f"http://127.0.0.1:{listening.getsockname()[1]}", "/health"), 10)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (probe.outcome, probe.reason) == (Outcome.UNASKED, "cortexd could not ask: Too many open files")


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.EADDRNOTAVAIL, Outcome.UNASKED),  # all ports in use
        (errno.ENOBUFS, Outcome.UNASKED),
        (errno.EAGAIN, Outcome.UNASKED),
        (errno.ENETUNREACH, Outcome.REFUSED),
        (errno.EPERM, Outcome.REFUSED),
    ],
)
async def test_what_connect_says_for_want_of_our_own(
    monkeypatch: pytest.MonkeyPatch, number: int, outcome: Outcome
) -> None:
    monkeypatch.setattr("socket.socket.connect_ex", lambda sock, name: number)
    probe = await Prober().probe(Server("http://127.0.0.1:9", "/health"), 10)
    assert probe.outcome is outcome and probe.reason.endswith(os.strerror(number))


async def test_a_stall_of_our_own_is_not_the_servers_time_out() -> None:
    """The server answers in time, and we come back to it long after that. One failure would be enough here."""
    policy, verdicts = HealthPolicy(endpoint="/health", interval=2, timeout=0.2, max_failures=1), []  # type: ignore[var-annotated]
    stalling, answered = threading.Event(), threading.Event()

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            stalling.wait(10)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        answered.set()

    async def report(name: str, before: HealthState, verdict: Verdict) -> None:
        verdicts.append(verdict)

    async def current(listening: socket.socket) -> Server:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, stall)
        return Server(f"http://127.0.0.1:{listening.getsockname()[1]}", "/health")

    def stall() -> None:
        stalling.set()
        answered.wait(10)
        time.sleep(0.2 + 0.6)  # what is tested: our own loop stands still

    async def cpu() -> int | None:
        return None

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        monitor = Monitor(Prober(), report)
        monitor.watch(
            Watched(
                name="a", run="r", current=lambda: "r", policy=lambda: policy, server=lambda: current(listening), cpu=cpu
            )
        )  # fmt: skip
        await aio_until(lambda: bool(verdicts), "a round")
        await monitor.close()
        thread.join()
    (past,) = verdicts[0].state.history
    assert (verdicts[0].decision, past.meaning, past.outcome) == (Decision.NOTHING, "void", Outcome.TIMEOUT)


UNASKED = Probe(outcome=Outcome.UNASKED, reason="cortexd could not ask: Too many open files")


@pytest.mark.parametrize(
    ("probe", "engine"),
    [
        (UNASKED, None),
        (UNASKED, EngineCheck(probe=UNASKED)),
        (Probe(outcome=Outcome.TIMEOUT), EngineCheck(probe=UNASKED)),
    ],
)
def test_a_round_in_which_we_could_not_ask_changes_nothing(probe: Probe, engine: EngineCheck | None) -> None:
    state = HealthState(run="r", probed=True, failures=2, reason="no answer")
    for at in range(20):
        verdict = after_round(state, HealthPolicy(), Round(at=at, run="r", probe=probe, engine=engine))
        assert (verdict.state, verdict.decision) == (state, Decision.NOTHING)
        assert verdict.changes == ((Change.BLIND,) if at == HISTORY - 1 else ()) and verdict.void == UNASKED.reason
        assert verdict.state.history[-1].meaning == "void"
        state = verdict.state


def test_we_take_the_descriptors_that_we_may_have(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[1]), limits[1]))
    raise_descriptors()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])


async def test_a_body_in_crumbs_does_not_keep_us_busy() -> None:
    """As many bytes as metrics may have, each in a chunk of its own."""
    head, body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * (4 << 20)
    async with server(says(head + body)) as found:
        began = time.process_time()
        answer = await Prober().ask(found, "/metrics", 60, max_body=4 << 20)
        assert time.process_time() - began < 1  # all of it would take several
    assert answer.fault is not None and answer.fault.outcome is Outcome.TOO_LONG


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_answer_of_a_server_takes_long_to_judge(backend: str) -> None:
    """64 KiB made of what the pattern looks for, without the end that it wants."""
    parts = (b'"models":}', b'"models":', b'"models" ', b"} ", b'{"status":"ok"', b" ", b'{"models":}')
    began = time.perf_counter()
    for part in parts:
        for end in (b"", b"x", b"}"):
            re.fullmatch(BACKENDS[backend].healthy.encode(), b"{" + part * (65536 // len(part)) + end, re.DOTALL)
    assert time.perf_counter() - began < 0.25


def test_no_value_takes_long_to_be_looked_at_for_a_secret() -> None:
    began = time.perf_counter()
    assert not looks_secret("A", "-eyJ" * 8000)
    assert time.perf_counter() - began < 0.2
