"""`make soak MINUTES=5`: thirty models under random kills, hangs and stops, while the daemon itself is killed again and again.

At the end every model is where its policy says, every run that ended has its event, and the daemon has not grown.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortexd import journal
from cortexd.journal import What
from cortexd.names import model_name, unit_name
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon, _running
from tests.support.units import make_program, systemctl
from tests.support.wait import until

MINUTES = float(os.environ.get("MINUTES", "5"))
MODELS = [f"m{number:02}" for number in range(30)]
DAEMON_LIVES = 20.0  # seconds
SETTLES = 90.0  # seconds in which all has to be as it should be, once nothing more is done to it
SETTINGS = {
    "health.interval_seconds": 1, "health.timeout_seconds": 1, "health.max_failures": 2, "RestartSec": 0.5,
    "Restart": "always", "max_restarts": 1000, "StartLimitIntervalSec": 0, "memory": "infinity",
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


def torment(cortex: Cortex, daemon: Daemon, dice: random.Random, seconds: float, *, spare_daemon: bool) -> set[str]:
    """Do harm for so long; returns the models that are to be stopped at the end."""
    stopped: set[str] = set()
    end, dies = time.monotonic() + seconds, time.monotonic() + DAEMON_LIVES
    while time.monotonic() < end:
        name = dice.choice(MODELS)
        what = dice.choices(("kill", "hang", "stop", "start", "wait"), (4, 3, 1, 2, 4))[0]
        if what in ("kill", "hang"):
            number = "KILL" if what == "kill" else "STOP"
            systemctl("kill", f"--signal={number}", unit_name(name), check=False)
        elif what == "stop":
            cortex.run("stop", name, "--no-block", check=False)
            stopped.add(name)
        elif what == "start" and stopped:
            name = dice.choice(sorted(stopped))
            cortex.run("start", name, "--no-block", check=False)
            stopped.discard(name)
        if not spare_daemon and time.monotonic() > dies:
            daemon.kill()
            daemon.start()
            dies = time.monotonic() + DAEMON_LIVES
        time.sleep(dice.uniform(0, 0.3))  # the pace of what goes wrong; nothing is waited for
    return stopped


def ended_runs(since: float) -> dict[str, set[str]]:
    """Every run that ended, by model, from the journal: systemd's own record."""
    found: dict[str, set[str]] = defaultdict(set)
    for entry in asyncio.run(journal.runs(int(since * 1e6))):
        name = model_name(entry.unit)
        if name and entry.what in (What.FAILED, What.AGAIN, What.STOPPED):
            found[name].add(entry.run)
    return found


def test_soak(daemon: Daemon, cortex: Cortex, server: Path) -> None:
    seed = int(os.environ.get("SEED", str(random.randrange(10**6))))
    print(f"SEED={seed}")
    dice, began = random.Random(seed), time.time()
    more = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    for name in MODELS:
        cortex.run(
            "register", name, "--path", str(lab.TINY_GGUF), "--backend", "llamacpp", "--exec", str(server), "--gpus", "none",
            "--port", "auto", *more,
        )  # fmt: skip
    cortex.run("start", *MODELS)
    stopped = torment(cortex, daemon, dice, MINUTES * 60 * 0.7, spare_daemon=False)
    for name in stopped:
        cortex.run("start", name, "--no-block", check=False)
    until(lambda: not astray(cortex, set()), lambda: f"ready: {astray(cortex, set())}", SETTLES)
    before = size_of(daemon)
    stopped = torment(cortex, daemon, dice, MINUTES * 60 * 0.3, spare_daemon=True)
    until(lambda: not astray(cortex, stopped), lambda: f"ready, or stopped: {astray(cortex, stopped)}", SETTLES)
    after = size_of(daemon)
    print(f"before {before}, after {after}")
    told: dict[str, set[str]] = defaultdict(set)
    for event in cortex.json("events", "-n", "10000"):
        if event["Kind"] in ("ended", "failed", "stopped", "stop-unclean"):
            told[event["Model"]].add(event["InvocationID"])
    ended = ended_runs(began)
    untold = {name: runs - told[name] for name, runs in ended.items() if runs - told[name]}
    print(f"{sum(map(len, ended.values()))} runs ended")
    assert len(ended) > len(MODELS) / 2, "the journal tells of what was done"
    assert not untold, "every run that ended has its event"
    # A round of probes that is under way is a task or three of its model's.
    assert after["tasks"] <= before["tasks"] + 10
    assert after["fds"] <= before["fds"] + 5 and after["threads"] <= before["threads"] + 4
    assert after["rss"] <= before["rss"] * 1.15


def astray(cortex: Cortex, stopped: set[str]) -> dict[str, str]:
    """The models that are not ready, or stopped where that is asked for, in cortexd's words and in systemd's."""
    models = {info["Name"]: info for info in cortex.json("list")}
    units = shown([unit_name(name) for name in MODELS])
    found = {}
    for name in MODELS:
        state, unit = models[name]["State"], units[unit_name(name)]
        wanted = ("stopped", "inactive") if name in stopped else ("ready", "active")
        if (state, unit["ActiveState"]) != wanted or hung(unit["MainPID"]):
            found[name] = f"{state} {models[name]['StateReason']} ({unit['ActiveState']} {unit['SubState']})"
    return found


def hung(pid: str) -> bool:
    """Whether a process was stopped by a signal and goes on being so."""
    try:
        return "T (stopped)" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
