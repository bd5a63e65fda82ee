"""The verb doctor: what it prints, how it ends, what --fix asks and does; and that it works when nothing answers."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortexd.version import VERSION
from tests.cli.canned import backend, model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.service import Asked, FakeSystemd, Refusal
from tests.cli.test_doctor_session import FakeLogind

SLOWEST = 10.0
"""Seconds for the whole verb, however sick the machine is."""


class FakeManager(FakeSystemd):
    """The user's manager with all that doctor asks of it."""

    def __init__(self, address: str, **unit: str | int) -> None:
        super().__init__(address, **{"ActiveState": "active", "UnitFileState": "enabled", **unit})
        self.failed: list[str] = []

    def reply(self, asked: Asked, interface: str, signature: str) -> tuple[str, tuple[Any, ...]]:
        if asked.member == "ListUnitsByPatterns":
            assert "cortex-*.service" in asked.body[1]
            path = "/org/freedesktop/systemd1/unit/x"
            return "a(ssssssouso)", ([(u, "", "", "", "", "", path, 0, "", "/") for u in self.failed],)
        if asked.member == "GetAll" and asked.body[0].endswith(".Manager"):
            values = {"Version": ("s", "257"), "SystemState": ("s", "running"), "ControlGroup": ("s", "/nowhere")}
            return "a{sv}", (values,)
        if asked.member == "GetAll":
            return "a{sv}", ({k: ("i" if isinstance(v, int) else "s", v) for k, v in self.unit.items()},)
        return super().reply(asked, interface, signature)


