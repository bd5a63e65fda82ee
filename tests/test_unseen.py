"""What happens to runs while cortexd is dead, told by the next one once and for all, on a real systemd and its journal."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import properties, systemctl
from tests.support.wait import until
from tests.test_restarts import register

SETTINGS: dict[str, dict[str, object]] = {
    "limit": {"StartLimitBurst": 3, "max_restarts": 50, "RestartSec": 0.2},
    "term": {},
    "pause": {"RestartSec": 60},
    "anew": {},
    "spent": {"max_restarts": 1, "RestartSec": 60},
}
Told = dict[str, list[dict[str, Any]]]


def unit(name: str, *names: str) -> dict[str, str]:
    return properties(f"cortex-{name}.service", *names)


def until_unit(name: str, **wanted: str) -> None:
    until(lambda: unit(name, *wanted) == wanted, f"{name} to be {wanted}")


def kill(name: str, number: str) -> None:
    systemctl("kill", "--kill-whom=main", f"--signal={number}", f"cortex-{name}.service")


def next_run(name: str, last: str) -> str:
    def run() -> str:
        found = unit(name, "InvocationID", "ActiveState")
        return found["InvocationID"] if found["ActiveState"] == "active" and found["InvocationID"] != last else ""

    return until(run, "the next run")


def events(cortex: Cortex, name: str) -> list[dict[str, Any]]:
    """But for those that are written in the background."""
    found = cortex.json("events", name, "-n", "500")
    return [event for event in found if event["Kind"] not in ("cause", "stays-stopped")]


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [event["Kind"] for event in told if event["Kind"] not in ("registered", "start")]


@pytest.fixture(scope="module")
def away(shared_daemon: Daemon) -> Iterator[tuple[Cortex, int, Told]]:
    """All of it happens while there is none; with when the next cortexd came (microseconds since the epoch), and what it told."""
    cortex, folder = Cortex(), Path.home() / "away"
    folder.mkdir()
    for name, settings in SETTINGS.items():
        register(cortex, name, folder, **settings)
    cortex.run("start", *SETTINGS)
    kill("spent", "KILL")
    until_unit("spent", ActiveState="inactive")
    cortex.until_state("spent", "failed")
    shared_daemon.kill()
    kill("term", "TERM")
    kill("pause", "KILL")
    systemctl("restart", "cortex-anew.service")
    until_unit("pause", SubState="auto-restart")
    systemctl("stop", "cortex-pause.service")
    run = ""
    for _ in range(3):
        run = next_run("limit", run)
        kill("limit", "KILL")
    until_unit("limit", ActiveState="failed", NRestarts="3")
    until_unit("term", ActiveState="inactive")
    came = time.time_ns() // 1000
    shared_daemon.start()
    cortex.until_state("limit", "failed")
    until(lambda: "gave-up" in kinds(events(cortex, "limit")), "the end")
    yield cortex, came, {name: events(cortex, name) for name in SETTINGS}
    shutil.rmtree(folder)


def test_systemds_own_limit_is_the_same_end(away: tuple[Cortex, int, Told]) -> None:
    cortex, came, told = away
    assert kinds(told["limit"]) == [*["run", "ready", "ended"] * 2, "run", "ready", "failed", "gave-up"]
    begun = [json.loads(event["Details"]) for event in told["limit"] if event["Kind"] == "run"]
    assert [(details["n_restarts"], details["restart"]) for details in begun] == [(0, False), (1, True), (2, True)]
    assert all(event["Time"] < came for event in told["limit"] if event["Kind"] in ("run", "ready", "ended", "failed"))
    assert {event["Kind"]: event for event in told["limit"]}["gave-up"]["Message"] == (
        "systemd gave up at its own limit of starts, after 3 failed runs in a row, the last: the server was killed by "
        "SIGKILL; it is restarted no more until it is started by hand or at boot"
    )
    shown = cortex.properties("limit")
    assert (shown["NRestarts"], shown["FailedRuns"]) == (2, 3)
    systemctl("reset-failed", "cortex-limit.service")
    assert cortex.properties("limit")["State"] == "failed"


def test_an_end_that_left_no_word_is_told(away: tuple[Cortex, int, Told]) -> None:
    cortex, _, told = away
    assert kinds(told["term"]) == ["run", "ready", "exited"]
    assert told["term"][-1]["Priority"] == "warning"
    shown = cortex.properties("term")
    assert (shown["State"], shown["StateReason"]) == ("stopped", told["term"][-1]["Message"])


def test_a_stop_in_the_pause_leaves_the_failure_before_it(away: tuple[Cortex, int, Told]) -> None:
    _, came, told = away
    assert kinds(told["pause"]) == ["run", "ready", "ended", "stopped"]
    ended, stopped = told["pause"][-2:]
    assert ended["Time"] <= stopped["Time"] < came and ended["InvocationID"] == stopped["InvocationID"]


def test_a_restart_past_cortexd_is_a_stop_and_a_run(away: tuple[Cortex, int, Told]) -> None:
    _, came, told = away
    assert kinds(told["anew"]) == ["run", "ready", "stopped", "run", "ready"]
    assert told["anew"][-3]["Message"] == "stopped and started anew while cortexd was away: with systemctl"
    assert [event["Time"] for event in told["anew"]] == sorted(event["Time"] for event in told["anew"])
    assert told["anew"][-1]["Time"] < came


def test_a_cause_that_is_found_later_has_the_time_of_the_end(away: tuple[Cortex, int, Told]) -> None:
    cortex, _, told = away

    def causes() -> list[dict[str, Any]]:
        return [event for event in cortex.json("events", "limit", "-n", "500") if event["Kind"] == "cause"]

    ends = {event["InvocationID"]: event["Time"] for event in told["limit"] if event["Kind"] in ("ended", "failed")}
    until(lambda: len(causes()) == 3, "the causes")
    found = causes()
    assert {event["InvocationID"]: event["Time"] for event in found} == ends
    (last,) = [event for event in found if event["Priority"] == "error"]
    assert ["Restarts", "2"] in json.loads(last["Details"])["evidence"]


def test_nothing_is_told_twice(away: tuple[Cortex, int, Told], shared_daemon: Daemon) -> None:
    """By any later cortexd: of the last run that systemd's limit allowed, of a model that was given up, of what is forgotten."""
    cortex, _, told = away
    reason = cortex.properties("term")["StateReason"]
    for _ in range(2):
        shared_daemon.kill()
        shared_daemon.start()
        assert {name: events(cortex, name) for name in SETTINGS} == told
    assert cortex.properties("term")["StateReason"] == reason
    assert {cortex.properties(name)["State"] for name in ("limit", "spent")} == {"failed"}
