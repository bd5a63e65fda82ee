"""The daemon as a process: its service manager, its bus, its end, its second instance, its bad days."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jeepney import DBusAddress, MatchRule, message_bus, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import DBusErrorResponse, unwrap_msg

from cortexd.names import BUS_NAME, JOB_INTERFACE, MANAGER_INTERFACE, ROOT_PATH
from cortexd.version import VERSION
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import make_program
from tests.support.wait import until

COMMAND = [sys.executable, "-m", "cortexd.app"]
MANAGER = DBusAddress(ROOT_PATH, BUS_NAME, MANAGER_INTERFACE)


@pytest.fixture
def bus() -> Iterator[DBusConnection]:
    """The private user manager's own bus."""
    with open_dbus_connection("SESSION") as connection:
        yield connection


def owner(bus: DBusConnection) -> int:
    """The process that owns cortexd's name, or 0."""
    try:
        return int(unwrap_msg(bus.send_and_get_reply(message_bus.GetConnectionUnixProcessID(BUS_NAME)))[0])
    except DBusErrorResponse:
        return 0


class ServiceManager:
    """The socket that sd_notify writes to."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)

    def next(self, deadline: float = 20) -> str:
        """The next thing told, or "" if there is none in time."""
        readable, _, _ = select.select([self._sock], [], [], deadline)
        return self._sock.recv(4096).decode() if readable else ""

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def service_manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path / "notify")
    yield manager
    manager.close()


class Proxy:
    """Stands between cortexd and its bus; can hold everything back, and hang up."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:path={path}"
        self._there = os.environ["DBUS_SESSION_BUS_ADDRESS"].removeprefix("unix:path=")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._flows = threading.Event()
        self._flows.set()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._there)
                self._ends += [here, there]
                for source, target in ((here, there), (there, here)):
                    self._threads.append(threading.Thread(target=self._pass, args=(source, target)))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Pass nothing on."""
        self._flows.clear()

    def release(self) -> None:
        """Pass everything on."""
        self._flows.set()

    def hang_up(self) -> None:
        """End every connection."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.release()
        self.hang_up()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (*self._ends, self._listener):
            end.close()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path / "proxy")
    yield proxy
    proxy.close()