@pytest.fixture
def at_home(cli: Cli, tmp_path: Path, private_bus: str) -> Cli:
    """In an empty home, with the private bus for a system bus, and one program that serves models."""
    home = tmp_path / "home"
    bin_ = home / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "llama-server").write_text("#!/bin/sh\necho 'version: 11669 (abc)'\n")
    (bin_ / "llama-server").chmod(0o755)
    cli.environment |= {
        "HOME": str(home),
        "DBUS_SYSTEM_BUS_ADDRESS": private_bus,
        "PATH": f"{bin_}:{cli.environment['PATH']}",
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    return cli


@pytest.fixture
def well(at_home: Cli, fake: FakeDaemon, private_bus: str) -> Iterator[FakeLogind]:
    """All that is on the bus of a healthy session."""
    with FakeManager(private_bus), FakeLogind(private_bus, lingers=True) as logind:
        fake.answers["ListBackends"] = (
            [backend("llamacpp", Executable=str(Path(at_home.environment["HOME"], "bin", "llama-server")))],
        )
        yield logind


def wrong(cli: Cli, *arguments: str) -> dict[str, str]:
    """What is to be fixed, by check; the texts."""
    done = cli.run("doctor", "--json", *arguments)
    rows = [row for row in json.loads(done.stdout) if row["level"] in ("warning", "error")]
    assert done.returncode == (1 if rows else 0)
    return {row["check"]: row["text"] for row in rows}


NOT_HERE = {"install"}
"""What a fake session cannot have: the bus has no activation file."""


def test_a_healthy_session(at_home: Cli, fake: FakeDaemon, well: FakeLogind) -> None:
    fake.add(model("a"), model("b", Settings={"port": ("t", 8081)}))
    began = time.monotonic()
    assert set(wrong(at_home)) == NOT_HERE
    assert time.monotonic() - began < 5
    done = at_home.run("doctor")
    assert done.stderr == "" and done.stdout.startswith("Session\n  ✓ the message bus answers at unix:path=")
    for line in (
        "  ✓ systemd 257, your manager is running\n",
        "  ✓ your services run without a login (linger)\n",
        f"  ✓ cortexd {VERSION} runs, 2 models registered\n",
        "  ✓ every model has a port of its own that nothing else is given\n",
        "  ✓ sandboxes work: users may make namespaces and mount in them\n",
        f"  ✓ llamacpp 11669 ({at_home.environment['HOME']}/bin/llama-server)\n",
        "  ✓ there is no ~/.cortex yet\n",
    ):
        assert line in done.stdout
    (asked,) = fake.calls("ListBackends")[-1:]
    assert asked.body == ({"search_path": ("s", at_home.environment["PATH"])},)


def test_findings_with_their_remedies(at_home: Cli, fake: FakeDaemon, well: FakeLogind) -> None:
    well.lingers = False
    fake.version = "0.0.1"
    fake.warnings = ["row 3 cannot be read"]
    fake.add(model("a"), model("b"))
    found = wrong(at_home)
    assert set(found) - NOT_HERE == {"linger", "daemon", "daemon-warning", "port"}
    assert found["port"] == "port 8080 is that of a and b: one of them can run at a time"
    done = at_home.run("doctor")
    assert "  ! linger is off: models end when you log out, and none start at boot\n      loginctl " in done.stdout
    assert done.stdout.endswith("\n5 things to fix\n")
    assert done.stderr == "cortexctl: 'cortexctl doctor --fix' repairs 2 of them, and asks before each\n"


def test_on_a_terminal_a_finding_ends_at_its_edge_and_a_remedy_can_be_copied(
    at_home: Cli, fake: FakeDaemon, well: FakeLogind
) -> None:
    well.lingers = False
    fake.version = "0.0.1"
    lines = at_home.on_terminal(60, "doctor")
    at = next(number for number, line in enumerate(lines) if line.startswith("  ! linger is off"))
    assert lines[at : at + 3] == [
        "  ! linger is off: models end when you log out, and none",
        "    start at boot",
        f"      loginctl enable-linger {user()}",
    ]
    longer = [line for line in lines if len(line) > 60 and " " in line.strip()]  # but for a path, which stays whole
    assert longer and all(line.startswith("      ") for line in longer)


def test_a_manager_that_comes_to_its_bus_a_moment_later_is_met(at_home: Cli, private_bus: str) -> None:
    """As where our connection is the first one, with which the bus itself begins."""
    late: list[FakeManager] = []

    def come() -> None:
        late.append(FakeManager(private_bus, LoadState="not-found").__enter__())

    timer = threading.Timer(0.7, come)
    timer.start()
    try:
        assert "manager" not in wrong(at_home)
    finally:
        timer.join()
        late[0].__exit__(None, None, None)


def test_quiet_shows_only_what_is_wrong(at_home: Cli, well: FakeLogind) -> None:
    well.lingers = False
    done = at_home.run("doctor", "-q")
    assert "✓" not in done.stdout and "! linger is off" in done.stdout and "to fix" not in done.stdout


def test_hostile_text_and_a_plain_terminal(at_home: Cli, fake: FakeDaemon, well: FakeLogind) -> None:
    fake.warnings = ["\x1b]0;owned\x07 row\u202e"]
    fake.answers["ListBackends"] = ([backend("x", Problem="y: \x1b[2J\nz")],)
    done = at_home.run("doctor", PYTHONIOENCODING="ascii")
    assert "\\x1b]0;owned\\x07 row\\u202e" in done.stdout and "\x1b" not in done.stdout + done.stderr
    assert "  + your services" in done.stdout and "✓" not in done.stdout


def test_no_bus_at_all(at_home: Cli) -> None:
    nowhere = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent", "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/none"}
    at_home.environment |= nowhere
    found = wrong(at_home)
    assert found["bus"].startswith("cannot reach your message bus at unix:path=/nonexistent")
    assert not {"manager", "daemon", "port"} & set(found), "what follows from it is not said again"
    done = at_home.run("doctor")
    assert "✓ llamacpp 11669" in done.stdout and done.returncode == 1


def test_no_daemon(at_home: Cli, private_bus: str) -> None:
    with FakeManager(private_bus, LoadState="not-found"):
        assert wrong(at_home)["daemon"] == "cortexd is not installed for this user and not running"
        assert "make install" in at_home.run("doctor").stdout


def test_a_unit_that_failed(at_home: Cli, private_bus: str) -> None:
    with FakeManager(private_bus, ActiveState="failed", ExecMainStatus=78, StatusText="models.db is broken") as systemd:
        systemd.failed = ["cortexd.service", "cortex-a.service"]
        found = wrong(at_home)
        assert found["daemon"] == "cortexd does not start: models.db is broken"
        assert "'cortexctl why a' says why" in at_home.run("doctor").stdout


def test_nobody_answers_and_it_ends_in_time(at_home: Cli, fake: FakeDaemon, private_bus: str) -> None:
    with FakeManager(private_bus) as systemd, FakeLogind(private_bus, lingers=True) as logind:
        systemd.held = {"GetAll", "LoadUnit", "ListUnitsByPatterns"}
        fake.held = {"GetAll", "ListModels", "ListBackends"}
        logind.held = {"ListUsers"}
        began = time.monotonic()
        found = wrong(at_home)
        assert time.monotonic() - began < SLOWEST
    assert found["manager"] == "your systemd manager does not answer within 1.5 s"
    assert found["daemon"] == "cortexd is on the bus, but does not answer"


def test_a_bus_that_accepts_and_says_nothing(at_home: Cli, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "silent"))
        listening.listen()
        at_home.environment["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={tmp_path}/silent"
        began = time.monotonic()
        found = wrong(at_home)
        assert time.monotonic() - began < SLOWEST
    assert found["bus"].endswith("silent does not answer (timed out)")


def test_programs_that_hang_do_not_hold_it(at_home: Cli) -> None:
    home = Path(at_home.environment["HOME"])
    for name in ("llama-server", "ollama", "vllm", "text-generation-launcher", "systemd-analyze"):
        (home / "bin" / name).write_text("#!/bin/sh\nsleep 60\n")
        (home / "bin" / name).chmod(0o755)
    (home / ".config/systemd/user").mkdir(parents=True)
    (home / ".config/systemd/user/cortex-a.service").touch()
    began = time.monotonic()
    assert "backend" not in wrong(at_home)
    assert time.monotonic() - began < SLOWEST


def test_yes_goes_with_fix(at_home: Cli) -> None:
    assert at_home.fails("doctor", "--yes", code=2) == "--yes answers the questions of --fix; give both"


def test_without_a_terminal_nothing_is_done(at_home: Cli, well: FakeLogind) -> None:
    well.lingers = False
    done = at_home.run("doctor", "--fix")
    assert done.returncode == 1 and well.calls("SetUserLinger") == []
    assert done.stderr.startswith("cortexctl: nothing was changed: --fix asks before each repair")


def test_fixes_are_done_and_looked_at_again(at_home: Cli, well: FakeLogind) -> None:
    well.lingers = False
    data = Path(at_home.environment["HOME"], ".cortex")
    data.mkdir(mode=0o755)
    done = at_home.run("doctor", "--fix", "--yes")
    assert done.stderr.splitlines() == [
        f"cortexctl: done: Let the services of {user()} run without a login, from boot on",
        "cortexctl: done: Take the rights of others to 1 file or folder away",
        "cortexctl: 1 thing left to fix",  # NOT_HERE
    ]
    (asked,) = well.calls("SetUserLinger")
    assert asked.body == (os.getuid(), True, False) and data.stat().st_mode & 0o777 == 0o700
    well.lingers = False
    rows = json.loads(at_home.run("doctor", "--fix", "--yes", "--json").stdout)
    assert next(row["level"] for row in rows if row["check"] == "linger") == "ok"


def user() -> str:
    """Who runs the tests."""
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_fix_that_is_refused(at_home: Cli, well: FakeLogind) -> None:
    well.lingers = False
    at_home.environment["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/nonexistent"
    assert at_home.run("doctor", "--fix", "--yes").returncode == 1  # linger is not known then, and nothing is asked
    at_home.environment["DBUS_SYSTEM_BUS_ADDRESS"] = at_home.environment["DBUS_SESSION_BUS_ADDRESS"]
    reply = well.reply

    def refuse(asked: Asked, interface: str, signature: str) -> tuple[str, tuple[Any, ...]]:
        if asked.member == "SetUserLinger":
            raise Refusal("org.freedesktop.DBus.Error.AccessDenied", "Interactive authentication required.")
        return reply(asked, interface, signature)

    well.reply = refuse  # type: ignore[method-assign]
    done = at_home.run("doctor", "--fix", "--yes")
    assert done.returncode == 1
    refusal = "logind did not let your services linger: Interactive authentication required."
    assert f"{refusal}; 'sudo loginctl enable-linger {user()}' does\n" in done.stderr


@pytest.mark.parametrize(("answer", "lingers"), [("y", True), ("yes", True), ("n", False), ("", False), ("ja", False)])
def test_on_a_terminal_it_asks(at_home: Cli, well: FakeLogind, answer: str, lingers: bool) -> None:
    well.lingers = False
    master, slave = pty.openpty()
    with at_home.started("doctor", "--fix", stdin=slave, stderr=slave, stdout=subprocess.PIPE) as process:
        os.close(slave)
        said = b""
        while b"[y/N] " not in said:
            said += os.read(master, 4096)
        assert f"Let the services of {user()} run without a login, from boot on? [y/N] ".encode() in said
        os.write(master, f"{answer}\n".encode())
        process.communicate()
    os.close(master)
    assert well.lingers is lingers
    assert [asked.body for asked in well.calls("SetUserLinger")] == ([(os.getuid(), True, True)] if lingers else [])
