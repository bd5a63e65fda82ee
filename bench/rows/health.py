"""What asking servers for their health costs."""

from __future__ import annotations

import resource
import subprocess
import time
from itertools import pairwise

from bench.measure import Result
from bench.running_peers import Monit
from bench.world import FIRST_PORT, World, cpu, name

_FAST = 3
"""Seconds from one probe to the next where 30 are meant: the CPU time of a round is the same, and ten rounds take no minutes."""


def measure(world: World) -> Result:
    """CPU time of a whole round, everything else that the daemon does meanwhile included."""
    result = Result("CPU time for health checks")
    few, many = world.sizes[-2:]
    world.models(few, few, **_checked(_FAST))
    rounds = _rounds(world.pid(), _FAST, world.runs)
    ours = f"cortexd: {few} models, a round"
    result.add(ours, "ms", rounds)
    share = (result.median(ours) or 0) / 30e3 * 100
    result.add(f"cortexd: {few} models every 30 s", "% of a core", [used / 30e3 * 100 for used in rounds])
    _monit(world, result, few)
    _curl(world, result, few)
    if not world.short:
        result.target(f"{few} models every 30 s: % of a core", share, 0.2)
    world.models(many, many, **_checked(1))
    rounds = _rounds(world.pid(), 1, world.runs)
    what = f"cortexd: {many} models every 1 s"
    result.add(what, "% of a core", [used / 1e3 * 100 for used in rounds])
    if not world.short:
        result.target(f"{many} models every 1 s: % of a core", result.median(what), 30)
    return result


def _checked(interval: float) -> dict[str, object]:
    return {
        "health__enabled": "yes",
        "health__interval_seconds": interval,
        "health__timeout_seconds": min(interval, 10),
    }


def _rounds(pid: int, seconds: float, runs: int) -> list[float]:
    """Milliseconds of CPU time in each of so many rounds; the first two are not counted."""
    time.sleep(2 * seconds)
    marks = [cpu(pid)]
    for _ in range(runs):
        time.sleep(seconds)
        marks.append(cpu(pid))
    return [after - before for before, after in pairwise(marks)]


def _monit(world: World, result: Result, size: int) -> None:
    what = f"monit: {size} HTTP checks, a round"
    if problem := world.problems.get("monit"):
        result.missing(what, problem)
        return
    checks = "\n".join(
        f"check host {name(i)} with address 127.0.0.1\n if failed port {FIRST_PORT + i} protocol http request /health then alert"
        for i in range(size)
    )
    with Monit(world).at_work(checks, every=_FAST) as pid:
        result.add(what, "ms", _rounds(pid, _FAST, world.runs), f"cortexd: {size} models, a round")


def _curl(world: World, result: Result, size: int) -> None:
    values = []
    for _ in range(world.runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for i in range(size):
            url = f"http://127.0.0.1:{FIRST_PORT + i}/health"
            subprocess.run(["curl", "--silent", "--max-time", "5", url], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        values.append(used * 1e3)
    result.add(f"curl in a loop: {size} servers, a round", "ms", values, f"cortexd: {size} models, a round")
