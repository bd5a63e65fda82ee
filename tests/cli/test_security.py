"""The verb security: what it prints, and how it ends."""

from __future__ import annotations

import pytest

from tests.cli.canned import model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

GOOD = ("PrivateTmp", "yes", "in force", "the server cannot see /tmp")
MOOT = ("RestrictRealtime", "yes", "moot", "this user may not anyway")
OFF = ("PrivateDevices", "no", "off", "")
BAD = ("ProtectHome", "read-only", "not in force", "the server could write to your home\x1b[2J")
UNKNOWN = ("ProtectHome", "read-only", "unknown", "no answer")


def test_all_is_in_force(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.answers["GetSecurity"] = ([GOOD, MOOT, OFF],)
    assert cli.ok("security", "a").splitlines() == [
        "DIRECTIVE         REQUESTED  EFFECT    WHY",
        "PrivateTmp        yes        in force  the server cannot see /tmp",
        "RestrictRealtime  yes        moot      this user may not anyway",
        "PrivateDevices    no         off",
    ]
    assert fake.asked[-1].body == ({},)
    cli.ok("security", "a", "--probe")
    assert fake.asked[-1].body == ({"probe": ("b", True)},)


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (74, ["PrivateTmp  yes        in force  the server cannot see the machine's /tmp,",
              "                                 nor see the machine's /var/tmp"]),
        (50, ["PrivateTmp  yes        in force  the server cannot see the machine's /tmp, nor see the machine's /var/tmp"]),
    ],
)  # fmt: skip
def test_on_a_terminal_reasons_end_at_its_edge(cli: Cli, fake: FakeDaemon, columns: int, lines: list[str]) -> None:
    fake.add(model("a"))
    why = "the server cannot see the machine's /tmp, nor see the machine's /var/tmp"
    fake.answers["GetSecurity"] = ([("PrivateTmp", "yes", "in force", why)],)
    assert cli.on_terminal(columns, "security", "a")[1:] == lines


@pytest.mark.parametrize("row", [BAD, UNKNOWN])
def test_what_is_not_in_force_is_a_failure(cli: Cli, fake: FakeDaemon, row: tuple[str, ...]) -> None:
    fake.add(model("a"), model("b"))
    fake.answers["GetSecurity"] = lambda asked: ([row] if asked.path.endswith("/b") else [GOOD],)
    done = cli.run("security", "*")
    assert (done.returncode, done.stderr) == (1, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# a", "# b"]
    assert lines[-1].startswith(f"ProtectHome  read-only  {row[2]}")


def test_a_model_without_a_sandbox_is_warned_of(cli: Cli, fake: FakeDaemon) -> None:
    warning = "security=none: its server has no sandbox, and can do whatever you can"
    fake.add(model("a", Warnings=[warning, "port=1: another"]), model("b"))
    fake.answers["GetSecurity"] = ([OFF],)
    done = cli.run("security", "a", "b")
    assert (done.returncode, done.stderr) == (0, f"Warning: a: {warning}\n")


def test_json(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    fake.answers["GetSecurity"] = ([GOOD],)
    directives = [dict(zip(("directive", "requested", "effect", "why"), GOOD, strict=True))]
    assert cli.json("security", "a") == [{"Name": "a", "directives": directives}]


def test_a_model_that_is_not_there(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    done = cli.run("security", "nope", "a")
    assert done.returncode == 4 and "NoNewPrivileges" in done.stdout
