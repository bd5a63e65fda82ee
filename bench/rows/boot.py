"""The daemon's own start."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial

from bench.measure import Result, in_turns, run, timed
from bench.running_peers import Supervisor
from bench.world import FIRST_PORT, World, name

_RUNNING = 200


def measure(world: World) -> Result:
    """cortexd's unit is Type=notify: systemctl returns when it has said READY."""
    result = Result("The daemon's start, to READY")
    most = 1 if world.short else _RUNNING
    for size in (0, *world.sizes[1:]):
        running = min(size, most)
        world.models(size, running)
        ours = f"cortexd, {size} models, {running} running"
        actions: dict[str, Callable[[], float]] = {ours: partial(_restart, world)}
        theirs = f"supervisord, {size} programs, none running"
        if problem := world.problems.get("supervisor"):
            result.missing(theirs, problem)
        else:
            supervisor = Supervisor(world)
            supervisor.configure({name(i): [world.server, "--port", FIRST_PORT + i] for i in range(size)})
            actions[theirs] = partial(_supervisor, supervisor)
        result.missing(f"pm2, {size} apps", "not measured: its daemon is started by its first command, with no app")
        for what, values in in_turns(world.runs, actions).items():
            result.add(what, "ms", values, theirs)
        result.target(f"ms to READY with {size} models", result.median(ours), 500 + 0.5 * size)
    result.notes.append(
        "supervisord starts its programs itself, so that they cannot run before it does: its start is shown without them."
    )
    return result


def _restart(world: World) -> float:
    run(["systemctl", "--user", "stop", "cortexd"])
    return timed(lambda: run(["systemctl", "--user", "start", "cortexd"]))


def _supervisor(supervisor: Supervisor) -> float:
    processes: list[subprocess.Popen[bytes]] = []
    taken = timed(lambda: processes.append(supervisor.start()))
    processes[0].terminate()
    processes[0].wait(timeout=30)
    return taken
