"""What the daemon keeps in memory."""

from __future__ import annotations

import time

from bench.measure import Result
from bench.running_peers import Monit, Pm2, Supervisor
from bench.world import World, name, pss
from cortexd.bus import Variant
from cortexd.names import model_path

_ROUNDS = 120
"""Of probes in an hour, at the default of one in 30 s."""
_INTERVAL = 0.25
"""Seconds between them here."""
_PROBED = {"health.enabled": "yes", "health.interval_seconds": _INTERVAL, "health.timeout_seconds": _INTERVAL}


def measure(world: World) -> Result:
    """The proportional set size: what would be free if it were gone, pages that it shares divided by those who share them."""
    result = Result("Memory of the daemon (PSS), idle and after an hour's worth of probes")
    for size in (0, *world.sizes[1:]):
        world.models(size)
        values = []
        for _ in range(world.runs):
            world.restart()
            world.call("ListModels", "asa{sv}", [], {})
            world.settle()
            values.append(pss(world.pid()))
        result.add(f"cortexd, {size} models", "MB", values)
    few, many = world.sizes[-2:]
    if not world.short:
        result.target(f"MB with {few} models", result.median(f"cortexd, {few} models"), 45)
        result.target(f"MB with {many} models", result.median(f"cortexd, {many} models"), 60)
    _growth(world, result, few)
    _peers(world, result, few)
    return result


def _growth(world: World, result: Result, size: int) -> None:
    """All are probed as often as in an hour, in half a minute: before the first probe, in the first rounds and in the last."""
    world.models(size, size)
    world.settle()
    pid = world.pid()
    result.add(f"cortexd, {size} models running, before the first probe", "MB", _seen(pid, world.runs))
    for number in range(size):
        settings = {key: Variant("s", str(value)) for key, value in _PROBED.items()}
        world.call("Set", "a{sv}a{sv}", settings, {}, path=model_path(name(number)))
    rounds = _ROUNDS // 10 if world.short else _ROUNDS
    seen = []
    for _ in range(3 * world.runs):
        time.sleep(_INTERVAL * rounds / (3 * world.runs))
        seen.append(pss(pid))
    first, last = (f"cortexd, the {which} third of {rounds} rounds of {size} probes" for which in ("first", "last"))
    result.add(first, "MB", seen[: world.runs])
    result.add(last, "MB", seen[-world.runs :], first)
    grown = (result.median(last) or 0) - (result.median(first) or 0)
    result.target(f"MB of growth in {rounds} rounds of probes, from the first third to the last", grown, 0.5)


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
        result.add(f"supervisord, {size} programs", "MB", values)
    if problem := world.problems.get("pm2"):
        result.missing("pm2", problem)
    else:
        with Pm2(world).at_work(programs) as pid:
            result.add(f"pm2's daemon, {size} apps", "MB", _seen(pid, world.runs))
    if problem := world.problems.get("monit"):
        result.missing("monit", problem)
    else:
        checks = "\n".join(f"check process {each} matching {each}\n if failed port 1 then alert" for each in programs)
        with Monit(world).at_work(checks, every=30) as pid:
            result.add(f"monit, {size} checks", "MB", _seen(pid, world.runs))


def _seen(pid: int, runs: int) -> list[float]:
    values = []
    for _ in range(runs):
        time.sleep(0.1)
        values.append(pss(pid))
    return values
