"""A real llama-server: what is added after its first 200."""

from __future__ import annotations

import http.client
import subprocess
import threading
import time

from bench.measure import Result
from bench.peers import PROJECT
from bench.world import FIRST_PORT, World, shown

_POLL_SECONDS = 0.01


def measure(world: World) -> Result:
    """In each run the hand poller and cortexd watch the same start."""
    result = Result("start to ready of a real llama-server")
    if problem := world.problems.get("llama-server"):
        result.missing("cortexctl start", problem)
        return result
    world.reset()
    server = PROJECT / ".demo" / "llama" / "llama-server"
    unit = world.register("llama", 0, exec=server, max_model_len=256)
    added, returned, polled = [], [], []
    for number in range(world.runs + 1):
        first: list[float] = []
        stop = threading.Event()
        poller = threading.Thread(target=_poll, args=(FIRST_PORT, first, stop))
        poller.start()
        begin = time.monotonic()
        subprocess.run([world.venv / "cortexctl", "start", "llama"], check=True, capture_output=True)
        end = time.monotonic()
        poller.join(5)
        stop.set()
        poller.join()
        ready = int(shown(unit, "ActiveEnterTimestampMonotonic")) / 1e6
        subprocess.run([world.venv / "cortexctl", "stop", "llama"], check=True, capture_output=True)
        if not first:
            raise RuntimeError("the server was ready, and polling by hand saw no 200")
        if number:
            polled.append((first[0] - begin) * 1e3)
            added.append((ready - first[0]) * 1e3)
            returned.append((end - first[0]) * 1e3)
    result.add("start to the first 200, seen by polling every 10 ms", "ms", polled)
    result.add("cortexd: after that, until the unit is active", "ms", added)
    result.add("cortexctl start: after that, until it returns", "ms", returned)
    result.target("ms from the first 200 to ready", result.median("cortexd: after that, until the unit is active"), 100)
    return result


def _poll(port: int, first: list[float], stop: threading.Event) -> None:
    """By hand: ask every 10 ms, and note when the first 200 came."""
    while not stop.wait(_POLL_SECONDS):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            client.request("GET", "/health")
            if client.getresponse().status == 200:
                first.append(time.monotonic())
                return
        except OSError:
            pass
        finally:
            client.close()
