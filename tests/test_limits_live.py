"""Limits of a real server, changed while it runs: what the real systemd says of its unit, and what is left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon

GIB = 1 << 30


@pytest.fixture
def cortex(daemon: Daemon) -> Cortex:
    return Cortex()


@pytest.fixture
def model(cortex: Cortex) -> Iterator[str]:
    """One that runs."""
    name = "limited"
    cortex.register_tiny(name, "--memory", "32G")
    cortex.run("start", name)
    yield name
    cortex.run("unregister", "--force", name)


def shown(name: str, *properties: str) -> list[str]:
    """What systemd itself says."""
    command = ["systemctl", "--user", "show", f"cortex-{name}.service", *(f"--property={p}" for p in properties)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = dict(line.split("=", 1) for line in text.splitlines())
    return [values[p] for p in properties]


def control(name: str) -> Path:
    """Where systemd leaves drop-ins."""
    return Path(os.environ["XDG_RUNTIME_DIR"]) / "systemd" / "user.control" / f"cortex-{name}.service.d"


def test_48g_then_64g_then_a_restart(cortex: Cortex, model: str) -> None:
    run = cortex.properties(model)["InvocationID"]
    for memory in (48, 64):
        done = cortex.run("set", model, f"memory={memory}G", "cpu=1.5", "TasksMax=222", "CPUWeight=50", "IOWeight=70")
        assert "'cortexctl restart" not in done.stderr
        high = memory - min(memory // 8, 8)
        limits = ["MemoryMax", "MemoryHigh", "CPUQuotaPerSecUSec", "TasksMax", "CPUWeight", "IOWeight"]
        held = [str(memory * GIB), str(high * GIB), "1.500000s", "222", "50", "70"]
        assert shown(model, *limits) == held
        assert shown(model, "DropInPaths", "NeedDaemonReload") == ["", "no"] and not control(model).exists()
        info = cortex.properties(model)
        assert (info["InvocationID"], info["RestartNeeded"], info["State"]) == (run, False, "ready")
    cortex.run("restart", model)
    assert shown(model, *limits) == held
    assert cortex.properties(model)["InvocationID"] != run


def test_no_dump_of_its_memory_is_made(cortex: Cortex, model: str) -> None:
    held = Path(f"/proc/{cortex.properties(model)['MainPID']}/limits").read_text()
    (core,) = [line for line in held.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]


def test_what_the_user_set_stays(cortex: Cortex, model: str) -> None:
    command = ["systemctl", "--user", "set-property", "--runtime", f"cortex-{model}.service", "MemoryMax=20G"]
    subprocess.run(command, check=True)
    drop_in = control(model) / "50-MemoryMax.conf"
    text = drop_in.read_text()
    assert f"{drop_in} sets MemoryMax=" in cortex.run("set", model, "memory=48G").stderr
    assert (drop_in.read_text(), [*control(model).iterdir()]) == (text, [drop_in])
    assert shown(model, "MemoryMax", "MemoryHigh") == [str(20 * GIB), str(42 * GIB)]
    drop_in.unlink()


def test_limits_that_nothing_enforces_are_marked(cortex: Cortex, model: str) -> None:
    told = {setting: rest for setting, *rest in cortex.properties(model)["Limits"]}
    group = Path("/sys/fs/cgroup" + cortex.properties(model)["ControlGroup"])
    files = {"memory": "memory.max", "MemoryHigh": "memory.high", "cpu": "cpu.max", "CPUWeight": "cpu.weight",
             "IOWeight": "io.weight", "TasksMax": "pids.max"}  # fmt: skip
    assert set(told) == set(files) and told["memory"][0] == "32G"
    for setting, file in files.items():
        _, effective, reason, remedy = told[setting]
        if not (group / file).exists():
            assert not effective and reason and remedy
            assert f"{setting}=" in cortex.run("status", model).stdout.partition("Limits: not in force: ")[2]


def test_what_the_user_set_to_the_very_same_stays_when_a_daemon_starts(
    cortex: Cortex, model: str, daemon: Daemon
) -> None:
    """What a killed daemon left is told from it by the database (tests/manager/test_limits.py, tests/faults)."""
    command = ["systemctl", "--user", "set-property", "--runtime", f"cortex-{model}.service", f"MemoryMax={32 * GIB}"]
    subprocess.run(command, check=True)
    drop_in = control(model) / "50-MemoryMax.conf"
    daemon.kill()
    daemon.start()
    assert f"{drop_in} sets MemoryMax=" in cortex.run("set", model, "memory=64G").stderr
    assert drop_in.exists() and shown(model, "MemoryMax") == [str(32 * GIB)]
    drop_in.unlink()
