"""The restart budget on a real systemd: crash loops end, through reloads and the daemon's death; what nobody saw is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program, systemctl
from tests.support.wait import until


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not under /tmp, which the servers see an empty one of."""
    path = Path.home() / "restarts"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def register(cortex: Cortex, name: str, folder: Path, *fake: str, **settings: object) -> None:
    """A fake server of ours; systemd's own limit is out of the way."""
    server = make_program(folder / "llama-server")
    given = {"RestartSec": 0.1, "StartLimitBurst": 1000, "max_restarts": 4, **settings}
    cortex.run(
        "register", name, "--path", str(lab.TINY_GGUF), "--backend", "llamacpp", "--exec", str(server), "--gpus", "none",
        "--port", "auto", "--memory", "infinity", f"--extra-args={' '.join(fake)}",
        *(word for key, value in given.items() for word in ("--set", f"{key}={value}")),
    )  # fmt: skip


def events(cortex: Cortex, name: str, *kinds: str) -> list[dict[str, Any]]:
    found = cortex.json("events", name, "-n", "500")
    return [event for event in found if event["Kind"] in kinds]


def test_a_crash_loop_ends_at_its_budget_whatever_is_reloaded(daemon: Daemon, cortex: Cortex, folder: Path) -> None:
    register(cortex, "loop", folder, "--fake-exit", "3")
    cortex.run("start", "loop", "--no-block")

    def over() -> bool:
        systemctl("daemon-reload")  # zeroes systemd's own count
        return cortex.properties("loop")["State"] == "failed"

    until(over, "the end of the loop", 60)
    assert len(events(cortex, "loop", "run")) == len(events(cortex, "loop", "ended", "failed")) == 4
    (gave_up,) = events(cortex, "loop", "gave-up")
    assert gave_up["Message"].startswith("4 runs failed in a row, the last: the server exited with status 3")
    assert systemctl("is-active", "cortex-loop.service", check=False).stdout == "inactive\n"
    assert cortex.out("is-failed", "loop") == "failed\n"
    daemon.kill()
    daemon.start()
    assert cortex.properties("loop")["StateReason"] == gave_up["Message"]
    assert len(events(cortex, "loop", "run")) == 4, "nothing was started meanwhile"


def test_restarts_that_nobody_saw_are_told_and_counted(daemon: Daemon, cortex: Cortex, folder: Path) -> None:
    register(cortex, "unseen", folder)
    cortex.run("start", "unseen")
    runs = [cortex.properties("unseen")["InvocationID"]]
    daemon.kill()
    for _ in range(3):
        systemctl("kill", "--signal=KILL", "cortex-unseen.service")

        def next_run() -> str:
            shown = systemctl("show", "--property=InvocationID,ActiveState", "cortex-unseen.service").stdout
            state = dict(line.split("=") for line in shown.split())
            return (
                state["InvocationID"] if state["ActiveState"] == "active" and state["InvocationID"] not in runs else ""
            )

        runs.append(until(next_run, "the next run"))
    daemon.start()
    told = events(cortex, "unseen", "ended")
    assert [event["InvocationID"] for event in told] == runs[:3]
    assert all(event["Message"].startswith("restarted while unobserved: ") for event in told)
    assert cortex.properties("unseen")["State"] == "ready"
    # The fourth of four.
    systemctl("kill", "--signal=KILL", "cortex-unseen.service")
    cortex.until_state("unseen", "failed")
    (gave_up,) = events(cortex, "unseen", "gave-up")
    assert gave_up["Message"].startswith("4 runs failed in a row")


def test_a_model_that_fails_slowly_ends_at_its_budget_too(daemon: Daemon, cortex: Cortex, folder: Path) -> None:
    """Longer than the window of systemd's own limit."""
    gate = "--fake-gate /dev/null --fake-exit 1"
    register(cortex, "slow", folder, gate, StartLimitIntervalSec=1, StartLimitBurst=5, RestartSec=0.5)
    cortex.run("start", "slow", "--no-block")
    cortex.until_state("slow", "failed", deadline=60)
    assert len(events(cortex, "slow", "gave-up")) == 1 and len(events(cortex, "slow", "run")) == 4
