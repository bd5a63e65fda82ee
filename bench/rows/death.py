"""How long a dead server stays down, and a hung one unnoticed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack

from bench.measure import Result, run
from bench.running_peers import Monit
from bench.world import FIRST_PORT, World, name, shown, until
from cortexd.names import unit_name

_RESTART_SECONDS = 1.0


def measure_death(world: World) -> Result:
    """By systemd's own clock: from the main process's end to the job that starts it again."""
    result = Result("From a server's death to its restart job (RestartSec=1)")
    # Each dies once: pauses grow with every failure in a row, and cortexd gives up after some.
    count = world.runs
    world.models(count, count, RestartSec=_RESTART_SECONDS)
    world.hand_written(
        "hand.service",
        f"[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=exec\nExecStart={world.server} --port {FIRST_PORT + count}\n"
        f"Restart=always\nRestartSec={_RESTART_SECONDS:g}\n",
    )
    run(["systemctl", "--user", "start", "hand.service"])
    ours, by_hand = [], []
    for i in range(count):
        ours.append(_restart_after_death(unit_name(name(i))))
        by_hand.append(_restart_after_death("hand.service"))
    run(["systemctl", "--user", "stop", "hand.service"])
    theirs = "systemd's own Restart=, a unit by hand"
    result.add("cortexd: death to restart job", "ms", ours, theirs)
    result.add(theirs, "ms", by_hand)
    limit = _RESTART_SECONDS * 1e3 * 1.02
    result.target("ms from death to restart job", result.median("cortexd: death to restart job"), limit)
    return result


def _restart_after_death(unit: str) -> float:
    before = shown(unit, "InvocationID")
    pid = int(shown(unit, "MainPID"))
    dead = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    until(lambda: shown(unit, "ActiveState") == "active" and shown(unit, "InvocationID") != before, f"{unit} again")
    begun = int(shown(unit, "InactiveExitTimestampMonotonic")) / 1e6
    return (begun - dead) * 1e3


def measure_hang(world: World) -> Result:
    """Each model is stopped in mid-life (SIGSTOP), all at the same moment, each in a phase of its own."""
    result = Result("From a hang to the act (a probe a second, 3 failures, 1 s of time-out)")
    interval, failures, timeout = 1.0, 3, 1.0
    count = world.runs
    world.models(
        count, count, health__enabled="yes", health__interval_seconds=interval, health__max_failures=failures,
        health__timeout_seconds=timeout,
    )  # fmt: skip
    time.sleep(2 * interval)
    hung = time.time()
    for i in range(count):
        os.kill(int(shown(f"cortex-{name(i)}", "MainPID")), signal.SIGSTOP)
    acts: dict[str, float] = {}

    def all_seen() -> bool:
        (events,) = world.call("ListEvents", "asa{sv}", [], {})
        acts.update((e["Model"], e["Time"] / 1e6) for e in events if e["Kind"] == "health-restart")
        return len(acts) == count

    until(all_seen, "cortexd to act", every=0.1)
    values = [(acts[name(i)] - hung) * 1e3 for i in range(count)]
    result.add("cortexd: hang to act", "ms", values)
    least = (interval * failures + timeout) * 1e3
    result.add("interval × max_failures + timeout, the least for a hang right after a probe", "ms", [least])
    result.target("ms from a hang to the act, the slowest of all", max(values), least * 1.02)
    _monit(world, result)
    return result


def _monit(world: World, result: Result) -> None:
    """A monit for each server: one alone asks them one after the other."""
    what = "monit: hang to act"
    if problem := world.problems.get("monit"):
        result.missing(what, problem)
        return
    count = world.runs
    names = [f"n{i}" for i in range(count)]
    world.reset()
    world.register_all(names)
    world.start(names)
    monit = Monit(world)
    with ExitStack() as peers:
        for i, each in enumerate(names):
            check = (
                f"check host {each} with address 127.0.0.1\n if failed port {FIRST_PORT + i} protocol http request /health "
                f'with timeout 1 seconds for 3 cycles then exec "/usr/bin/touch {world.work}/{each}.acted"'
            )
            peers.enter_context(monit.at_work(check, every=1, name=f"monit-{each}"))
        time.sleep(2)
        hung = time.time()
        for each in names:
            os.kill(int(shown(f"cortex-{each}", "MainPID")), signal.SIGSTOP)
        acted = [world.work / f"{each}.acted" for each in names]
        until(lambda: all(path.exists() for path in acted), "monit to act", every=0.05)
        values = [(path.stat().st_mtime - hung) * 1e3 for path in acted]
        for path in acted:
            path.unlink()
    result.add(what, "ms", values, "cortexd: hang to act")
