"""`make soak MINUTES=5`: thirty models under random kills, hangs and stops, while the daemon itself is killed again and again.

At the end every model is where its policy says, every run that ended has one event that says so, also those that began and ended
while no daemon lived; no model has had more failed runs in a row than its budget allows, and the daemon has not grown.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cortexd.names import model_name, unit_name
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon, _running
from tests.support.units import make_program, systemctl
from tests.support.wait import until

MINUTES = float(os.environ.get("MINUTES", "5"))
MODELS = [f"m{number:02}" for number in range(30)]
FRAIL = MODELS[-6:]
BUDGET = 3
"""Failed runs in a row that those may have; the others may have any number."""
UNSEEN = 2
"""Models that fall while no daemon lives, each time."""
DAEMON_LIVES = 20.0  # seconds
SETTLES = 90.0  # seconds in which all has to be as it should be, once nothing more is done to it
ENDS = 10.0  # seconds in which the events are written
UNITS = [unit_name(name) for name in MODELS]
STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
"""The message id of what systemd says when it begins a run (sd-messages.h)."""
SETTINGS = {
    "health.interval_seconds": 1, "health.timeout_seconds": 1, "health.max_failures": 2, "RestartSec": 0.5,
    "Restart": "always", "StartLimitIntervalSec": 0, "memory": "infinity",
    "health.startup_stall_seconds": 10,
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[Path]:
    """A server of ours, where models see it."""
    folder = Path.home() / "soak"
    folder.mkdir()
    yield make_program(folder / "llama-server")
    shutil.rmtree(folder)


class Counted(Daemon):
    """cortexd that tells its tasks."""

    program = ("-m", "tests.soak.counted")

    def tasks(self) -> int:
        """How many it has now."""
        assert self.process is not None
        told = Path(os.environ["CORTEX_TASKS"])
        told.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        until(told.exists, "the number of tasks")
        return int(told.read_text())


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """In place of the usual one."""
    monkeypatch.setenv("CORTEX_TASKS", str(tmp_path / "tasks"))
    with _running(tmp_path / "cortexd.log", Counted) as daemon:
        yield daemon


def shown(units: list[str]) -> dict[str, dict[str, str]]:
    """What systemd says of them."""
    text = systemctl("show", "--property=Id,ActiveState,SubState,InvocationID,MainPID", *units).stdout
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return {block["Id"]: block for block in blocks}


def size_of(daemon: Daemon) -> dict[str, int]:
    """Tasks, file descriptors, threads and resident KiB of the daemon."""
    assert isinstance(daemon, Counted) and daemon.process is not None
    folder = Path("/proc") / str(daemon.process.pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "tasks": daemon.tasks(),
        "fds": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "rss": int(status["VmRSS"].split()[0]),
    }


class Torment:
    """Does harm. `fallen`: the runs that were ended while no daemon lived."""

    def __init__(self, cortex: Cortex, daemon: Daemon, dice: random.Random) -> None:
        self._cortex, self._daemon, self._dice = cortex, daemon, dice
        self.stopped: set[str] = set()
        self.fallen: list[str] = []

    def go_on(self, seconds: float, *, spare_daemon: bool) -> None:
        """For so long."""
        dice, end, dies = self._dice, time.monotonic() + seconds, time.monotonic() + DAEMON_LIVES
        name = ""
        while time.monotonic() < end:
            if not spare_daemon and time.monotonic() > dies:
                self._daemon.kill()
                self._fell({*FRAIL, *self.stopped, name})  # that one may be about to end
                self._daemon.start()
                dies = time.monotonic() + DAEMON_LIVES
            name = dice.choice(MODELS)
            what = dice.choices(("kill", "hang", "stop", "start", "wait"), (4, 3, 1, 2, 4))[0]
            if what in ("kill", "hang"):
                number = "KILL" if what == "kill" else "STOP"
                systemctl("kill", f"--signal={number}", unit_name(name), check=False)
            elif what == "stop":
                self._cortex.run("stop", name, "--no-block", check=False)
                self.stopped.add(name)
            elif what == "start" and self.stopped:
                name = dice.choice(sorted(self.stopped))
                self._cortex.run("start", name, "--no-block", check=False)
                self.stopped.discard(name)
            time.sleep(dice.uniform(0, 0.3))  # the pace of what goes wrong; nothing is waited for

    def _fell(self, but: set[str]) -> None:
        """End runs, and those that systemd starts in their place: of these nobody sees even the beginning."""
        units = shown([unit_name(name) for name in MODELS if name not in but])
        active = [unit for unit, told in units.items() if told["ActiveState"] == "active" and not hung(told["MainPID"])]
        chosen = self._dice.sample(sorted(active), UNSEEN)
        for _ in range(2):
            runs = {unit: told["InvocationID"] for unit, told in shown(chosen).items()}
            for unit in chosen:
                systemctl("kill", "--signal=KILL", unit)
            self.fallen += runs.values()
            until(partial(renewed, runs), f"the next runs of {chosen}", SETTLES)


def renewed(runs: dict[str, str]) -> bool:
    """Whether each unit has another run than that."""
    found = shown([*runs])
    return all(found[unit]["ActiveState"] == "active" and found[unit]["InvocationID"] != runs[unit] for unit in runs)


def begun_runs(since: float) -> dict[str, str]:
    """The model of every run that began since then, by InvocationID: what the user's manager told the journal."""
    command = [
        "journalctl",
        "--quiet",
        "--output=json",
        f"--since=@{since}",
        f"_UID={os.getuid()}",
        "_SYSTEMD_USER_UNIT=init.scope",
    ]
    lines = subprocess.run([*command, f"MESSAGE_ID={STARTING}"], check=True, capture_output=True, text=True).stdout
    told = map(json.loads, lines.splitlines())
    runs = {line["USER_INVOCATION_ID"]: model_name(line["USER_UNIT"]) for line in told}
    return {run: name for run, name in runs.items() if name}


