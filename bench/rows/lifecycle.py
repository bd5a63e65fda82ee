"""start, stop and restart of a server that is ready at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from bench.measure import Result, in_turns, run, timed
from bench.running_peers import Pm2, Supervisor
from bench.world import FIRST_PORT, World

_VERBS = ("start", "restart", "stop")
_PROGRAM, _SYSTEMCTL, _PLAIN = "cortexctl", "systemctl --user (the same unit)", "systemctl --user (a plain unit)"


def measure(world: World) -> Result:
    """Each of them starts, restarts and stops its own; then the next one."""
    result = Result("start, restart and stop of a server that is ready at once")
    world.reset()
    unit = world.register("quick", 0)
    text = (world.units / unit).read_text()
    world.hand_written("hand.service", "".join(line for line in text.splitlines(keepends=True) if line[0] != "#"))
    world.hand_written("plain.service", f"[Service]\nType=exec\nExecStart={world.server} --port {FIRST_PORT}\n")
    ways: dict[str, Callable[[str], list[object]]] = {
        _PROGRAM: lambda verb: [world.venv / "cortexctl", verb, "quick"],
        _SYSTEMCTL: lambda verb: ["systemctl", "--user", verb, "hand"],
        _PLAIN: lambda verb: ["systemctl", "--user", verb, "plain"],
    }
    command = {"quick": [world.server, "--port", FIRST_PORT]}
    with ExitStack() as peers:
        if problem := world.problems.get("supervisor"):
            result.missing("supervisorctl", problem)
        else:
            supervisor = Supervisor(world)
            supervisor.configure(command)
            peers.enter_context(supervisor.at_work())
            ways["supervisorctl"] = lambda verb: supervisor.control(verb, "quick")
        if problem := world.problems.get("pm2"):
            result.missing("pm2", problem)
        else:
            pm2 = Pm2(world)
            peers.enter_context(pm2.at_work(command))
            ways["pm2"] = lambda verb: pm2.control(verb, "quick")
        actions: dict[str, Callable[[], float]] = {
            f"{way} {verb}": partial(timed, partial(run, line(verb))) for way, line in ways.items() for verb in _VERBS
        }
        actions["one process: python -c 'import argparse'"] = lambda: timed(
            lambda: run([world.venv / "python", "-c", "import argparse"])
        )
        for what, values in in_turns(world.runs, actions).items():
            result.add(what, "ms", values, f"{_SYSTEMCTL} {what.rpartition(' ')[2]}")
    process = result.median("one process: python -c 'import argparse'")
    for verb in _VERBS:
        ours, theirs = result.median(f"{_PROGRAM} {verb}"), result.median(f"{_SYSTEMCTL} {verb}")
        if ours is not None and theirs is not None and process is not None:
            limit = 1.3 * theirs + process
            result.target(f"{verb}: ms, against 1.3 × systemctl {verb} of the same unit + one process", ours, limit)
    result.notes.append(
        "supervisord counts a program as started when it has lived for startsecs, 1 s unless told otherwise; it and pm2 do not "
        "ask whether it answers. The plain unit has no sandbox and no readiness: systemctl returns when it was executed."
    )
    return result
