"""Verbs that say how models are: what they print, and how they end."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.cli.canned import model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

ACTIVE = ("ready", "busy", "degraded", "unhealthy")
STATES = (*ACTIVE, "stopped", "starting", "restarting", "stopping", "failed")


@pytest.mark.parametrize("state", STATES)
def test_exit_codes_follow_the_state(cli: Cli, fake: FakeDaemon, state: str) -> None:
    fake.add(model("a", State=state))
    active = 0 if state in ACTIVE else 3
    done = cli.run("is-active", "a")
    assert (done.returncode, done.stdout) == (active, f"{state}\n")
    assert cli.run("status", "a").returncode == active
    assert cli.run("status").returncode == 0
    done = cli.run("is-failed", "a")
    assert (done.returncode, done.stdout) == (0 if state == "failed" else 1, f"{state}\n")


@pytest.mark.parametrize(
    ("unit_file", "code"), [("enabled", 0), ("enabled-runtime", 0), ("disabled", 1), ("masked", 1), ("not-found", 1)]
)
def test_is_enabled(cli: Cli, fake: FakeDaemon, unit_file: str, code: int) -> None:
    fake.add(model("a", UnitFileState=unit_file))
    done = cli.run("is-enabled", "a")
    assert (done.returncode, done.stdout) == (code, f"{unit_file}\n")


def test_checks_of_several_succeed_when_one_does(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="ready"), model("b"))
    done = cli.run("is-active", "b", "nope", "a")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\nready\nunknown\n", "")
    assert cli.run("is-active", "b", "nope").returncode == 3
    assert cli.run("is-active", "nope").returncode == 4
    assert cli.run("is-active", "nope*").returncode == 4
    assert cli.run("is-active", "*").returncode == 0
    assert cli.ok("is-active", "a", "--quiet") == ""
    assert cli.json("is-active", "a") == [{"Name": "a", "State": "ready"}]


def test_the_table(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(
        model("ready-one", State="ready", MainPID=1, MemoryCurrent=3 * 1024**3, UnitFileState="enabled"),
        model("broken", State="failed", StateReason="no such file \x1b[31m", RestartNeeded=True),
    )
    assert cli.ok("status").splitlines() == [
        "  NAME       STATE   BACKEND   ENDPOINT               MEMORY  BOOT",
        "× broken     failed  llamacpp  http://127.0.0.1:8080  -       disabled",
        "    no such file \\x1b[31m; settings changed since it was started; restart it to use them",
        "● ready-one  ready   llamacpp  http://127.0.0.1:8080  3.0G    enabled",
    ]
    assert cli.ok("list") == cli.ok("status")
    assert cli.ok("list", "b*").count("\n") == 3


@pytest.mark.parametrize(("usual", "long"), [(9_200_000, " of usually 9.2s"), (0, "")])
def test_how_long_a_start_usually_takes(cli: Cli, fake: FakeDaemon, usual: int, long: str) -> None:
    begun = int((time.time() - 125) * 1e6)
    fake.add(
        model("a", State="starting", StateReason="Loading", UsualLoadUSec=usual, StateChangeTimestamp=begun),
        model("b", State="ready", UsualLoadUSec=usual, StateChangeTimestamp=begun),
    )
    assert re.search(rf"State: starting \(2min \d+s{long}\)\n", cli.run("status", "a").stdout)
    assert "State: ready\n" in cli.run("status", "b").stdout
    table = cli.ok("list")
    assert ("    Loading; usually ready after 9.2s\n" if usual else "    Loading\n") in table
    assert table.count("usually") == bool(usual)


def test_the_table_in_one_round_trip(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(*(model(f"m{n:03}") for n in range(100)))
    assert cli.ok("list").count("\n") == 101
    assert len(fake.calls("ListModels")) == 1


def test_an_empty_table_says_what_to_do(cli: Cli, fake: FakeDaemon) -> None:
    done = cli.run("status")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no model is registered; 'cortexctl register" in done.stderr
    assert cli.json("status") == []


def test_the_table_in_json_has_every_property(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="ready"), model("b", State="busy"))
    for line in ("status", "list", "status a b"):
        infos = cli.json(*line.split())
        assert [info["Name"] for info in infos] == ["a", "b"]
        assert set(infos[0]) == set(fake.models["a"])


def test_the_table_passes_on_what_is_wrong_around_the_daemon(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.warnings = ["unit cortex-x.service has no model"]
    fake.version = "0.0.1"
    done = cli.run("status")
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first == "Warning: unit cortex-x.service has no model"
    assert "0.0.1" in second and "systemctl --user restart cortexd" in second


def test_status_of_a_model(cli: Cli, fake: FakeDaemon) -> None:
    running = {"ActiveState": "active", "SubState": "running", "MainPID": os.getpid(), "UnitFileState": "enabled"}
    fake.add(
        model(
            "a", State="unhealthy", StateReason="three probes failed", Health="failing", HealthFailures=3,
            HealthReason="503", MemoryCurrent=3 * 1024**3, CPUUsageNSec=83 * 10**9, TasksCurrent=75, NRestarts=2, FailedRuns=4,
            StateChangeTimestamp=1_795_439_719_732_247, DropInPaths=["/u/a.service.d/x.conf"], ControlGroup="/c/a",
            Limits=[
                ("memory", "32G", "20G", "/u/a.service.d/x.conf says otherwise", "delete that line"),
                ("MemoryHigh", "28G", "28G", "", ""), ("cpu", "4", "2", "cortex.slice as a whole has no more", "raise it"),
                ("CPUWeight", "100", "100", "", ""), ("IOWeight", "100", "", "io is not delegated", "delegate\x1b it"),
                ("TasksMax", "512", "2", "cortex.slice as a whole has no more", "raise it"),
            ],
            StatusText="Serving", RestartNeeded=True, Warnings=["the unit file was edited by hand"], **running,
        )
    )  # fmt: skip
    command = Path("/proc/self/comm").read_text().strip()
    lines = cli.ok("status", "a", "-n", "0").splitlines()
    active = "    Active: active (running) since Mon 2026-11-23 13:15:19 UTC; "
    assert lines[7].startswith(active)
    lines[7] = active
    assert lines == [
        "● a - llamacpp: /models/tiny.gguf",
        "     State: unhealthy",
        "    Reason: three probes failed",
        "    Health: failing (3 failed probes in a row): 503",
        "       URL: http://127.0.0.1:8080",
        "    Loaded: loaded (/home/u/.config/systemd/user/cortex-a.service; enabled)",
        "   Drop-In: /u/a.service.d/x.conf",
        active,
        '    Status: "Serving"',
        "  Restarts: 2 by systemd; 4 of 5 failed runs in a row",
        f"  Main PID: {os.getpid()} ({command})",
        "    Memory: 3.0G (high: 28G, limit: 20G)",
        "       CPU: 1min 23s (limit: 2 cores, weight: 100)",
        "     Tasks: 75 (limit: 2)",
        "        IO: not available: the control group has no io controller",
        "    CGroup: /c/a",
        "    Limits: not in force: memory=32G (it is 20G): /u/a.service.d/x.conf says otherwise; delete that line",
        "    Limits: not in force: cpu=4 (it is 2), TasksMax=512 (it is 2): cortex.slice as a whole has no more; raise it",
        "    Limits: not in force: IOWeight=100: io is not delegated; delegate\\x1b it",
        "   Changed: settings or secrets were changed since it was started; restart it to use them",
        "   Warning: the unit file was edited by hand",
    ]


def test_status_says_what_the_machine_cannot_measure(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="ready", MainPID=1))
    text = cli.ok("status", "a", "-n", "0")
    assert "Memory: not available: the control group has no memory controller (high: 28G, limit: 32G)" in text


def test_url(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    assert cli.ok("url", "a") == "http://127.0.0.1:8080\n"
    assert cli.ok("url", "a", "--quiet") == "http://127.0.0.1:8080\n"
    assert cli.json("url", "a") == [{"Name": "a", "URL": "http://127.0.0.1:8080"}]
