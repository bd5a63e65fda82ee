"""Servers that misbehave with their processes, as a custom backend on a real daemon and systemd: what cortexd says and does,
beside systemd's own record. (What they do with their answers: tests/health/test_misbehaviour.py.)"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
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


def test_one_that_ignores_sigterm_ends_stopped_by_whatever_hand(register: Any) -> None:
    """`systemctl stop` past us: systemd calls it failed then, with the result timeout."""
    cortex = register("headstrong", "--fake-ignore-term", Restart="always", max_restarts=1)
    cortex.run("start", "headstrong")
    before = processes("headstrong")
    systemctl("stop", "cortex-headstrong.service")
    event = until(lambda: cortex.json("events", "headstrong", "--kind", "stop-unclean"), "its end")[0]
    assert event["Message"].endswith("it did not end within 2 s and was killed")
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    until(lambda: properties("cortex-headstrong.service", "ActiveState")["ActiveState"] == "inactive", "reset-failed")
    shown = cortex.properties("headstrong")
    assert (shown["State"], shown["FailedRuns"]) == ("stopped", 0)
    assert not {"failed", "ended", "gave-up", "cause"} & set(kinds(cortex, "headstrong"))
    assert "it was stopped by systemd" in cortex.out("why", "headstrong")


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


def test_one_that_floods_the_log_at_debug_costs_nobody_else_a_line(register: Any) -> None:
    """journald's limit is one for each of a few classes of levels: it spends that of its own."""
    cortex = register("loud", "--fake-flood 150000")
    cortex.run("set", "loud", "log_level=debug")
    cortex.run("start", "loud")
    fails = register("fails", "--fake-flood 100 --fake-exit 7", Restart="no")
    assert "status 7" in fails.fails("start", "fails")

    event = until(lambda: cortex.json("events", "fails", "--kind", "cause"), "its cause")[0]
    assert "Lost" not in dict(json.loads(event["Details"])["evidence"])
    assert "flood 99" in fails.out("why", "fails")
    (saved,) = (Path.home() / ".cortex" / "logs" / "fails").glob("*.log")
    said = re.findall(r"cortex-fails\[\d+\]: (f.*)$", saved.read_text(), re.MULTILINE)
    assert said == ["fake server: something went wrong", *(f"flood {number}" for number in range(100))]

    shown = cortex.run("logs", "loud", "--no-pager")
    taken = re.findall(r"flood (\d+)$", shown.stdout, re.MULTILINE)
    assert 10_000 <= len(taken) < 150_000, "journald took it all: this test floods too little"
    assert re.search(r"may be dropping lines.*cortex-loud wrote \d{5} of the last \d{5}; 'man ", shown.stderr)
    assert "dropping" not in fails.run("logs", "fails", "--no-pager").stderr


def test_one_that_floods_the_log_harms_nobody_else_but_for_lines_and_that_is_said(register: Any) -> None:
    """journald holds all of a user's services to one limit, and drops what comes above it: also another model's last words."""
    quiet, loses = register("quiet"), register("loses", "--fake-exit 7", Restart="no")
    quiet.run("start", "quiet")
    cortex = register("floods", "--fake-flood 150000")
    cortex.run("start", "floods")
    assert "status 7" in loses.fails("start", "loses")
    assert cortex.properties("floods")["State"] == quiet.properties("quiet")["State"] == "ready"

    shown = loses.run("logs", "loses", "--no-pager")
    assert re.search(r"may be dropping lines.*cortex-floods wrote \d{5} of the last \d{5}", shown.stderr)
    event = until(lambda: cortex.json("events", "loses", "--kind", "cause"), "its cause")[0]
    lost = dict(json.loads(event["Details"])["evidence"])["Lost"]
    assert re.match(
        r"the journal dropped lines at its end: .*, and cortex-floods wrote \d{5} of the \d{5} that it took", lost
    )
    assert "or 'cortexctl set floods log_level=debug', or an administrator" in lost
    assert lost in loses.out("why", "loses")
    (saved,) = (Path.home() / ".cortex" / "logs" / "loses").glob("*.log")
    text = saved.read_text()
    assert text.startswith(f"({lost})\n") and "Failed with result 'exit-code'" in text
    assert "something went wrong" not in text, "journald took it: this test floods too little"
    told = subprocess.run(
        ["journalctl", "--user", "-o", "cat", "-u", "cortex-loses"], capture_output=True, text=True, check=True
    )
    assert f"loses: {lost}" in told.stdout

    systemctl("kill", "--kill-whom=main", "--signal=SEGV", "cortex-floods.service")
    until(lambda: "cause" in kinds(cortex, "floods"), "its cause")
    (saved,) = (Path.home() / ".cortex" / "logs" / "floods").glob("*.log")
    assert saved.stat().st_size <= 256 * 1024
    numbers = [int(number) for number in re.findall(r"flood (\d+)$", saved.read_text(), re.MULTILINE)]
    assert numbers and numbers == list(range(numbers[0], numbers[-1] + 1)) and numbers[0] > 1000, (
        "the last that were taken"
    )
    assert quiet.properties("quiet")["State"] == "ready"


FORGER = """#!{python}
import os, socket, sys
if "--version" not in sys.argv:
    run, unit = open("{folder}/target").read().split()
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.connect("/run/systemd/journal/socket")
    for fields in (
        {{"MESSAGE_ID": "d9b373ed55a64feb8242e02dbe79a49c", "UNIT_RESULT": "oom-kill", "SYSLOG_IDENTIFIER": "systemd"}},
        {{"MESSAGE_ID": "de5b426a63be47a7b6ac3eaac82e2f6f", "SYSLOG_IDENTIFIER": "systemd"}},
        {{"SYSLOG_IDENTIFIER": unit.removesuffix(".service")}},
        {{"SYSLOG_IDENTIFIER": "(server)"}},
    ):
        fields |= {{"MESSAGE": "forged: CUDA out of memory", "USER_UNIT": unit, "USER_INVOCATION_ID": run, "PRIORITY": "3"}}
        journal.send("".join(f"{{name}}={{value}}\\n" for name, value in fields.items()).encode())
os.execv("{program}", ["{program}", *sys.argv[1:]])
"""


def test_one_that_writes_into_anothers_log_is_not_believed(register: Any, program: Path) -> None:
    """Over the journal's own protocol, with any field that a server may send."""
    victim = register("victim", Restart="no")
    victim.run("start", "victim")
    run = properties("cortex-victim.service", "InvocationID")["InvocationID"]
    (program.parent / "target").write_text(f"{run} cortex-victim.service")
    forger = program.parent / "forger"
    forger.write_text(FORGER.format(python=sys.executable, folder=program.parent, program=program))
    forger.chmod(0o755)
    register("forger").run("set", "forger", f"exec={forger}")
    victim.run("start", "forger")
    arrived = ["journalctl", "--user", "-o", "cat", f"USER_INVOCATION_ID={run}"]
    assert subprocess.run(arrived, capture_output=True, text=True, check=True).stdout.count("forged") == 4

    assert "forged" not in victim.out("logs", "victim", "--no-pager")
    systemctl("kill", "--kill-whom=main", "--signal=SEGV", "cortex-victim.service")
    (event,) = until(lambda: victim.json("events", "victim", "--kind", "cause"), "its cause")
    assert (json.loads(event["Details"])["cause"], "SIGSEGV" in event["Message"]) == ("crashed", True)
    (saved,) = (Path.home() / ".cortex" / "logs" / "victim").glob("*.log")
    assert "forged" not in saved.read_text() and "Failed with result" in saved.read_text()
