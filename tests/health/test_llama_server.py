"""A real llama-server: stopped dead, and busy beyond its means."""

from __future__ import annotations

import http.client
import json
import threading
from urllib.parse import urlsplit

from tests.support.cortex import Cortex
from tests.support.units import properties, systemctl
from tests.support.wait import until

QUICK = ["--set", "health.interval_seconds=1", "--set", "health.timeout_seconds=1", "--set", "health.max_failures=2",
         "--set", "RestartSec=0.2"]  # fmt: skip


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


def test_one_that_is_busy_is_left_alone(cortex: Cortex) -> None:
    """Many times more completions than it has slots, and a time for an answer that is short."""
    quick = [*QUICK, "--set", "health.timeout_seconds=0.2"]
    cortex.register_tiny("busy", *quick, "--extra-args", "--threads-http 2 --parallel 2")
    cortex.run("start", "busy")
    run = properties("cortex-busy.service", "InvocationID")["InvocationID"]
    address = urlsplit(cortex.out("url", "busy").strip()).netloc
    over = threading.Event()

    def complete() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection(address, timeout=120)
            try:
                body = json.dumps({"prompt": "a", "n_predict": 4000, "ignore_eos": True})
                connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
                connection.getresponse().read()
            except OSError:
                continue
            finally:
                connection.close()

    clients = [threading.Thread(target=complete) for _ in range(32)]
    for client in clients:
        client.start()
    try:
        # Many times the rounds that would condemn it, whichever of them came too late for an answer.
        first = until(lambda: _history(cortex), "a round")[-1][0]
        until(lambda: all(past[0] > first for past in _history(cortex)[-10:]), "ten more rounds", 60)
        until(lambda: len(_history(cortex)) == 10, "all that is remembered", 60)
    finally:
        over.set()
        for client in clients:
            client.join()
    cortex.until_state("busy", "ready")
    assert properties("cortex-busy.service", "InvocationID", "NRestarts") == {"InvocationID": run, "NRestarts": "0"}
    assert "health-restart" not in {e["Kind"] for e in cortex.json("events", "busy")}


def _history(cortex: Cortex) -> list[list[object]]:
    (found,) = json.loads(cortex.run("health", "busy", "--json", check=False).stdout)
    return list(found["History"])
