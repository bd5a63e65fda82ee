"""What a hostile server writes, as a person sees it: not one character that steers the terminal gets through."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from tests.hostile import speaker
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import free_port, make_program
from tests.support.wait import until

OURS = re.compile("\x1b\\[[0-9;]*m|\x1b\\[K|\r\n|\x1b\\[\\?25[lh]")
"""What cortexctl writes to a terminal itself: colours, the end of a line, the cursor."""
SETTINGS = ["health.interval_seconds=1", "health.timeout_seconds=1", "health.max_failures=500", "Restart=no"]
VERBS = [
    "status {}", "status -n 200 {}", "show {}", "why {}", "health {}", "events {}", "check {}", "list", "logs {}", "logs -o cat {}",
    "logs -o short-full {}", "logs -o verbose {}", "logs -o json {}", "logs -o with-unit {}", "logs --json {}", "cat {}", "backends",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(shared_daemon: Daemon) -> list[str]:
    """A hostile model in each of its moods."""
    cortex = Cortex()
    program = make_program(Path.home() / "hostile" / "llama-server", Path(speaker.__file__))
    (program.parent / "model.gguf").write_bytes(lab.TINY_GGUF.read_bytes())
    names = []
    for mode in ("well", "sick", "dead"):
        name = f"speaks-{mode}"
        cortex.run("register", name, "--path", str(program.parent / "model.gguf"), "--backend", "llamacpp", "--exec", str(program),
                   "--gpus", "none", "--memory", "1G", "--port", str(free_port()), f"--extra-args=--hostile-mode {mode}",
                   *(f"--set={each}" for each in SETTINGS))  # fmt: skip
        cortex.run("start", name, check=mode != "dead")
        names.append(name)
    until(lambda: cortex.properties("speaks-sick")["HealthFailures"] > 0, "a hostile refusal")
    cortex.until_state("speaks-dead", "failed", "stopped")
    until(lambda: "hostile line" in cortex.run("logs", "speaks-well", check=False).stdout, "its words in the journal")
    return names


def steering(text: str) -> set[str]:
    """What steers a terminal: controls but line ends and tabs, and characters that are seen only by their effect."""
    return {c for c in text if (unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")) and c not in "\n\t"}


def on_terminal(*arguments: str, until_seen: str = "") -> str:
    """What a person's terminal gets."""
    main, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "SYSTEMD_PAGER": "cat", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen([sys.executable, "-m", "cortexctl", *arguments], stdin=other, stdout=other, stderr=other,
                               env=environment, cwd=lab.PROJECT)  # fmt: skip
    os.close(other)
    seen, end = b"", time.monotonic() + 15
    while time.monotonic() < end and not (until_seen and until_seen.encode() in seen):
        if select.select([main], [], [], 0.1)[0]:
            try:
                seen += os.read(main, 65536)
            except OSError:  # the other end is closed
                break
        elif process.poll() is not None:
            break
    if until_seen:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"{arguments} goes on; it has said {seen!r}") from None
    finally:
        os.close(main)
    return seen.decode(errors="surrogateescape")


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_that_steers_reaches_a_pipe(models: list[str], verb: str) -> None:
    for name in models if "{}" in verb else [""]:
        done = subprocess.run([sys.executable, "-m", "cortexctl", *verb.format(name).split()], capture_output=True, check=False,
                              stdin=subprocess.DEVNULL, cwd=lab.PROJECT, timeout=60)  # fmt: skip
        text = (done.stdout + done.stderr).decode(errors="surrogateescape")
        assert text and not steering(text), (verb, name, steering(text))
        if "json" in verb:
            assert text.count("\n") == len([json.loads(line) for line in text.splitlines()])


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("cat {}", "backends", "show {}")])
def test_nothing_that_steers_reaches_a_terminal(models: list[str], verb: str) -> None:
    for name in models if "{}" in verb else [""]:
        text = on_terminal(*verb.format(name).split())
        left = steering(OURS.sub("", text))
        assert text and not left, (verb, name, left)
        # Of ours, only colours: those that the server asked for are gone with their sequences.
        assert "hostile line \x1b" not in text


@pytest.mark.parametrize("output", ["short", "cat"])
def test_following_shows_new_lines_at_once_and_harmlessly(models: list[str], output: str) -> None:
    text = on_terminal("logs", "-f", "-o", output, "-n", "all", "speaks-well", until_seen="hostile line")
    assert "hostile line" in text
    assert not steering(OURS.sub("", text))


def test_a_failed_start_says_it_harmlessly(models: list[str]) -> None:
    text = on_terminal("start", "speaks-dead")
    assert "speaks-dead" in text and not steering(OURS.sub("", text).replace("\r", "")), text


def test_the_words_themselves_are_there(models: list[str]) -> None:
    """Neutralised is not hidden: a person sees that, and what, it tried."""
    text = Cortex().out("logs", "-o", "cat", "speaks-well")
    assert "\\u202eright to left" in text and "hostile line colour" in text
