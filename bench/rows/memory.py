"""What the daemon keeps in memory."""

from __future__ import annotations

import time

from bench.measure import Result
from bench.running_peers import Monit, Pm2, Supervisor
from bench.world import World, name, pss

_ROUNDS = 120
"""Of probes in an hour, at the default of one in 30 s."""
_INTERVAL = 0.25
"""Seconds between them here."""


def measure(world: World) -> Result:
    """The proportional set size: what would be free if it were gone, pages that it shares divided by those who share them."""
    result = Result("Memory of the daemon (PSS), idle and after an hour's worth of probes")
    for size in (0, *world.sizes[1:]):
        world.models(size)
        values = []
        for _ in range(world.runs):
            world.restart()
            world.call("ListModels", "asa{sv}", [], {})
            values.append(pss(world.pid()))
        result.add(f"cortexd, {size} models", "MiB", values)
    few, many = world.sizes[-2:]
    if not world.short:
        result.target(f"MiB with {few} models", result.median(f"cortexd, {few} models"), 45)
        result.target(f"MiB with {many} models", result.median(f"cortexd, {many} models"), 60)
    _growth(world, result, few)
    _peers(world, result, few)
    return result


def _growth(world: World, result: Result, size: int) -> None:
    world.models(
        size, size, health__enabled="yes", health__interval_seconds=_INTERVAL, health__timeout_seconds=_INTERVAL
    )
    pid, seen = world.pid(), []
    rounds = _ROUNDS // 10 if world.short else _ROUNDS
    for _ in range(12):
        time.sleep(_INTERVAL * rounds / 12)
        seen.append(pss(pid))
    result.add(f"cortexd, {size} models running and probed, first third of {rounds} rounds", "MiB", seen[:4])
    result.add(f"cortexd, {size} models running and probed, last third of {rounds} rounds", "MiB", seen[-4:])
    result.target(f"MiB of growth in {rounds} rounds of probes, after the first third", seen[-1] - seen[3], 1)


def _peers(world: World, result: Result, size: int) -> None:
    programs = {name(i): ["/bin/sleep", "infinity"] for i in range(size)}
    if problem := world.problems.get("supervisor"):
        result.missing("supervisord", problem)
    else:
        supervisor = Supervisor(world)
        supervisor.configure(programs)
        values = []
        for _ in range(world.runs):
            with supervisor.at_work() as process:
                values.append(pss(process.pid))
        result.add(f"supervisord, {size} programs", "MiB", values)
    if problem := world.problems.get("pm2"):
        result.missing("pm2", problem)
    else:
        with Pm2(world).at_work(programs) as pid:
            result.add(f"pm2's daemon, {size} apps", "MiB", _seen(pid, world.runs))
    if problem := world.problems.get("monit"):
        result.missing("monit", problem)
    else:
        checks = "\n".join(f"check process {each} matching {each}\n if failed port 1 then alert" for each in programs)
        with Monit(world).at_work(checks, every=30) as pid:
            result.add(f"monit, {size} checks", "MiB", _seen(pid, world.runs))


def _seen(pid: int, runs: int) -> list[float]:
    values = []
    for _ in range(runs):
        time.sleep(0.1)
        values.append(pss(pid))
    return values
