"""The verb repair: what it shows, when it asks, and what it leaves alone."""

from __future__ import annotations

import os
import pty
import subprocess
from typing import Any

import pytest

from tests.cli.canned import drift, model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.service import Asked

EDITED = "[Service]\nNice=5\x1b[2J\n"


def drifted(asked: Asked) -> tuple[Any, ...]:
    """b was edited, c is gone."""
    looks = bool(asked.body[0])
    if asked.path.endswith("/b"):
        return (drift("edited", EDITED, "" if looks else "/u/cortex-b.service.kept-1"),)
    return (drift("missing", "") if asked.path.endswith("/c") else drift(),)


@pytest.fixture
def three(fake: FakeDaemon) -> FakeDaemon:
    fake.add(model("a"), model("b"), model("c"))
    fake.answers["Repair"] = drifted
    return fake


def repaired(fake: FakeDaemon) -> list[str]:
    return [asked.path[-1] for asked in fake.calls("Repair") if not asked.body[0]]


def test_with_yes_all_are_written_again(cli: Cli, three: FakeDaemon) -> None:
    assert cli.ok("repair", "--yes").splitlines() == [
        "b: /u/cortex-a.service (edited)",
        "--- as it is",
        "+++ as cortexd writes it",
        "@@ -1,3 +1,2 @@",
        " [Service]",
        "-Nice=5\\x1b[2J",
        " ",
        "c: /u/cortex-a.service (missing)",
        "b: its unit file is written again; what was there is kept as /u/cortex-b.service.kept-1",
        "c: its unit file is written again",
    ]
    assert repaired(three) == ["b", "c"]


def test_without_a_terminal_nothing_is_replaced(cli: Cli, three: FakeDaemon) -> None:
    done = cli.run("repair")
    assert done.returncode == 1 and "Nice=5" in done.stdout
    assert done.stderr == (
        "cortexctl: nothing was changed: repair asks before it replaces a file, and there is no terminal; --yes answers it\n"
    )
    assert repaired(three) == []


def test_what_nobody_wrote_needs_no_question(cli: Cli, three: FakeDaemon) -> None:
    assert cli.ok("repair", "a", "c").splitlines() == [
        "a: its unit file is as cortexd wrote it",
        "c: /u/cortex-a.service (missing)",
        "c: its unit file is written again",
    ]
    assert repaired(three) == ["c"]


@pytest.mark.parametrize(("answer", "code", "done"), [("y\n", 0, ["b"]), ("\n", 1, []), ("no\n", 1, [])])
def test_on_a_terminal_it_asks(cli: Cli, three: FakeDaemon, answer: str, code: int, done: list[str]) -> None:
    master, slave = pty.openpty()
    with cli.started("repair", "b", stdin=slave, stderr=slave, stdout=subprocess.PIPE) as process:
        os.write(master, answer.encode())
        assert process.wait() == code
    os.close(slave)
    assert b"Write the unit file of b again? [y/N]" in os.read(master, 4096)
    os.close(master)
    assert repaired(three) == done


def test_nothing_to_do(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    done = cli.run("repair")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "cortexctl: every unit file is as cortexd wrote it\n"


def test_json(cli: Cli, three: FakeDaemon) -> None:
    found = cli.json("repair", "--yes")
    assert [(record["Name"], record["State"], record["Kept"]) for record in found] == [
        ("b", "edited", "/u/cortex-b.service.kept-1"),
        ("c", "missing", ""),
    ]
    assert cli.run("repair", "b", "--json").returncode == 1


def test_a_huge_file_is_no_flood(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.answers["Repair"] = (drift("foreign", "\n".join(f"line {n}" for n in range(100_000))),)
    lines = cli.ok("repair", "a", "--yes").splitlines()
    assert len(lines) < 210 and "more lines" in lines[-2]
