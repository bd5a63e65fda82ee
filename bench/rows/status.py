"""What it takes to look: status, is-active."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from bench.measure import Result, in_turns, run, timed
from bench.running_peers import Pm2, Supervisor
from bench.world import World, name

_RUNNING = 100
"""Models that run, at most."""
_MOST_APPS = 100
"""pm2 starts a process for each app that it is told of: a thousand take minutes."""


def measure(world: World) -> Result:
    """Every size of its own, everything in turns."""
    result = Result("Looking: status and is-active, with 1, 100 and 1,000 models")
    middle, many = world.sizes[-2:]
    for size in world.sizes:
        world.models(size, min(size, _RUNNING))
        _at(world, result, size)
    status = f"cortexctl status, {middle} models"
    result.ratio(f"status of {middle} models ÷ bare Python with argparse", status, _bare(middle), 2)
    result.ratio(
        f"status of {middle} models ÷ supervisorctl status", status, f"supervisorctl status, {middle} programs", 0.4
    )
    if not world.short:
        result.growth(
            f"status of {many} models ÷ of {middle}, each in bare Pythons of its own phase",
            (f"cortexctl status, {many} models", _bare(many)), (status, _bare(middle)), 2,
        )  # fmt: skip
    return result


def _at(world: World, result: Result, size: int) -> None:
    commands: dict[str, list[object]] = {
        _bare(size): [world.venv / "python", "-c", "import argparse"],
        f"cortexctl status, {size} models": [world.venv / "cortexctl", "status"],
        f"cortexctl is-active, {size} models": [world.venv / "cortexctl", "is-active", name(0)],
        f"systemctl --user is-active ({size})": ["systemctl", "--user", "is-active", f"cortex-{name(0)}"],
        f"systemctl --user list-units ({size})": ["systemctl", "--user", "list-units", "--all", "cortex-*"],
        f"systemctl --user status ({size})": ["systemctl", "--user", "status", "--all", "cortex-*"],
    }
    programs = {name(i): ["/bin/sleep", "infinity"] for i in range(size)}
    with ExitStack() as peers:
        if problem := world.problems.get("supervisor"):
            result.missing(f"supervisorctl status, {size} programs", problem)
        else:
            supervisor = Supervisor(world)
            supervisor.configure(programs)
            peers.enter_context(supervisor.at_work())
            commands[f"supervisorctl status, {size} programs"] = supervisor.control("status")
        if problem := world.problems.get("pm2"):
            result.missing(f"pm2 list, {size} apps", problem)
        elif size > _MOST_APPS:
            result.missing(f"pm2 list, {size} apps", "not measured: it starts a process for each, which takes minutes")
        else:
            pm2 = Pm2(world)
            peers.enter_context(pm2.at_work(programs))
            commands[f"pm2 list, {size} apps"] = pm2.control("list")
        actions: dict[str, Callable[[], float]] = {
            what: lambda command=command: timed(lambda: run(command, allow=(0, 3)))  # type: ignore[misc]
            for what, command in commands.items()
        }
        for what, values in in_turns(world.runs, actions).items():
            result.add(what, "ms", values, _bare(size))


def _bare(size: int) -> str:
    return f"python -c 'import argparse' ({size})"
