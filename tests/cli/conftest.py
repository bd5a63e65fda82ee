"""The command line as a process of its own, against a fake daemon on a private bus."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_daemon import FakeDaemon
from tests.cli.service import DEADLINE

PROJECT = Path(__file__).parents[2]


class Cli:
    """Runs cortexctl and looks at how it ends."""

    def __init__(self, address: str) -> None:
        self.environment = {
            key: value for key, value in os.environ.items() if key in ("HOME", "PATH", "XDG_RUNTIME_DIR", "LANG")
        } | {"DBUS_SESSION_BUS_ADDRESS": address, "PYTHONPATH": str(PROJECT), "TZ": "UTC"}
        self.program = "cortexctl"

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs the program under its name."""
        start = f"import sys; sys.argv[0] = '/usr/bin/{self.program}'; from cortexctl.main import main; main()"
        return [sys.executable, "-c", start, *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
            env=self.environment | environment,
            cwd=PROJECT,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def ok(self, *arguments: str) -> str:
        """What it prints when all goes well; nothing is said on standard error."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def fails(self, *arguments: str, code: int = 1) -> str:
        """Its one-sentence error."""
        done = self.run(*arguments)
        assert done.returncode == code, done
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr.removeprefix(f"{self.program}: ").rstrip("\n")

    def json(self, *arguments: str) -> Any:
        """What it prints with --json, when all goes well."""
        return json.loads(self.ok(*arguments, "--json"))

    def on_terminal(self, columns: int, *arguments: str) -> list[str]:
        """What it prints on a terminal without colours, of so many columns."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
        self.environment["NO_COLOR"] = "1"
        said = b""
        with self.started(*arguments, stdout=slave):
            os.close(slave)
            with suppress(OSError):  # so ends reading from a terminal whose other side is closed
                while part := os.read(master, 4096):
                    said += part
        os.close(master)
        return said.decode().splitlines()

    @contextmanager
    def started(self, *arguments: str, **keywords: Any) -> Iterator[subprocess.Popen[str]]:
        """It runs inside the context; a read from it ends when it has not ended within the deadline."""
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            cwd=PROJECT,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **keywords},
        )
        watchdog = threading.Timer(DEADLINE, process.kill)
        watchdog.start()
        with process:
            yield process
            process.kill()
        watchdog.cancel()


@pytest.fixture
def cli(private_bus: str) -> Cli:
    """The command line on a private bus, without a daemon."""
    return Cli(private_bus)


@pytest.fixture
def fake(private_bus: str) -> Iterator[FakeDaemon]:
    """A daemon with canned answers on the same bus."""
    with FakeDaemon(private_bus) as daemon:
        yield daemon
