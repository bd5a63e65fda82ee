"""Fixtures that several rooms' tests use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.wait import until


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """A real llama-server."""
    assert lab.LLAMA_SERVER.exists(), "no llama-server could be had: see what scripts/get-llama-server says"
    return lab.LLAMA_SERVER


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """A tiny model that llama-server loads in milliseconds."""
    assert lab.TINY_GGUF.exists(), "no tiny model could be made: see what scripts/tiny_gguf.py says"
    return lab.TINY_GGUF


@contextmanager
def message_bus(folder: Path) -> Iterator[str]:
    """The address of a dbus-daemon that ends with the block."""
    address = f"unix:path={folder}/bus"
    command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address", f"--address={address}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()  # it listens now
    try:
        yield address
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture
def private_bus(tmp_path: Path) -> Iterator[str]:
    """The address of a dbus-daemon of this test's own."""
    with message_bus(tmp_path) as address:
        yield address


class Daemon:
    """A real cortexd on the private user manager, as a process of its own."""

    program = ("-m", "cortexd.app")
    """What Python runs."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        """Start it and wait until it owns its name."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "--debug"],
                stderr=log, stdout=log, env={**os.environ, **environment}, cwd=lab.PROJECT,
            )  # fmt: skip
        until(self._ready, "cortexd's name on the bus")

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"cortexd ended with {self.process.returncode}:\n{self.log.read_text()}"
        owner = subprocess.run(
            ["busctl", "--user", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
             "GetNameOwner", "s", "org.cortexlinux.Cortex1"],
            capture_output=True, check=False,
        )  # fmt: skip
        return owner.returncode == 0

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def stop(self) -> None:
        """End it if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGTERM)


@contextmanager
def _running(log: Path, kind: type[Daemon] = Daemon) -> Iterator[Daemon]:
    daemon = kind(log)
    daemon.start()
    yield daemon
    if daemon.process is None or daemon.process.poll() is not None:
        daemon.start()
    client = Cortex()
    client.run("unregister", "--force", "*", check=False)
    daemon.stop()
    shutil.rmtree(Path.home() / ".cortex", ignore_errors=True)
    sys.stderr.write(daemon.log.read_text())


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """cortexd, running; every model is gone afterwards, and its log is shown when the test fails."""
    with _running(tmp_path / "cortexd.log") as daemon:
        yield daemon


@pytest.fixture
def cortex(daemon: Daemon) -> Cortex:
    """The command line, talking to the real daemon."""
    return Cortex()


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The same for all tests of a module, which keep to models of their own."""
    with _running(tmp_path_factory.mktemp("daemon") / "cortexd.log") as daemon:
        yield daemon
