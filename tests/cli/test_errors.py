"""When there is no daemon, no bus, another version: one sentence that says what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from jeepney import message_bus
from jeepney.io.blocking import open_dbus_connection

from cortexctl import bus
from cortexctl.bus import address
from cortexctl.errors import CtlError
from cortexd.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH
from cortexd.version import VERSION
from tests.cli.canned import model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.service import FakeSystemd, Refusal

NOT_INSTALLED = "cortexd is not installed for this user and not running; 'make install' installs it"
SEE = "see 'systemctl --user status cortexd.service' and 'journalctl --user -u cortexd.service'"


def test_no_daemon_and_no_way_to_start_it(cli: Cli) -> None:
    for line in ("status", "start a", "register a --path p", "events", "is-active a", "wait a"):
        assert cli.fails(*line.split()) == NOT_INSTALLED


def test_an_error_in_json(cli: Cli) -> None:
    done = cli.run("status", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr) == {"error": "NotInstalled", "message": NOT_INSTALLED}


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ({"LoadState": "not-found"}, NOT_INSTALLED),
        (
            {"LoadState": "masked"},
            "cortexd.service is masked; 'systemctl --user unmask cortexd.service' allows it again",
        ),
        ({"LoadState": "bad-setting"}, f"cortexd.service cannot be loaded (bad-setting); {SEE}"),
        (
            {"ActiveState": "inactive"},
            "cortexd is not running and the bus does not start it; 'systemctl --user start cortexd.service' does",
        ),
    ],
)
def test_not_activatable(cli: Cli, private_bus: str, unit: dict[str, str], sentence: str) -> None:
    with FakeSystemd(private_bus, **unit):
        assert cli.fails("status") == sentence


BUS_CONFIGURATION = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={folder}/bus</listen>
  <servicedir>{folder}</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture
def activating_bus(tmp_path: Path) -> Iterator[str]:
    """A bus that starts the daemon with the command in the file `command`, which the test writes before."""
    (tmp_path / "bus.conf").write_text(BUS_CONFIGURATION.format(folder=tmp_path))
    started = tmp_path / "started"
    started.write_text('#!/bin/sh\n. "${0%/*}/command"\n')
    started.chmod(0o755)
    (tmp_path / "x.service").write_text(f"[D-BUS Service]\nName={BUS_NAME}\nExec={started}\n")
    process = subprocess.Popen(
        ["dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"unix:path={tmp_path}/bus"
        process.terminate()


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        (
            {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "ExecMainStatus": 3},
            f"cortexd does not start: cortexd.service failed (exit-code, status 3); {SEE}",
        ),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": 78, "StatusText": "models.db is broken"},
            "cortexd does not start: models.db is broken; once repaired: 'systemctl --user start cortexd'",
        ),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "timeout"},
            f"cortexd does not start: cortexd.service failed (timeout); {SEE}",
        ),
        (
            {"ActiveState": "inactive"},
            "cortexd is not running and the bus does not start it; 'systemctl --user start cortexd.service' does",
        ),
    ],
)
def test_a_daemon_that_does_not_come_up_is_not_waited_for(
    activating_bus: str, tmp_path: Path, unit: dict[str, str | int], sentence: str
) -> None:
    """The bus waits for 25 s or more; we look at the unit after two."""
    (tmp_path / "command").write_text("exec sleep 60")
    began = time.monotonic()
    with FakeSystemd(activating_bus, **unit):
        assert Cli(activating_bus).fails("status") == sentence
    assert time.monotonic() - began < 15


def test_a_daemon_that_takes_its_time_is_waited_for(activating_bus: str, tmp_path: Path) -> None:
    """Longer than our patience, but its unit is on its way."""
    (tmp_path / "command").write_text("exec sleep 60")
    with FakeSystemd(activating_bus, ActiveState="activating", SubState="start") as systemd:
        daemon = FakeDaemon(activating_bus)
        daemon.add(model("a"))
        with Cli(activating_bus).started("status") as process:
            systemd.wait_for("LoadUnit")
            with daemon:
                out, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "a  " in out


def test_activation_that_ends_at_once(activating_bus: str, tmp_path: Path) -> None:
    (tmp_path / "command").write_text("exit 1")
    with FakeSystemd(activating_bus, ActiveState="failed", Result="exit-code", ExecMainStatus=1):
        error = Cli(activating_bus).fails("status")
    assert error == f"cortexd does not start: cortexd.service failed (exit-code, status 1); {SEE}"


def test_logs_and_completion_do_not_start_the_daemon(activating_bus: str, tmp_path: Path) -> None:
    (tmp_path / "command").write_text(f"touch {tmp_path}/was-started")
    cli = Cli(activating_bus)
    assert cli.ok("__complete", "names") == ""
    cli.run("logs", "a")
    assert not (tmp_path / "was-started").exists()


@pytest.mark.parametrize("name", ["UnknownMethod", "UnknownInterface", "InvalidArgs"])
def test_another_version(cli: Cli, fake: FakeDaemon, name: str) -> None:
    fake.version = "9.9"
    fake.answers["ListModels"] = Refusal(f"org.freedesktop.DBus.Error.{name}", "no such thing")
    error = cli.fails("status")
    assert error == (
        f"this is cortexctl {VERSION}, but the cortexd that runs is 9.9; "
        "'systemctl --user restart cortexd' makes them one (models go on running)"
    )
    fake.version = VERSION
    assert cli.fails("status") == "ListModels: no such thing"


def test_a_model_that_goes_away_between_two_calls(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("llama-3.1:8b"))
    fake.answers["Stop"] = Refusal("org.freedesktop.DBus.Error.UnknownObject", "no such object")
    assert cli.fails("stop", "llama-3.1:8b", code=4) == "no model 'llama-3.1:8b' is registered"


@pytest.mark.parametrize(
    ("name", "code"),
    [("InvalidConfig", 1), ("ModelExists", 1), ("StoreFailed", 1), ("NoSuchModel", 4), ("SomethingNew", 1)],
)
def test_named_errors_keep_name_and_sentence(cli: Cli, fake: FakeDaemon, name: str, code: int) -> None:
    fake.answers["Register"] = Refusal(name, "port=0: use a whole number\x1b[31m")
    assert cli.fails("register", "a", "--path", "p", code=code) == "port=0: use a whole number\\x1b[31m"
    done = cli.run("register", "a", "--path", "p", "--json")
    assert json.loads(done.stderr) == {"error": name, "message": "port=0: use a whole number\x1b[31m"}
    assert (done.returncode, done.stdout) == (code, "")


def test_an_error_that_nobody_foresaw(cli: Cli, fake: FakeDaemon) -> None:
    fake.answers["ListModels"] = Refusal("org.freedesktop.DBus.Error.LimitsExceeded", "too many")
    assert cli.fails("status") == "too many"
    fake.answers["ListModels"] = Refusal("org.freedesktop.DBus.Error.Failed", "")
    assert cli.fails("status") == "ListModels failed: org.freedesktop.DBus.Error.Failed"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("unix:path=/nonexistent/bus", "No such file or directory"),
        ("tcp:host=localhost", "it is no address of a Unix socket"),
        ("nonsense", "it is no address of a Unix socket"),
        ("unix:path=/bus%zz", "non-hexadecimal number"),
    ],
)
def test_no_bus(cli: Cli, given: str, reason: str) -> None:
    cli.environment["DBUS_SESSION_BUS_ADDRESS"] = given
    error = cli.fails("status")
    assert error.startswith(f"cannot reach your message bus at {given} (")
    assert reason in error
    assert "loginctl enable-linger" in error


def test_the_bus_of_the_runtime_folder(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    where = cli.environment.pop("DBUS_SESSION_BUS_ADDRESS").removeprefix("unix:path=")
    cli.environment["XDG_RUNTIME_DIR"] = str(Path(where).parent)
    assert cli.ok("url", "a") == "http://127.0.0.1:8080\n"
    assert address({}) == f"unix:path=/run/user/{os.getuid()}/bus"


def test_a_bus_that_does_not_answer(tmp_path: Path) -> None:
    """It takes the connection and says nothing, then closes it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/bus")
        server.listen()

        def accept() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=accept)
        thread.start()
        error = Cli(f"unix:path={tmp_path}/bus").fails("status")
        thread.join()
    assert error.startswith("cannot reach your message bus")


