"""Servers that misbehave with their processes, as a custom backend on a real daemon and systemd: what cortexd says and does,
beside systemd's own record. (What they do with their answers: tests/health/test_misbehaviour.py.)"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortexd.scope import user_scope
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program, properties, systemctl
from tests.support.wait import until

FORM = """
description = "A server that misbehaves"
executables = ["misbehaving"]
command = ["{exec}", "--host", "{host}", "--port", "{port}"]
endpoint = "/health"
stop_seconds = 2
"""


@pytest.fixture(scope="module", autouse=True)
def program() -> Iterator[Path]:
    """The server, and the file that makes it a backend."""
    form = user_scope(os.environ).backend_folders[0] / "misbehaving.toml"
    form.parent.mkdir(parents=True, exist_ok=True)
    form.write_text(FORM)
    folder = Path.home() / "misbehaving"
    folder.mkdir()
    yield make_program(folder / "misbehaving")
    shutil.rmtree(folder)
    form.unlink()


@pytest.fixture
def register(shared_daemon: Daemon, program: Path) -> Any:
    """Register a model of it with these arguments and settings."""

    def make(name: str, arguments: str = "", **settings: object) -> Cortex:
        given = {"RestartSec": 0.2, "memory": "infinity", "max_restarts": 3, **settings}
        cortex = Cortex()
        cortex.run(
            "register", name, "--path", str(lab.TINY_GGUF), "--backend", "misbehaving", "--exec", str(program),
            "--gpus", "none", "--port", "auto", f"--extra-args={arguments}",
            *(word for key, value in given.items() for word in ("--set", f"{key.replace('__', '.')}={value}")),
        )  # fmt: skip
        return cortex

    return make


def kinds(cortex: Cortex, name: str) -> list[str]:
    return [event["Kind"] for event in cortex.json("events", name, "-n", "100")]


def processes(name: str) -> set[int]:
    """Those of its unit."""
    group = properties(f"cortex-{name}.service", "ControlGroup")["ControlGroup"]
    return {
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and group and group in _cgroup(folder)
    }


def _cgroup(folder: Path) -> str:
    try:
        return (folder / "cgroup").read_text()
    except OSError:
        return ""


def test_one_that_loads_slowly_is_starting_until_it_is_ready(register: Any, program: Path) -> None:
    gate = program.parent / "gate"
    os.mkfifo(gate)
    cortex = register("slow", f"--fake-gate {gate}", health__interval_seconds=0.2, health__timeout_seconds=0.2)
    cortex.run("start", "slow", "--no-block")
    cortex.until_state("slow", "starting")
    run = until(lambda: properties("cortex-slow.service", "InvocationID")["InvocationID"], "its run")
    gate.write_text("open")
    cortex.until_state("slow", "ready")
    assert properties("cortex-slow.service", "InvocationID", "NRestarts") == {"InvocationID": run, "NRestarts": "0"}
    assert not {"degraded", "ended", "failed"} & set(kinds(cortex, "slow"))


def test_one_that_stalls_is_given_up_with_the_reason(register: Any, program: Path) -> None:
    gate = program.parent / "never"
    os.mkfifo(gate)
    cortex = register("stalls", f"--fake-gate {gate}", health__startup_stall_seconds=1, Restart="no")
    assert "no sign of progress" in cortex.fails("start", "stalls")
    found = cortex.json("why", "stalls")[0]
    assert found["Cause"] == "stalled"
    assert properties("cortex-stalls.service", "ActiveState")["ActiveState"] == "failed"


def test_one_that_leaves_children_is_wholly_gone_before_the_next(register: Any) -> None:
    cortex = register("leaks", "--fake-child")
    cortex.run("start", "leaks")
    before, main = processes("leaks"), cortex.properties("leaks")["MainPID"]
    assert len(before) == 2 and main in before
    systemctl("kill", "--kill-whom=main", "--signal=KILL", "cortex-leaks.service")
    until(lambda: cortex.properties("leaks")["MainPID"] not in (0, main), "its next run")
    cortex.until_state("leaks", "ready")
    assert not before & processes("leaks") and not any(Path(f"/proc/{pid}").exists() for pid in before)


def test_one_that_ignores_sigterm_is_killed_and_ends_stopped(register: Any) -> None:
    cortex = register("stubborn", "--fake-ignore-term --fake-child")
    cortex.run("start", "stubborn")
    before = processes("stubborn")
    done = cortex.run("stop", "stubborn")
    assert "did not end within 2 s and was killed" in done.stderr
    assert cortex.properties("stubborn")["State"] == "stopped" and not processes("stubborn")
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    assert "stop-unclean" in kinds(cortex, "stubborn")


def test_one_that_dies_at_start_ends_at_its_budget(register: Any) -> None:
    cortex = register("dies", "--fake-exit 7")
    assert "status 7" in cortex.fails("start", "dies")
    cortex.until_state("dies", "failed")
    told = kinds(cortex, "dies")
    assert told.count("run") == 3 and told.count("gave-up") == 1
    assert properties("cortex-dies.service", "ActiveState")["ActiveState"] == "inactive"


def test_one_that_crashes_now_and_then_comes_back_and_says_how_it_ended(register: Any) -> None:
    cortex = register("crashes")
    cortex.run("start", "crashes")
    run = cortex.properties("crashes")["InvocationID"]
    systemctl("kill", "--kill-whom=main", "--signal=SEGV", "cortex-crashes.service")
    until(lambda: cortex.properties("crashes")["InvocationID"] not in ("", run), "its next run")
    cortex.until_state("crashes", "ready")
    ended = [e for e in cortex.json("events", "crashes") if e["Kind"] == "ended"]
    assert [e["InvocationID"] for e in ended] == [run] and "SIGSEGV" in ended[0]["Message"]
    assert properties("cortex-crashes.service", "NRestarts")["NRestarts"] == "1"


def test_one_that_floods_the_log_harms_nobody_else(register: Any) -> None:
    quiet = register("quiet")
    quiet.run("start", "quiet")
    cortex = register("floods", "--fake-flood 100000")
    cortex.run("start", "floods")
    assert cortex.properties("floods")["State"] == quiet.properties("quiet")["State"] == "ready"
    systemctl("kill", "--kill-whom=main", "--signal=SEGV", "cortex-floods.service")
    until(lambda: "cause" in kinds(cortex, "floods"), "its cause")
    (saved,) = (Path.home() / ".cortex" / "logs" / "floods").glob("*.log")
    assert saved.stat().st_size <= 256 * 1024
    numbers = [int(number) for number in re.findall(r"flood (\d+)$", saved.read_text(), re.MULTILINE)]
    assert numbers and numbers == list(range(numbers[0], numbers[-1] + 1)) and numbers[0] > 1000, "the last lines"
    assert quiet.properties("quiet")["State"] == "ready"
