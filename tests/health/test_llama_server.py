"""A real llama-server: stopped dead, and busy beyond its means."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon, _running
from tests.support.units import properties, systemctl
from tests.support.wait import until

QUICK = ["--set", "health.interval_seconds=1", "--set", "health.timeout_seconds=1", "--set", "health.max_failures=2",
         "--set", "RestartSec=0.2"]  # fmt: skip

CLIENTS = 400


def test_one_that_is_stopped_is_restarted(cortex: Cortex) -> None:
    cortex.register_tiny("stopped", *QUICK)
    cortex.run("start", "stopped")
    unit = "cortex-stopped.service"
    run = properties(unit, "InvocationID")["InvocationID"]
    systemctl("kill", "--signal=STOP", unit)
    until(lambda: properties(unit, "InvocationID")["InvocationID"] != run, "the next run", 40)
    cortex.until_state("stopped", "ready")
    told = {e["Kind"]: e for e in cortex.json("events", "stopped") if e["InvocationID"] == run}
    assert "the last: no answer within 1 s" in told["health-restart"]["Message"]
    assert properties(unit, "NRestarts")["NRestarts"] == "1"


IMPATIENT = """
import asyncio
from cortexd.app import main
from cortexd.health.probe import Prober

in_time = Prober.probe

async def probe(self, server, timeout):
    found = await in_time(self, server, 0.004)
    if found.outcome.value == "time-out":
        await asyncio.sleep(timeout)
    return found

Prober.probe = probe
main()
"""
"""llama-server has a thread for health however busy it is, and is never late by more than milliseconds: for this daemon 4 of
them are too long. What excuses it is looked at for as long as ever."""


class Impatient(Daemon):
    """A daemon whose probes time out soon."""

    program = ("-c", IMPATIENT)


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Cortex]:
    with _running(tmp_path / "cortexd.log", Impatient):
        yield Cortex()


def test_one_that_is_busy_is_left_alone(impatient: Cortex) -> None:
    """Many times more completions than it has slots and threads, and a time for an answer that is too short: probes do time
    out, and that is excused, over many more rounds than would condemn it."""
    cortex = impatient
    cortex.register_tiny("busy", *QUICK, "--extra-args", "--threads-http 2 --parallel 2")
    cortex.run("start", "busy")
    run = properties("cortex-busy.service", "InvocationID")["InvocationID"]
    address = urlsplit(cortex.out("url", "busy").strip()).netloc
    # It has a thread for each of some hundred requests, which wait for its two slots; what comes after them waits for a thread.
    clients = [_completion(address) for _ in range(CLIENTS)]
    try:
        late = until(lambda: _excused(cortex, run), "a probe that got no answer in time", 60)
        # More in the last ten rounds than would condemn it.
        until(lambda: _times_out(_history(cortex)) >= 5, "time-outs that are excused", 60)
    finally:
        for client in clients:
            client.close()
    cortex.until_state("busy", "ready")
    assert properties("cortex-busy.service", "InvocationID", "NRestarts") == {"InvocationID": run, "NRestarts": "0"}
    assert late and "no answer within 0.004 s, but" in late[0]["Message"]
    assert not {"health-restart", "ended", "failed"} & {e["Kind"] for e in cortex.json("events", "busy")}


def _completion(address: str) -> socket.socket:
    """Ask for a long one, and wait for nothing."""
    host, _, port = address.rpartition(":")
    client = socket.create_connection((host, int(port)))
    body = json.dumps({"prompt": "a", "n_predict": 4000, "ignore_eos": True})
    head = (
        f"POST /completion HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    client.sendall(f"{head}\r\n\r\n{body}".encode())
    return client


def _times_out(history: list[list[object]]) -> int:
    return [(past[2], past[4]) for past in history].count(("time-out", "busy"))


def _excused(cortex: Cortex, run: str) -> list[dict[str, str]]:
    return [e for e in cortex.json("events", "busy", "--kind", "busy") if e["InvocationID"] == run]


def _history(cortex: Cortex) -> list[list[object]]:
    (found,) = json.loads(cortex.run("health", "busy", "--json", check=False).stdout)
    return list(found["History"])
