"""Real failures of a real llama-server under a real systemd, and what `cortexctl why` makes of each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortexd.names import unit_name
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program
from tests.support.wait import until

DROP_INS = Path.home() / ".config" / "systemd" / "user"


@pytest.fixture
def ctl(shared_daemon: Daemon, llama_server: Path, tiny_gguf: Path) -> Iterator[Cortex]:
    yield (client := Cortex())
    client.run("unregister", "--force", "*", check=False)


def systemctl(*arguments: str, check: bool = False) -> None:
    """Past cortexd, which would refuse some of these starts at once."""
    subprocess.run(["systemctl", "--user", *arguments], check=check, capture_output=True, timeout=60)


def program(file: Path, script: str) -> Path:
    """A server that does this when it is to serve."""
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo 1\n{script}\n')
    file.chmod(0o755)
    return file


def registered(ctl: Cortex, name: str, *more: str, **settings: Any) -> str:
    ctl.register_tiny(name, "--set", "Restart=no", *more, **settings)
    return name


def why(ctl: Cortex, name: str, *, started: bool = True) -> dict[str, Any]:
    """Start it through systemd, and ask for the cause once it is over."""
    if started:
        systemctl("start", unit_name(name))
    ctl.until_state(name, "failed", "stopped", "restarting")
    (found,) = ctl.json("why", name)
    return dict(found)


@pytest.mark.parametrize(
    ("content", "cause", "says"),
    [
        (b"this is no model at all, but long enough", "model-broken", "begins with 'this' instead of 'GGUF'"),
        (lambda whole: whole[:300_000], "model-broken", "truncated"),
        (lambda whole: whole[:1000], "model-broken", "broken or truncated"),
        (lambda whole: whole.replace(b"llama", b"lxxma", 1), "unsupported-architecture", "lxxma"),
        (None, "model-missing", "does not exist"),
        (None, "model-missing", "to load"),
    ],
    ids=["wrong", "truncated", "cut", "architecture", "missing", "missing-at-home"],
)
def test_a_model_file_that_is_no_good(ctl: Cortex, tmp_path: Path, content: Any, cause: str, says: str) -> None:
    # What lies in /tmp is bound into the sandbox, which then cannot be made without it.
    file = (Path.home() if says == "to load" else tmp_path) / "model.gguf"
    whole = lab.TINY_GGUF.read_bytes()
    file.write_bytes(whole)
    registered(ctl, "a", model=file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content(whole) if callable(content) else content)
    found = why(ctl, "a")
    assert (found["Cause"], says in found["Sentence"]) == (cause, True), found
    assert found["Remedy"]
    assert found["Sentence"] in ctl.run("status", "a", check=False).stdout


def test_a_model_file_that_may_not_be_read(ctl: Cortex, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(lab.TINY_GGUF.read_bytes())
    registered(ctl, "a", model=file)
    file.chmod(0)
    found = why(ctl, "a")
    assert (found["Cause"], str(file) in found["Sentence"]) == ("sandbox-denied", True), found


def test_a_port_that_somebody_else_took(ctl: Cortex) -> None:
    registered(ctl, "a")
    port = ctl.properties("a")["Settings"]["port"]
    with socket.create_server(("127.0.0.1", port)):
        found = why(ctl, "a")
    assert (found["Cause"], str(port) in found["Sentence"]) == ("port-in-use", True), found


@pytest.mark.parametrize(
    ("arguments", "cause", "says"),
    [
        ("--bogus-flag", "bad-option", "--bogus-flag"),
        ("--device CUDA0", "gpu-not-visible", "CUDA0"),
        ("--threads many", "bad-option", "--threads"),
    ],
)
def test_an_option_that_the_server_refuses(ctl: Cortex, arguments: str, cause: str, says: str) -> None:
    registered(ctl, "a", "--extra-args", arguments)
    found = why(ctl, "a")
    assert (found["Cause"], says in found["Sentence"]) == (cause, True), found


def test_a_context_that_does_not_fit(ctl: Cortex) -> None:
    registered(ctl, "a", "--extra-args", "--fit off --parallel 1")
    ctl.run("set", "a", "max_model_len=100000000")
    limited(ctl, "a", "LimitAS=3G")
    found = why(ctl, "a")
    assert (found["Cause"], "100000000" in found["Sentence"]) == ("context-too-large", True), found


def limited(ctl: Cortex, name: str, *directives: str) -> None:
    """A drop-in, which goes with the model."""
    folder = DROP_INS / f"{unit_name(name)}.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text("[Service]\n" + "\n".join(directives) + "\n")
    systemctl("daemon-reload", check=True)


@pytest.fixture(autouse=True)
def no_drop_ins() -> Iterator[None]:
    yield
    for file in DROP_INS.glob("cortex-*.d/test.conf"):
        file.unlink()
        file.parent.rmdir()
    systemctl("daemon-reload")


def test_an_executable_that_is_gone_or_none(ctl: Cortex, tmp_path: Path) -> None:
    server = program(tmp_path / "server", "exit 3")
    registered(ctl, "a", "--exec", str(server))
    server.unlink()
    server.symlink_to("/nowhere/server")
    found = why(ctl, "a")
    assert (found["Cause"], str(server) in found["Sentence"]) == ("executable-missing", True), found
    server.unlink()
    server.write_text("no program\n")
    found = why(ctl, "a")
    assert (found["Cause"], "Permission denied" in found["Sentence"]) == ("executable-broken", True), found
    server.write_bytes(b"\x7fELF nonsense")
    server.chmod(0o755)
    found = why(ctl, "a")
    assert (found["Cause"], "Exec format error" in found["Sentence"]) == ("executable-broken", True), found


@pytest.mark.parametrize(
    ("script", "cause", "says"),
    [
        ("exec mkdir ~/new-folder", "sandbox-denied", "new-folder"),
        ("exec python3 -c 'import os; os.mkdir(os.path.expanduser(\"~/new-folder\"))'", "sandbox-denied", "new-folder"),
        ("exec python3 -m no_such_module", "missing-library", "no_such_module"),
        ("kill -SEGV $$; sleep 5", "crashed", "SIGSEGV"),
        ("exit 7", "unknown", "status 7"),
    ],
)
def test_programs_that_fail(ctl: Cortex, tmp_path: Path, script: str, cause: str, says: str) -> None:
    registered(ctl, "a", "--exec", str(program(tmp_path / "server", script)))
    found = why(ctl, "a")
    assert (found["Cause"], says in found["Sentence"]) == (cause, True), found


def test_a_sandbox_that_cannot_be_made(ctl: Cortex) -> None:
    registered(ctl, "a")
    limited(ctl, "a", "ReadWritePaths=/nowhere/at/all")
    found = why(ctl, "a")
    assert (found["Cause"], "/nowhere/at/all" in found["Sentence"]) == ("sandbox-failed", True), found


def test_killed_by_whom(ctl: Cortex) -> None:
    registered(ctl, "a")
    ctl.run("start", "a")
    (running,) = ctl.json("why", "a")
    assert (running["Cause"], running["Sentence"]) == ("running", "it is ready")
    os.kill(ctl.properties("a")["MainPID"], signal.SIGKILL)
    found = why(ctl, "a", started=False)
    assert (found["Cause"], "SIGKILL from outside" in found["Sentence"]) == ("killed", True), found
    ctl.run("start", "a")
    ctl.run("kill", "-s", "KILL", "a")
    found = why(ctl, "a", started=False)
    assert (found["Cause"], "cortexctl kill" in found["Sentence"]) == ("killed", True), found


def test_too_slow_to_start_and_to_stop(ctl: Cortex, tmp_path: Path) -> None:
    registered(ctl, "a", "--set", "health.endpoint=/nowhere", "--set", "health.startup_timeout_seconds=1")
    found = why(ctl, "a")
    assert (found["Cause"], "not ready after 1 s" in found["Sentence"]) == ("start-timeout", True), found
    registered(ctl, "b", "--exec", str(make_program(tmp_path / "server")), "--extra-args=--fake-ignore-term")
    limited(ctl, "b", "TimeoutStopSec=1")
    ctl.run("start", "b")
    systemctl("stop", unit_name("b"))
    found = why(ctl, "b", started=False)
    assert (found["State"], found["Cause"]) == ("stopped", "stopped"), (
        found
    )  # a stop is a stop, also where it had to kill
    assert "stop-unclean" in [event["Kind"] for event in ctl.json("events", "b")]


def test_a_crash_loop(ctl: Cortex, tmp_path: Path) -> None:
    server = program(tmp_path / "server", "exit 9")
    ctl.register_tiny(
        "a", "--exec", str(server), "--set", "RestartSec=0.1", "--set", "StartLimitBurst=3",
    )  # fmt: skip
    systemctl("start", unit_name("a"))
    ctl.until_state("a", "failed")
    found = until(lambda: (f := ctl.json("why", "a")[0])["Cause"] == "crash-loop" and f, "the cause of the last run")
    assert found and found["Sentence"].count("systemd") == 1, "the limit is told once"
    assert "status 9" in found["Sentence"] and "'cortexctl start a'" in found["Remedy"]


def test_stopped_never_started_and_unknown(ctl: Cortex) -> None:
    registered(ctl, "a")
    assert why(ctl, "a", started=False)["Cause"] == "never-started"
    ctl.run("start", "a")
    ctl.run("stop", "a")
    found = why(ctl, "a", started=False)
    assert (found["Cause"], "it was stopped by" in found["Sentence"]) == ("stopped", True), found
    ctl.run("start", "a")
    systemctl("stop", unit_name("a"))
    found = why(ctl, "a", started=False)
    assert (found["Cause"], "by systemd" in found["Sentence"]) == ("stopped", True), found
    assert "no model" in ctl.fails("why", "nobody", status=4)


def test_a_start_names_the_cause_and_it_outlives_the_daemon_and_systemds_memory(
    ctl: Cortex, shared_daemon: Daemon, tmp_path: Path
) -> None:
    server = program(tmp_path / "server", "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    registered(ctl, "a", "--exec", str(server))
    done = ctl.run("start", "a", check=False)
    assert (done.returncode, "the disk is full" in done.stderr) == (1, True), done.stderr
    before = why(ctl, "a", started=False)
    event = ctl.json("events", "a", "--kind", "cause")[-1]
    assert (event["Message"], event["InvocationID"]) == (before["Sentence"], ctl.properties("a")["InvocationID"])
    shared_daemon.stop()
    systemctl("reset-failed", unit_name("a"))  # systemd forgets the unit
    shared_daemon.start()
    after = why(ctl, "a", started=False)
    assert (after["Cause"], after["Sentence"], after["Evidence"]) == (
        "disk-full", before["Sentence"], before["Evidence"],
    )  # fmt: skip