@contextlib.contextmanager
def cortexd(log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon, as soon as it is started; its files are gone afterwards."""
    with log.open("ab") as file:
        process = subprocess.Popen(COMMAND, stderr=file, env={**os.environ, **environment}, cwd=lab.PROJECT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(Path.home() / ".cortex", ignore_errors=True)
        sys.stderr.write(log.read_text())


# -- Its service manager


def test_ready_is_said_when_callers_are_served(
    tmp_path: Path, bus: DBusConnection, service_manager: ServiceManager
) -> None:
    assert owner(bus) == 0
    with cortexd(tmp_path / "log", NOTIFY_SOCKET=service_manager.address) as process:
        assert service_manager.next() == "READY=1"
        assert owner(bus) == process.pid
        listed = bus.send_and_get_reply(new_method_call(MANAGER, "ListModels", "asa{sv}", ([], {})))
        assert unwrap_msg(listed) == ([],)
        process.send_signal(signal.SIGTERM)
        assert service_manager.next() == "STOPPING=1"
        assert process.wait(timeout=20) == 0
        assert service_manager.next(0) == ""
        assert owner(bus) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in lines] == [
        f"cortexd {VERSION} is ready: 0 models",
        "stopping; models go on running",
    ]


def test_the_name_is_taken_before_ready_is_said(tmp_path: Path, service_manager: ServiceManager) -> None:
    """The bus tells the new owner before the daemon can have its reply, and so before READY."""
    with open_dbus_connection("SESSION") as bus:
        rule = MatchRule(
            type="signal", sender=message_bus.bus_name, interface=message_bus.interface, member="NameOwnerChanged"
        )
        rule.add_arg_condition(0, BUS_NAME)
        unwrap_msg(bus.send_and_get_reply(message_bus.AddMatch(rule)))
        with bus.filter(rule) as told, cortexd(tmp_path / "log", NOTIFY_SOCKET=service_manager.address):
            assert service_manager.next() == "READY=1"
            bus.send_and_get_reply(message_bus.GetId())  # reads what has come before
            assert len(told) == 1 and told[0].body[2]


def test_the_watchdog_is_told_as_long_as_the_bus_answers(
    tmp_path: Path, service_manager: ServiceManager, proxy: Proxy
) -> None:
    environment = {"NOTIFY_SOCKET": service_manager.address, "WATCHDOG_USEC": "600000"}
    with cortexd(tmp_path / "log", DBUS_SESSION_BUS_ADDRESS=proxy.address, **environment) as process:
        assert [service_manager.next() for _ in range(4)] == ["READY=1", *["WATCHDOG=1"] * 3]
        proxy.hold()
        while service_manager.next(1):  # what was under way
            pass
        assert service_manager.next(1) == "", "a ping although nothing passes"
        assert process.poll() is None
        proxy.release()
        assert service_manager.next() == "WATCHDOG=1"
    assert "no answer to ourselves over the bus" in (tmp_path / "log").read_text()


def test_another_process_that_is_meant_by_the_watchdog(tmp_path: Path, service_manager: ServiceManager) -> None:
    environment = {"NOTIFY_SOCKET": service_manager.address, "WATCHDOG_USEC": "300000", "WATCHDOG_PID": "1"}
    with cortexd(tmp_path / "log", **environment):
        assert service_manager.next() == "READY=1"
        assert service_manager.next(0.5) == ""


def test_a_service_manager_that_is_gone_harms_nothing(tmp_path: Path, bus: DBusConnection) -> None:
    with cortexd(tmp_path / "log", NOTIFY_SOCKET=str(tmp_path / "nobody")) as process:
        until(lambda: owner(bus) == process.pid, "its name")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert "the service manager is not told READY=1: " in (tmp_path / "log").read_text()


def test_to_the_journal_lines_have_a_priority(tmp_path: Path, bus: DBusConnection) -> None:
    with cortexd(tmp_path / "log", JOURNAL_STREAM="8:1") as process:
        until(lambda: owner(bus) == process.pid, "its name")
    assert (tmp_path / "log").read_text() == f"<6>cortexd {VERSION} is ready: 0 models\n"


# -- The end of the bus, and of the daemon


def test_the_end_of_the_bus_is_a_failure(tmp_path: Path, service_manager: ServiceManager, proxy: Proxy) -> None:
    environment = {"NOTIFY_SOCKET": service_manager.address, "DBUS_SESSION_BUS_ADDRESS": proxy.address}
    with cortexd(tmp_path / "log", **environment) as process:
        assert service_manager.next() == "READY=1"
        proxy.hang_up()
        assert process.wait(timeout=20) == 1
    text = (tmp_path / "log").read_text()
    assert "ERROR the connection to the bus has ended" in text and "Traceback" not in text


def test_who_waits_is_told_when_the_daemon_ends(
    daemon: Daemon, cortex: Cortex, bus: DBusConnection, tmp_path: Path
) -> None:
    server = make_program(Path.home() / "bin" / "fake-server")
    gate = Path.home() / "gate"
    os.mkfifo(gate)
    cortex.run(
        "register", "slow", "--backend", "llamacpp", "--path", str(lab.TINY_GGUF), "--exec", str(server),
        "--gpus", "none", "--port", "auto", "--memory", "1G", "--extra-args", f"--fake-gate {gate}",
    )  # fmt: skip
    (job,) = unwrap_msg(bus.send_and_get_reply(new_method_call(MANAGER, "StartModel", "s", ("slow",))))
    cortex.until_state("slow", "starting")
    waiting = new_method_call(DBusAddress(job, BUS_NAME, JOB_INTERFACE), "Wait", "a{sv}", ({},))
    bus.send(waiting, serial=4711)
    assert unwrap_msg(bus.send_and_get_reply(new_method_call(MANAGER, "ListJobs")))[0]  # it has arrived
    assert daemon.kill(signal.SIGTERM) == 0
    answer = bus.receive(timeout=10)
    while answer.header.fields.get(5) != 4711:  # REPLY_SERIAL
        answer = bus.receive(timeout=10)
    with pytest.raises(DBusErrorResponse) as caught:
        unwrap_msg(answer)
    assert caught.value.name == f"{BUS_NAME}.Error.ShuttingDown"
    state = subprocess.run(["systemctl", "--user", "is-active", "cortex-slow.service"], capture_output=True, text=True)
    assert state.stdout == "activating\n"  # the model goes on
    gate.unlink()
    daemon.start()
    cortex.run("unregister", "--force", "slow")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_models_outlive_the_daemon_and_the_next_one_adopts_them(
    daemon: Daemon, cortex: Cortex, number: signal.Signals
) -> None:
    cortex.register_tiny("tiny")
    cortex.run("start", "tiny")
    before = cortex.properties("tiny")
    status = daemon.kill(number)
    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    os.kill(before["MainPID"], 0)
    daemon.start()
    after = cortex.properties("tiny")
    same = ("InvocationID", "MainPID", "State", "StateChangeTimestamp", "NRestarts")
    assert {k: after[k] for k in same} == {k: before[k] for k in same} and after["State"] == "ready"
    runs = [e for e in cortex.json("events", "tiny") if e["Kind"] == "run"]
    assert [e["InvocationID"] for e in runs] == [before["InvocationID"]]
    cortex.run("stop", "tiny")
    assert cortex.properties("tiny")["State"] == "stopped"


def test_a_restart_while_nobody_watched_is_noticed(daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny("tiny")
    cortex.run("start", "tiny")
    daemon.kill()
    subprocess.run(["systemctl", "--user", "restart", "cortex-tiny.service"], check=True)
    daemon.start()
    run = cortex.properties("tiny")["InvocationID"]
    began, ready = cortex.json("events", "tiny")[-2:]
    assert (began["Message"], began["InvocationID"]) == ("run began while cortexd was not there", run)
    assert (ready["Kind"], ready["InvocationID"]) == ("ready", run)


def test_a_unit_file_that_vanished_is_no_obstacle(daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny("tiny")
    (Path.home() / ".config/systemd/user/cortex-tiny.service").unlink()
    subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
    cortex.run("unregister", "tiny")
    assert cortex.json("list") == []


# -- One for a user


def test_a_second_instance_is_refused(daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny("tiny")
    second = subprocess.run(COMMAND, capture_output=True, text=True, cwd=lab.PROJECT, timeout=30)
    assert second.returncode == 1
    assert second.stderr.endswith(
        f" ERROR another cortexd is at work in {Path.home()}/.cortex; only one can run for a user\n"
    )
    assert second.stderr.count("\n") == 1
    assert [m["Name"] for m in cortex.json("list")] == ["tiny"]
    assert [e["Kind"] for e in cortex.json("events", "tiny")] == ["registered"]


def test_a_stranger_with_its_name_is_told_of(bus: DBusConnection) -> None:
    unwrap_msg(bus.send_and_get_reply(message_bus.RequestName(BUS_NAME)))
    assert _fails().endswith(f" ERROR {BUS_NAME} is owned by another process; only one cortexd can run for a user")


# -- Its files, its log


def test_nobody_else_can_read_what_it_writes(daemon: Daemon, cortex: Cortex) -> None:
    cortex.register_tiny("tiny")
    data = Path.home() / ".cortex"
    found = {p.relative_to(data).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in (data, *data.rglob("*"))}
    assert found == {
        ".": 0o700,
        "models.db": 0o600,
        "models.db-wal": 0o600,
        "models.db-shm": 0o600,
        "models.db.reserve": 0o600,
    }
    unit = Path.home() / ".config/systemd/user/cortex-tiny.service"
    assert stat.S_IMODE(unit.stat().st_mode) & 0o077 in (0, 0o044)


def test_the_log_level_is_changed_through_logcontrol1(daemon: Daemon, cortex: Cortex) -> None:
    def level(word: str = "") -> str:
        verb = ["set-property"] if word else ["get-property"]
        at = [BUS_NAME, "/org/freedesktop/LogControl1", "org.freedesktop.LogControl1", "LogLevel"]
        command = ["busctl", "--user", *verb, *at, *(["s", word] if word else [])]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert level() == 's "debug"'  # as the fixture starts it
    cortex.register_tiny("tiny")
    for word, told in (("warning", False), ("info", True)):
        level(word)
        assert level() == f's "{word}"'
        before = len(daemon.log.read_text())
        cortex.run("start", "tiny")
        cortex.run("stop", "tiny")
        assert ("tiny: ready after" in daemon.log.read_text()[before:]) is told


# -- Bad days


def test_version_and_help() -> None:
    assert subprocess.run([*COMMAND, "--version"], capture_output=True, text=True).stdout == f"cortexd {VERSION}\n"
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "cortexctl(1)" in shown.stdout
    assert subprocess.run([*COMMAND, "nonsense"], capture_output=True).returncode == 2


def _file_in_the_way(home: Path) -> None:
    (home / ".cortex").touch()


def _closed(home: Path) -> None:
    home.chmod(0o500)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_file_in_the_way, "/.cortex cannot be used: File exists; check it and its folder, or move it away"),
        (_closed, "/.cortex cannot be used: Permission denied; check it and its folder, or move it away"),
    ],
)
def test_a_home_that_cannot_be_used_is_one_clear_line(tmp_path: Path, harm: object, says: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    harm(home)  # type: ignore[operator]
    done = _fails(os.EX_CONFIG, HOME=str(home), XDG_CONFIG_HOME="", XDG_CACHE_HOME="")
    home.chmod(0o700)
    assert done.endswith(f" ERROR {home}{says}")


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_lost_database_is_made_again_from_the_unit_files(daemon: Daemon, cortex: Cortex, harm: str) -> None:
    cortex.register_tiny("tiny", "--env", "A=b c")
    cortex.run("start", "tiny")
    before = cortex.properties("tiny")
    daemon.kill()
    data = Path.home() / ".cortex"
    for path in data.glob("models.db*"):
        path.unlink()
    if harm == "damaged":
        (data / "models.db").write_text("no database" * 1000)
    daemon.start()
    after = cortex.properties("tiny")
    same = ("InvocationID", "State", "Settings", "RestartNeeded")
    assert [after[key] for key in same] == [before[key] for key in same]
    assert list(data.glob("models.db.damaged-*")) if harm == "damaged" else True
    told = subprocess.run(
        ["busctl", "--user", "get-property", BUS_NAME, "/org/cortexlinux/Cortex1", f"{BUS_NAME}.Manager", "Warnings"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "the database was lost; registered again from their unit files: tiny" in told
    for path in data.glob("models.db.damaged-*"):
        path.unlink()


def test_no_bus_is_one_clear_line(tmp_path: Path) -> None:
    address = f"unix:path={tmp_path}/nothing"
    said = _fails(DBUS_SESSION_BUS_ADDRESS=address)
    assert said.endswith(f" ERROR no connection to the bus at {address}: [Errno 2] No such file or directory")


def _fails(status: int = 1, **environment: str) -> str:
    """The one line that a daemon says which cannot start."""
    began = time.monotonic()
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, cwd=lab.PROJECT, env={**os.environ, **environment}, timeout=30
    )
    assert (done.returncode, done.stdout) == (status, "") and time.monotonic() - began < 25
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.rstrip("\n")


def test_unit_files_that_cannot_be_written_are_a_warning(daemon: Daemon, cortex: Cortex) -> None:
    """It has to come up all the same: other models run."""
    cortex.register_tiny("tiny")
    daemon.stop()
    folder = Path.home() / ".config" / "systemd" / "user"
    (folder / "cortex-tiny.service").unlink()
    folder.chmod(0o500)
    try:
        daemon.start()
        assert "cortex-tiny.service cannot be written: Permission denied" in daemon.log.read_text()
        assert "cannot be written: Permission denied" in cortex.fails("start", "tiny")
    finally:
        folder.chmod(0o700)
    cortex.run("start", "tiny")
