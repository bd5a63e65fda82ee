"""What asking servers for their health costs."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.measure import Result
from bench.running_peers import Monit
from bench.world import FIRST_PORT, World, cpu, name
from cortexd.names import model_path

_SLOW, _SHORT = 30, 2
"""Seconds from one probe to the next; in the short form, whose figures say so. A probe that finds the caches cold costs twice one
of a busy daemon: what 30 s cost cannot be told from less."""


def measure(world: World) -> Result:
    """CPU time of a whole round, everything else that the daemon does meanwhile included."""
    result = Result("CPU time for health checks")
    few, many = world.sizes[-2:]
    seconds = _SHORT if world.short else _SLOW
    world.models(few, few, **_checked(seconds))
    rounds = _beside_peers(world, result, few, seconds)
    slow = [used / (seconds * 1e3) * 100 for used in rounds]
    result.add(f"cortexd: {few} models every {seconds} s", "% of a core", slow)
    for number in range(few):
        world.call("SetSecret", "saya{sv}", "LLAMA_API_KEY", b"secret", {}, path=model_path(name(number)))
    keyed = f"cortexd: {few} models, whose servers want a key, a round"
    result.add(keyed, "ms", _rounds([world.pid()], seconds, world.runs)[0], _ours(few))
    world.models(many, many, **_checked(1))
    fast = [used / 1e3 * 100 for used in _rounds([world.pid()], 1, world.runs)[0]]
    result.add(f"cortexd: {many} models every 1 s", "% of a core", fast)
    if not world.short:
        for what, limit in ((f"{few} models every {seconds} s", 0.2), (f"{many} models every 1 s", 30)):
            result.target(f"{what}: % of a core", result.median(f"cortexd: {what}"), limit)
    return result


def _ours(size: int) -> str:
    return f"cortexd: {size} models, a round"


def _checked(interval: float) -> dict[str, object]:
    return {
        "health__enabled": "yes",
        "health__interval_seconds": interval,
        "health__timeout_seconds": min(interval, 10),
    }


def _rounds(
    pids: Sequence[int], seconds: float, runs: int, between: Callable[[], object] = lambda: None
) -> list[list[float]]:
    """Milliseconds of CPU time that each of these has used, in each of so many rounds; the first two are not counted. `between`
    them something else is measured."""
    time.sleep(2 * seconds)
    used: list[list[float]] = [[] for _ in pids]
    for _ in range(runs):
        before = [cpu(pid) for pid in pids]
        time.sleep(seconds)
        for values, pid, then in zip(used, pids, before, strict=True):
            values.append(cpu(pid) - then)
        between()
    return used


def _beside_peers(world: World, result: Result, size: int, seconds: int) -> list[float]:
    """All ask the same servers, monit in the same time, curl in turns with both. Returns our own rounds."""
    curl: list[float] = []
    with ExitStack() as peers:
        pids = [world.pid()]
        what, problem = f"monit: {size} HTTP checks, a round", world.problems.get("monit")
        if not problem:
            checks = "\n".join(
                f"check host {name(i)} with address 127.0.0.1\n"
                f" if failed port {FIRST_PORT + i} protocol http request /health then alert"
                for i in range(size)
            )
            pids.append(peers.enter_context(Monit(world).at_work(checks, every=seconds)))
        rounds = _rounds(pids, seconds, world.runs, lambda: curl.append(_curl(size)))
    result.add(_ours(size), "ms", rounds[0])
    if problem:
        result.missing(what, problem)
    else:
        result.add(what, "ms", rounds[1], _ours(size))
    result.add(f"curl in a loop: {size} servers, a round", "ms", curl, _ours(size))
    return rounds[0]


def _curl(size: int) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for i in range(size):
        url = f"http://127.0.0.1:{FIRST_PORT + i}/health"
        subprocess.run(["curl", "--silent", "--max-time", "5", url], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3
