"""How ends are told that nobody asked for, on a real systemd: one story each, a reason, and never cortexd's own doing as
somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import properties, systemctl
from tests.support.wait import until
from tests.test_restarts import events, folder, register

__all__ = ["folder"]


@pytest.fixture
def ctl(shared_daemon: Daemon) -> Cortex:
    return Cortex()


def why(ctl: Cortex, name: str) -> dict[str, Any]:
    found = ctl.json("why", name)[0]
    assert isinstance(found, dict)
    return found


def test_a_run_that_systemd_began_before_the_last_stop_is_not_somebody_elses(ctl: Cortex, folder: Path) -> None:
    """Without a pause between two runs there is one more than the budget allows."""
    register(ctl, "nopause", folder, "--fake-exit", "3", RestartSec=0, max_restarts=3)
    ctl.run("start", "nopause", "--no-block")
    ctl.until_state("nopause", "failed", deadline=30)
    until(lambda: ctl.json("events", "nopause", "--kind", "stays-stopped"), "the stop")
    found = ctl.json("events", "nopause", "-n", "500")
    assert not [event for event in found if "systemctl" in event["Message"]], found
    assert "stays-stopped" not in {event["Kind"] for event in found}, "that is no news to anybody"
    runs = {event["InvocationID"] for event in found if event["Kind"] == "run"}
    ends = [event["InvocationID"] for event in found if event["Kind"] in ("ended", "failed", "stopped")]
    assert sorted(ends) == sorted(runs), "each has one end"
    told = until(lambda: (now := why(ctl, "nopause")) and "status 3" in now["Sentence"] and now, "its cause")
    assert told["Sentence"].startswith("3 runs failed in a row, the last: the server exited with status 3")
    assert "'cortexctl start nopause' starts it again" in told["Remedy"]


def test_a_signal_from_outside_is_the_reason_of_the_stop(ctl: Cortex, folder: Path) -> None:
    """SIGTERM is no failure to systemd, which starts nothing again."""
    register(ctl, "termed", folder)
    ctl.run("start", "termed")
    # What has no handler for it dies of it: the server of the tests ends with status 0.
    pid = ctl.properties("termed")["MainPID"]
    systemctl("kill", "--kill-whom=main", "--signal=HUP", "cortex-termed.service")
    ctl.until_state("termed", "stopped")
    assert pid and properties("cortex-termed.service", "Result")["Result"] == "success"
    reason = "the server was killed by SIGHUP from outside; not restarted (Restart=on-failure)"
    assert events(ctl, "termed", "ended")[0]["Message"] == reason
    until(lambda: ctl.properties("termed")["StateReason"] == reason, "the reason of its state")
    assert reason in ctl.run("status", "termed", check=False).stdout


def test_what_the_waiter_said_of_an_unseen_run_is_not_the_servers_word(
    ctl: Cortex, shared_daemon: Daemon, folder: Path
) -> None:
    register(ctl, "unseen", folder, "--fake-exit", "3", RestartSec=30, max_restarts=9)
    shared_daemon.kill()
    systemctl("start", "cortex-unseen.service", check=False)
    first = properties("cortex-unseen.service", "InvocationID")["InvocationID"]
    systemctl("restart", "cortex-unseen.service", check=False)
    assert properties("cortex-unseen.service", "InvocationID")["InvocationID"] != first
    shared_daemon.start()

    def caused() -> list[dict[str, Any]]:
        return [event for event in events(ctl, "unseen", "cause") if event["InvocationID"] == first]

    (cause,) = until(caused, "the cause of the run that is past")
    assert cause["Message"].endswith("; the last it said: fake server: something went wrong"), cause