def ends(events: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """What was told of runs' ends, by InvocationID."""
    found: dict[str, list[str]] = defaultdict(list)
    for event in events:
        # A stop in the pause after a run is no end of that run.
        in_the_pause = "while it waited for its next start" in event["Message"]
        if event["Kind"] in ("ended", "failed", "exited", "stopped", "stop-unclean") and not in_the_pause:
            found[event["InvocationID"]].append(f"{event['Kind']}: {event['Message']}")
    return found


def wrong_ends(cortex: Cortex, began: float) -> dict[str, list[str]]:
    """The runs that are over of which not one end is told, and those that are not and one is; what is told of them."""
    told, running = (
        ends(all_events(cortex)),
        {unit["InvocationID"] for unit in shown(UNITS).values() if unit["MainPID"] != "0"},
    )
    wanted = {run: int(run not in running) for run in begun_runs(began)}
    return {run: told.get(run, []) for run, number in wanted.items() if len(told.get(run, [])) != number}


def all_events(cortex: Cortex) -> list[dict[str, Any]]:
    """Oldest first."""
    return list(cortex.json("events", "-n", "10000"))


def overspent(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The most failed runs in a row that were seen of each frail model, where those are too many. What fails while no daemon lives,
    nobody can keep from being started again."""
    row: dict[str, set[str]] = defaultdict(set)
    most: dict[str, int] = defaultdict(int)
    for event in events:
        name = event["Model"]
        if event["Kind"] in ("start", "restart", "reset-failed", "stable"):
            row[name].clear()
        elif (
            event["Kind"] in ("ended", "failed")
            and event["Priority"] != "info"
            and "unobserved" not in event["Message"]
        ):
            row[name].add(event["InvocationID"])
            most[name] = max(most[name], len(row[name]))
    return {name: number for name, number in most.items() if name in FRAIL and number > BUDGET}


def test_soak(daemon: Daemon, cortex: Cortex, server: Path) -> None:
    seed = int(os.environ.get("SEED", str(random.randrange(10**6))))
    print(f"SEED={seed}")
    began = time.time()
    for name in MODELS:
        settings = {**SETTINGS, "max_restarts": BUDGET if name in FRAIL else 1000}
        cortex.run(
            "register", name, "--path", str(lab.TINY_GGUF), "--backend", "llamacpp", "--exec", str(server), "--gpus", "none",
            "--port", "auto", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
        )  # fmt: skip
    cortex.run("start", *MODELS)
    torment = Torment(cortex, daemon, random.Random(seed))
    torment.go_on(MINUTES * 60 * 0.7, spare_daemon=False)
    spend(torment)
    until(
        lambda: not astray(cortex, torment.stopped),
        lambda: f"as it should be: {astray(cortex, torment.stopped)}",
        SETTLES,
    )
    given_up = {event["Model"] for event in all_events(cortex) if event["Kind"] == "gave-up"}
    assert given_up and given_up <= {*FRAIL}
    for name in {*torment.stopped, *FRAIL}:
        cortex.run("start", name, "--no-block", check=False)
    torment.stopped.clear()
    until(
        lambda: not astray(cortex, set(), given_up=False),
        lambda: f"ready: {astray(cortex, set(), given_up=False)}",
        SETTLES,
    )
    before = size_of(daemon)
    torment.go_on(MINUTES * 60 * 0.3, spare_daemon=True)
    until(
        lambda: not astray(cortex, torment.stopped),
        lambda: f"as it should be: {astray(cortex, torment.stopped)}",
        SETTLES,
    )
    after = size_of(daemon)
    print(f"before {before}, after {after}")
    until(lambda: not wrong_ends(cortex, began), lambda: f"one end of each run: {wrong_ends(cortex, began)}", ENDS)
    events = all_events(cortex)
    told = ends(events)
    unobserved = [run for run in torment.fallen if any("while unobserved" in end for end in told[run])]
    print(
        f"{len(begun_runs(began))} runs, {len(told)} ends, {len(torment.fallen)} unobserved; {len(given_up)} given up first"
    )
    assert len(told) > len(MODELS), "something was done"
    assert torment.fallen and set(unobserved) == {*torment.fallen}
    assert overspent(events) == {}
    # A round of probes that is under way is a task or three of its model's.
    assert after["tasks"] <= before["tasks"] + 10
    assert after["fds"] <= before["fds"] + 5 and after["threads"] <= before["threads"] + 4
    assert after["rss"] <= before["rss"] * 1.15


def spend(torment: Torment) -> None:
    """See to it that at least one budget is spent, whatever the dice said."""
    unit = unit_name(next(name for name in FRAIL if name not in torment.stopped))

    def at_rest() -> bool:
        told = shown([unit])[unit]
        if told["ActiveState"] == "active":
            systemctl("kill", "--signal=KILL", unit, check=False)
        return told["ActiveState"] in ("inactive", "failed")

    until(at_rest, f"the end of {unit}'s budget", SETTLES, poll=0.2)


def astray(cortex: Cortex, stopped: set[str], *, given_up: bool = True) -> dict[str, str]:
    """The models that are not ready, stopped where that is asked for, or `given_up` where they may be; in cortexd's words and in
    systemd's."""
    models = {info["Name"]: info for info in cortex.json("list")}
    units = shown(UNITS)
    found = {}
    for name in MODELS:
        state, unit = models[name]["State"], units[unit_name(name)]
        wanted = [("stopped", "inactive")] if name in stopped else [("ready", "active")]
        if name in FRAIL and given_up:
            wanted += [("failed", "inactive"), ("failed", "failed")]
        if (state, unit["ActiveState"]) not in wanted or hung(unit["MainPID"]):
            found[name] = f"{state} {models[name]['StateReason']} ({unit['ActiveState']} {unit['SubState']})"
    return found


def hung(pid: str) -> bool:
    """Whether a process was stopped by a signal and goes on being so."""
    try:
        return "T (stopped)" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
