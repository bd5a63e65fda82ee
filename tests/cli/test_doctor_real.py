"""doctor under a real systemd, with the real daemon: what is well is said to be well, and what is broken is found."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortexctl.doctor import userns
from cortexd.names import BUS_NAME
from cortexd.version import VERSION
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.wait import until

SLOWEST = 10.0
"""Seconds for the whole verb, however sick the session is."""

UNITS = Path.home() / ".config" / "systemd" / "user"


def rows(cortex: Cortex, *arguments: str, path: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """What it says, by check."""
    done = cortex.run("doctor", "--json", *arguments, check=False, path=path)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout):
        found.setdefault(row["check"], []).append(row)
    return found


def only(found: dict[str, list[dict[str, Any]]], check: str) -> tuple[str, str]:
    """Level and text of a check with one row."""
    (row,) = found[check]
    return row["level"], row["text"]


def test_a_running_daemon_with_a_model_that_it_made(daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny("fine", "--api-key", "auto")
    found = rows(cortex, path=f"{lab.LLAMA_FOLDER}:{os.environ['PATH']}")
    assert only(found, "daemon") == ("ok", f"cortexd {VERSION} runs, 1 model registered")
    assert only(found, "bus")[0] == only(found, "systemd")[0] == only(found, "files")[0] == "ok"
    level, said = only(found, "units")
    # The template of folders may lie there beside it, from an earlier test.
    assert level == "ok" and re.fullmatch(r"systemd has nothing to say against (the unit file|2 unit files)", said)
    assert only(found, "port")[0] == only(found, "namespaces")[0] == only(found, "journal")[0] == "ok"
    assert "no activation file" in only(found, "install")[1], "the test's daemon is no installed one"
    (llama,) = [row for row in found["backend"] if row["text"].startswith("llamacpp ")]
    assert llama["level"] == "ok" and str(lab.LLAMA_SERVER) in llama["text"]


def test_a_model_that_failed_and_a_line_that_systemd_ignores(daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny("broken", "--set", "Restart=no")
    drop_in = UNITS / "cortex-broken.service.d" / "mine.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/bin/false\nNoSuchKey=yes\n")
    subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
    cortex.fails("start", "broken")
    found = rows(cortex)
    level, text = only(found, "units")
    assert level == "warning" and "mine.conf:4" in text and "NoSuchKey" in text
    (failed,) = found["failed-unit"]
    assert (failed["text"], failed["remedy"]) == (
        "cortex-broken.service has failed",
        "'cortexctl why broken' says why",
    )
    drop_in.unlink()
    drop_in.parent.rmdir()


def test_modes_of_real_files_are_mended(daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny("open")
    unit, data = UNITS / "cortex-open.service", Path.home() / ".cortex"
    unit.chmod(0o644)
    data.chmod(0o755)
    level, text = only(rows(cortex), "files")
    assert level == "warning" and f"{data}, {unit}" in text
    assert only(rows(cortex, "--fix", "--yes"), "files")[0] == "ok"
    assert (unit.stat().st_mode & 0o777, data.stat().st_mode & 0o777) == (0o600, 0o700)
    cortex.run("start", "open")  # the unit is what it was


def test_a_daemon_that_was_killed(daemon: Daemon, cortex: Cortex) -> None:
    daemon.kill()
    found = rows(cortex)
    assert only(found, "daemon")[1].startswith("cortexd is not installed")
    assert only(found, "bus")[0] == "ok" and "port" not in found
    daemon.start()


@pytest.fixture
def installed() -> Iterator[Path]:
    """cortexd as a unit that the bus has no activation file for; it is not started."""
    unit = Path.home() / ".local" / "share" / "systemd" / "user" / "cortexd.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text(
        f'[Service]\nType=notify\nBusName={BUS_NAME}\nExecStart="{sys.executable}" -m cortexd.app\nUMask=0077\n'
    )
    subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
    yield unit
    subprocess.run(["systemctl", "--user", "stop", "cortexd.service"], check=True)
    unit.unlink()
    subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)


@pytest.mark.parametrize("name", ["org.freedesktop.systemd1", "org.freedesktop.DBus"])
def test_a_manager_and_a_bus_that_hang(name: str) -> None:
    """As when a process of theirs waits for a dead disk."""
    ask = ["busctl", "--user", "--json=short", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus"]
    ask += ["org.freedesktop.DBus", "GetConnectionUnixProcessID", "s", name]
    (pid,) = json.loads(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)["data"]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = rows(Cortex())
        assert time.monotonic() - began < SLOWEST
    finally:
        os.kill(pid, signal.SIGCONT)
    check = "manager" if name.endswith("systemd1") else "bus"
    assert only(found, check)[0] == "error"
    assert only(found, "namespaces")[0] == "ok", "everything else is looked at all the same"


def state(name: str = "ActiveState") -> str:
    """A property of cortexd's unit."""
    command = ["systemctl", "--user", "show", f"--property={name}", "--value", "cortexd.service"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main_pid() -> int:
    """The daemon's process."""
    return int(state("MainPID"))


def test_a_daemon_that_nothing_starts_is_started(installed: Path) -> None:
    cortex = Cortex()
    level, text = only(rows(cortex), "daemon")
    assert (level, text) == ("error", "cortexd does not run, and the bus has no activation file for it")
    assert state() == "inactive", "looking starts nothing"
    assert only(rows(cortex, "--fix", "--yes"), "daemon")[0] == "ok"
    assert state() == "active"


def test_a_daemon_that_hangs_is_restarted(installed: Path) -> None:
    cortex = Cortex()
    subprocess.run(["systemctl", "--user", "start", "cortexd.service"], check=True)
    hanging = main_pid()
    os.kill(hanging, signal.SIGSTOP)
    assert only(rows(cortex), "daemon") == ("error", "cortexd is on the bus, but does not answer")
    assert only(rows(cortex, "--fix", "--yes"), "daemon")[0] == "ok"
    assert main_pid() not in (0, hanging)


def test_a_daemon_that_cannot_start(installed: Path) -> None:
    cortex = Cortex()
    installed.write_text("[Service]\nType=notify\nExecStart=/bin/false\n")
    subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
    done = cortex.run("doctor", "--fix", "--yes", check=False)
    assert done.returncode == 1 and "cortexd.service did not start; see 'journalctl" in done.stderr
    until(lambda: state() == "failed", "the unit's failure")
    assert "failed (exit-code, status 1)" in only(rows(cortex), "daemon")[1]
    subprocess.run(["systemctl", "--user", "reset-failed", "cortexd.service"], check=True)


def test_a_masked_daemon(installed: Path) -> None:
    cortex = Cortex()
    subprocess.run(["systemctl", "--user", "mask", "--runtime", "cortexd.service"], check=True, capture_output=True)
    assert only(rows(cortex), "daemon")[1] == "cortexd.service is masked"
    subprocess.run(["systemctl", "--user", "unmask", "--runtime", "cortexd.service"], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("command", "obstacle"),
    [
        (
            ["systemd-run", "--user", "--quiet", "--pipe", "--wait", "--property=RestrictNamespaces=true"],
            "making one: Operation not permitted",
        ),
        (
            ["unshare", "--user", "--map-root-user", "sh", "-c", 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"', "-"],
            "making one: No space left on device",
        ),
    ],
)  # fmt: skip
def test_namespaces_that_the_kernel_refuses(command: list[str], obstacle: str) -> None:
    attempt = [sys.executable, "-I", "-S", userns.__file__]
    done = subprocess.run([*command, *attempt], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{obstacle}\n", "")
