"""What a person at a terminal sees while something is waited for."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time

import pytest

from cortexctl.progress import compose
from tests.cli.canned import model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

WAITS = "Waiting for the server: /health answers 503 (38 MiB)"


@pytest.fixture
def two(fake: FakeDaemon) -> FakeDaemon:
    fake.add(model("a", UsualLoadUSec=6_000_000), model("b"))
    return fake


@pytest.mark.parametrize(
    ("texts", "usual", "columns", "line"),
    [
        ({"p1": WAITS}, 6, 77, f"Starting p1: 2s of usually 6s ({WAITS[:44]}…)"),
        ({"p1": WAITS}, 6, 120, f"Starting p1: 2s of usually 6s ({WAITS})"),
        ({"p1": WAITS}, 0, 77, f"Starting p1: 2s ({WAITS})"),
        ({"p1": "loads", "p2": "waits"}, 6, 77, "Starting p1, p2: 2s of usually 6s (p1: loads; p2: waits)"),
        ({"p1": "", "p2": "waits"}, 6, 77, "Starting p1, p2: 2s of usually 6s (p2: waits)"),
        ({"p1": "", "p2": ""}, 6, 77, "Starting p1, p2: 2s of usually 6s"),
        ({"p1": WAITS}, 6, 27, "Starting p1: 2s of 6s"),
        ({"llama-70b": WAITS, "qwen": ""}, 600, 27, "Starting llam…: 2s of 10min"),
        ({"llama-70b": WAITS}, 600, 8, "…: 2s of"),
        ({"a": "x"}, 6, 0, ""),
    ],
)
def test_the_line(texts: dict[str, str], usual: float, columns: int, line: str) -> None:
    """What is waited for and the figures first; what the server says is what there is too little room for."""
    assert compose("Starting", texts, 2.2, usual, columns) == line
    assert len(line) <= columns


def rest(controller: int) -> bytes:
    """Everything up to where the terminal is closed."""
    shown = b""
    while True:
        try:
            shown += os.read(controller, 65536)
        except OSError:
            return shown


def on_terminal(cli: Cli, fake: FakeDaemon, *arguments: str, until: str, columns: int = 80) -> str:
    """What a terminal gets from a command that is interrupted when `until`, a pattern, has been shown."""
    fake.held = {"Wait"}
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    cli.environment["TERM"] = "xterm"
    with cli.started(*arguments, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        fake.wait_for("Wait" if arguments[0] == "start" else "ListModels")
        fake.change("a", StatusText="loading\x1b[2J 40% (1 min 5 s, 38 MiB)", State="starting")
        shown = b""
        while not re.search(until.encode(), shown):
            shown += os.read(controller, 65536)
        process.send_signal(signal.SIGINT)
        process.wait()
        shown += rest(controller)
    os.close(controller)
    return shown.decode()


def test_progress_on_a_terminal(cli: Cli, two: FakeDaemon) -> None:
    shown = on_terminal(cli, two, "start", "a", until="MiB")
    assert "Starting a: 0s of usually 6s (loading\\x1b[2J 40% (38 MiB))" in shown, "not the waiter's seconds as well"
    assert "\x1b[2J" not in shown, "no text from outside steers the terminal"
    last = shown.rstrip().rpartition("\x1b[K")[2]
    assert last == "cortexctl: interrupted; starting a goes on, see 'cortexctl status a'", "the line is cleared"


def test_progress_fits_into_the_line(cli: Cli, two: FakeDaemon) -> None:
    shown = on_terminal(cli, two, "start", "a", "b", columns=24, until="Starting")
    lines = [part for part in shown.split("\r\x1b[K") if "Starting" in part]
    assert lines and max(map(len, lines)) <= 23 and "0s of 6s" in lines[0]


def test_no_progress_when_quiet(cli: Cli, two: FakeDaemon) -> None:
    two.held = {"Wait"}
    with cli.started("start", "a", "--quiet") as process:
        two.wait_for("Wait")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert (out, errors) == ("", "cortexctl: interrupted; starting a goes on, see 'cortexctl status a'\n")


@pytest.mark.parametrize("words", [["wait", "a"], ["health", "a", "--wait"]])
def test_waiting_shows_progress_counted_from_the_start(cli: Cli, fake: FakeDaemon, words: list[str]) -> None:
    """Also the frames between two signals: the elapsed time goes on while nothing happens."""
    begun = int((time.time() - 100) * 1e6)
    fake.add(model("a", State="starting", UsualLoadUSec=200_000_000, StateChangeTimestamp=begun))
    shown = on_terminal(cli, fake, *words, until="MiB.*\r.*MiB")
    assert re.search(r"Waiting for a: 1min 4\ds of usually 3min 20s \(loading\\x1b\[2J 40% \(38 M", shown)
    assert shown.endswith("\r\x1b[K"), "the line is cleared"


def test_waiting_ends_on_a_terminal_as_it_does_elsewhere(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="starting"))
    controller, terminal = pty.openpty()
    with cli.started("wait", "a", "--timeout", "0.3", stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        assert process.wait() == 1
    shown = rest(controller)
    assert b"Waiting for a: " in shown
    assert b"\r\x1b[Kcortexctl: a was not ready after 0.3 s; it is starting\r\n" in shown, "on a line of its own"
    os.close(controller)