@pytest.mark.parametrize("backlog", [1, 0])
def test_a_bus_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backlog: int) -> None:
    """As while systemd, which holds its socket, starts a dead one again: who is there is told to wait, and not to log in."""
    monkeypatch.setattr(bus, "_LET_IN", 0.1)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(f"{tmp_path}/bus")
        server.listen(backlog)
        if not backlog:
            other.connect(f"{tmp_path}/bus")  # and nobody else has room
        with pytest.raises(CtlError) as caught:
            bus.Bus(where=f"unix:path={tmp_path}/bus")
    assert caught.value.message.startswith(f"your message bus at unix:path={tmp_path}/bus does not answer (")
    assert "may take 90 s to start it again" in caught.value.message and "log in" not in caught.value.message


def test_a_daemon_that_hangs(cli: Cli) -> None:
    """The remedy that works is named, as doctor does."""
    where = cli.environment["DBUS_SESSION_BUS_ADDRESS"]
    call = bus.Call(ROOT_PATH, MANAGER_INTERFACE, "ListJobs")
    with open_dbus_connection(where) as hanging, closing(bus.Bus(where=where)) as connection:
        hanging.send_and_get_reply(message_bus.RequestName(BUS_NAME))
        with pytest.raises(CtlError) as caught:
            connection.call(call, timeout=0.1)
    assert caught.value.message.startswith("cortexd did not answer within 0.1 s; 'systemctl --user restart cortexd'")


def test_arguments_that_are_no_text(cli: Cli, fake: FakeDaemon) -> None:
    command: list[str | bytes] = [*cli.command("register", "a", "--path"), b"/models/\xff.gguf"]
    done = subprocess.run(command, env=cli.environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == b"cortexctl: an argument is not valid UTF-8\n"
    assert not fake.calls("Register")


def test_a_reader_that_leaves_early(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(*(model(f"m{n:04}", StateReason="x" * 200) for n in range(1000)))
    shell = subprocess.run(
        ["bash", "-c", '"$@" list | head -n 1; exit ${PIPESTATUS[0]}', "bash", *cli.command()],
        env=cli.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (shell.stdout.count("\n"), shell.stderr) == (1, "")
    assert shell.returncode == 141


def test_a_full_disk(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a"))
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            cli.command("list"), env=cli.environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "cortexctl: cannot write the output: No space left on device\n")
