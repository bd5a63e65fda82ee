"""Ends that nobody saw, or that systemd was told to bring about: one story of each, and no guess, on a real systemd."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program, properties, systemctl
from tests.support.wait import until

BY_SYSTEMD = "stopped by systemd: with systemctl, or at the end of your session"


@pytest.fixture
def ctl(shared_daemon: Daemon) -> Iterator[Cortex]:
    """A model "a", whose server is ready."""
    client = Cortex()
    server = make_program(Path.home() / "unseen" / "llama-server")
    client.run(
        "register", "a", "--path", str(lab.TINY_GGUF), "--backend", "llamacpp", "--exec", str(server), "--gpus", "none",
        "--port", "auto", "--memory", "infinity", "--set", "RestartSec=0.2",
    )  # fmt: skip
    client.run("start", "a")
    yield client
    client.run("unregister", "--force", "a")
    shutil.rmtree(server.parent)


def run_of(name: str) -> str:
    return properties(f"cortex-{name}.service", "InvocationID")["InvocationID"]


def events(ctl: Cortex, run: str) -> dict[str, dict[str, Any]]:
    return {event["Kind"]: event for event in ctl.json("events", "a", "-n", "100") if event["InvocationID"] == run}


def test_a_stop_with_systemctl_has_one_story(ctl: Cortex) -> None:
    run = run_of("a")
    systemctl("stop", "cortex-a.service")
    ctl.until_state("a", "stopped")
    found = until(lambda: (told := events(ctl, run)) and "stopped" in told and told, "its end")
    assert found["stopped"]["Message"] == BY_SYSTEMD and found["stopped"]["Priority"] == "info"
    assert not {"ended", "failed", "cause"} & found.keys()
    (why,) = ctl.json("why", "a")
    assert (why["Cause"], why["Sentence"]) == ("stopped", f"it was {BY_SYSTEMD}")


def test_a_stop_with_systemctl_while_cortexd_is_away(ctl: Cortex, shared_daemon: Daemon) -> None:
    run = run_of("a")
    shared_daemon.kill()
    systemctl("stop", "cortex-a.service")
    shared_daemon.start()
    (why,) = ctl.json("why", "a")
    assert (why["Cause"], BY_SYSTEMD in why["Sentence"]) == ("stopped", True), why
    assert not {"ended", "failed", "cause"} & events(ctl, run).keys()


def test_a_crash_while_cortexd_is_away_has_its_cause_and_its_log(ctl: Cortex, shared_daemon: Daemon) -> None:
    run = run_of("a")
    shared_daemon.kill()
    systemctl("kill", "--kill-whom=main", "--signal=SEGV", "cortex-a.service")
    until(lambda: run_of("a") not in ("", run), "the next run")
    shared_daemon.start()
    cause = until(lambda: events(ctl, run).get("cause"), "its cause")
    assert "SIGSEGV" in cause["Message"]
    assert "unobserved" in events(ctl, run)["ended"]["Message"]
    (saved,) = (Path.home() / ".cortex" / "logs" / "a").glob(f"*-{run}.log")
    assert "status=11/SEGV" in saved.read_text()


def test_a_cause_that_a_killed_cortexd_did_not_write_is_found_by_the_next(ctl: Cortex, shared_daemon: Daemon) -> None:
    run = run_of("a")
    ctl.run("set", "a", "Restart=no")
    systemctl("kill", "--kill-whom=main", "--signal=SEGV", "cortex-a.service")
    before = until(lambda: events(ctl, run).get("cause"), "its cause")
    shared_daemon.kill()
    with sqlite3.connect(Path.home() / ".cortex" / "models.db") as database:
        assert database.execute("DELETE FROM events WHERE kind = 'cause' AND invocation_id = ?", [run]).rowcount == 1
    database.close()
    shutil.rmtree(Path.home() / ".cortex" / "logs" / "a")
    shared_daemon.start()
    after = until(lambda: events(ctl, run).get("cause"), "its cause")
    assert after["Message"] == before["Message"]
    assert list((Path.home() / ".cortex" / "logs" / "a").glob(f"*-{run}.log"))
