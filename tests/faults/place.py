"""Where a daemon can be killed: a user's home with a systemd manager, on python-dbusmock or real, looked at from outside."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, message_bus, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import DBusErrorResponse, unwrap_msg

from cortexd.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH, unit_name
from cortexd.systemd import wire
from tests.faults import dying
from tests.support import logind
from tests.support.fixtures import message_bus as private_bus
from tests.support.systemd_worlds import SCRIPT, mock_command
from tests.support.units import free_port, make_program
from tests.support.wait import until

VICTIM, BYSTANDER = "victim", "bystander"
UNIT = unit_name(VICTIM)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.faults.dying", "cortexctl.actions_config", "cortexctl.actions_jobs", "cortexctl.actions_secret", "cortexctl.diagnose"])  # fmt: skip

BACKEND = """\
description = "a server of the tests"
executables = ["fake-server"]
version = ["--version"]
command = ["{exec}", "--port", "{port}", "--length", "{max_model_len}"]
endpoint = "/health"
stop_seconds = 1
restart = "no"
api_key = "OWN_KEY"
environment = { EDITION = "1" }
"""

_LOGIND = ("/org/freedesktop/login1", "org.freedesktop.login1")

CLAIMS = (
    "registered",
    "unregistered",
    "set",
    "enable",
    "disable",
    "secret-set",
    "secret-removed",
    "reset-failed",
    "repair",
)
"""Events that say that something was done; others say what was asked for, or what happened to a run."""

Picture = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What a client ended with."""

    status: int
    out: str
    errors: str


class Place(ABC):
    """One home, one daemon at a time, a model that is tormented and one that must not notice."""

    sandboxes: bool
    """There is a real systemd, in which a sandbox can be tried."""

    def __init__(self, folder: Path, home: Path, address: str, system_bus: str) -> None:
        self.folder, self.home = folder, home
        self.units = home / ".config" / "systemd" / "user"
        self.backend = home / ".config" / "cortex" / "backends" / "own.toml"
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "DBUS_SESSION_BUS_ADDRESS": address,
            "DBUS_SYSTEM_BUS_ADDRESS": system_bus,
        }
        self.ports = {name: free_port() for name in (VICTIM, BYSTANDER)}
        self.bus: DBusConnection = open_dbus_connection(address)
        self.system_bus: DBusConnection = open_dbus_connection(system_bus)
        self._daemon: ForkServerProcess | None = None
        self._run, self._seen = "", 0
        for path in (self.units, self.backend.parent):
            path.mkdir(parents=True, exist_ok=True)
        self.model = home / "faults" / "model"
        self.model.parent.mkdir(exist_ok=True)
        self.model.write_bytes(b"model")
        self.program = self.model.with_name("fake-server")
        self.edit_backend(1)

    def close(self) -> None:
        """Leave nothing behind."""
        with ExitStack() as closing:
            for bus in (self.bus, self.system_bus):
                closing.callback(bus.close)
            for folder in (self.home / ".cortex", self.model.parent):
                closing.callback(shutil.rmtree, folder, ignore_errors=True)
            closing.callback(self.backend.unlink)
            if not self.alive():
                self.start()
            closing.callback(self.kill)
            for name in (VICTIM, BYSTANDER):
                self.client("unregister", "--force", name)

    # The daemon and its client

    def start(self) -> None:
        """Start a daemon and wait until it serves."""
        arguments = (self.folder, self.environment, self.sandboxes)
        self._daemon = PROCESSES.Process(target=dying.daemon, args=arguments, daemon=True)
        self._daemon.start()

        def serves() -> bool:
            assert self.alive(), f"cortexd ended: {self.log()}"
            return bool(self._ask(self.bus, message_bus.NameHasOwner(BUS_NAME))[0])

        until(serves, "cortexd's name on the bus")

    def alive(self) -> bool:
        """Whether it runs."""
        return self._daemon is not None and self._daemon.exitcode is None

    def kill(self) -> None:
        """SIGKILL, while nothing is asked of it."""
        assert self._daemon is not None
        self._daemon.kill()
        self.bury()

    def bury(self) -> None:
        """Wait for the end of a daemon that was killed, until the bus knows of it."""
        assert self._daemon is not None
        self._daemon.join(20)
        assert self._daemon.exitcode == -signal.SIGKILL, f"{self._daemon.exitcode}: {self.log()}"
        until(lambda: not self._ask(self.bus, message_bus.NameHasOwner(BUS_NAME))[0], "the end of its name")

    def log(self) -> str:
        """The end of what the daemons said."""
        return (self.folder / "cortexd.log").read_text()[-3000:]

    def client(self, *words: str, typed: bytes = b"") -> Said:
        """Run cortexctl, or busctl where that is the first word."""
        if words[0] == "busctl":
            done = subprocess.run(
                ["busctl", f"--address={self.environment['DBUS_SESSION_BUS_ADDRESS']}", "call", *words[1:]],
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            return Said(done.returncode, done.stdout, done.stderr)
        process = PROCESSES.Process(
            target=dying.client, args=(self.folder, self.environment, words, typed), daemon=True
        )
        process.start()
        process.join(60)
        out, errors = (self.folder / "out").read_text(), (self.folder / "errors").read_text()
        assert process.exitcode is not None, f"{words} does not end: {out}{errors}"
        return Said(process.exitcode, out, errors)

    def do(self, *words: str, typed: bytes = b"") -> None:
        """The same, and it must go well."""
        said = self.client(*words, typed=typed)
        assert said.status == 0, f"{words}: {said}: {self.log()}"

    def arm(self, member: str, at: int = 0, phase: str = dying.DONE) -> None:
        """Have the next call of a method killed at an await, counted from 1; 0: only have its awaits counted."""
        (self.folder / dying.TRACE).unlink(missing_ok=True)
        armed = {"member": member, "at": at, "phase": phase}
        (self.folder / dying.ARMED).write_text(json.dumps(armed))

    def trace(self) -> list[str]:
        """The awaits of the armed call, as far as it has come."""
        with suppress(FileNotFoundError):
            return (self.folder / dying.TRACE).read_text().splitlines()
        return []

    # What states are made of

    def settings(self, name: str = VICTIM) -> dict[str, str]:
        """What a model is registered with."""
        return {
            "path": str(self.model), "backend": "own", "exec": str(self.program), "gpus": "none", "memory": "1G",
            "port": str(self.ports[name]), "health.enabled": "no",
        }  # fmt: skip

    def register(self, *more: str, name: str = VICTIM) -> tuple[str, ...]:
        """The command that registers a model."""
        given = self.settings(name)
        path = given.pop("path")
        words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        return ("register", name, "--path", path, *words, *more)

    def edit_backend(self, edition: int) -> None:
        """Let the backend's file say something else."""
        self.backend.write_text(BACKEND.replace('EDITION = "1"', f'EDITION = "{edition}"'))

    def delete_unit(self) -> None:
        """As a person would."""
        (self.units / UNIT).unlink()

    def edit_unit(self) -> None:
        """By hand."""
        with (self.units / UNIT).open("a") as file:
            file.write("# by hand\n")

    @abstractmethod
    def stubborn(self) -> None:
        """Have it, from its registration on, not end by SIGTERM."""

    @abstractmethod
    def hold(self, on: bool) -> None:
        """Have it hang in its next start, or no longer."""

    @abstractmethod
    def crash(self) -> None:
        """Have it fail."""

    def calm(self) -> None:
        """Nothing of the above, and nobody lingers."""
        for kept in self.units.glob(f"{UNIT}.kept-*"):
            kept.unlink()
        self.edit_backend(1)
        self.hold(False)
        manager = DBusAddress(*_LOGIND, f"{_LOGIND[1]}.Manager")
        self._ask(self.system_bus, new_method_call(manager, "SetUserLinger", "ubb", (os.getuid(), False, False)))

    # What there is

    def _ask(self, bus: DBusConnection, message: Any) -> tuple[Any, ...]:
        return tuple(unwrap_msg(bus.send_and_get_reply(message, timeout=20)))

    def _get(self, bus: DBusConnection, name: str, path: str, interface: str) -> dict[str, Any]:
        address = DBusAddress(path, name, wire.PROPERTIES)
        (values,) = self._ask(bus, new_method_call(address, "GetAll", "s", (interface,)))
        return {key: value for key, (_, value) in values.items()}

    def unit(self, name: str) -> dict[str, Any]:
        """What systemd says of a unit."""
        manager = DBusAddress(wire.MANAGER_PATH, wire.DESTINATION, wire.MANAGER)
        (path,) = self._ask(self.bus, new_method_call(manager, "LoadUnit", "s", (name,)))
        found = {}
        for interface in (wire.UNIT, wire.SERVICE):
            found.update(self._get(self.bus, wire.DESTINATION, path, interface))
        return found

    def bystander(self) -> tuple[Any, ...]:
        """Its run."""
        unit = self.unit(unit_name(BYSTANDER))
        return unit["ActiveState"], bytes(unit["InvocationID"]).hex(), unit["MainPID"], unit["UnitFileState"]

    def mark(self) -> None:
        """From here on a run is another one, and an event new."""
        self._run = bytes(self.unit(UNIT)["InvocationID"]).hex()
        with self._database() as database:
            (self._seen,) = database.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()

    def picture(self) -> Picture:
        """All of the model that a use-case may change, and all that one may leave behind."""
        unit = self.unit(UNIT)
        run = bytes(unit["InvocationID"]).hex() if unit["ActiveState"] not in ("inactive", "failed") else ""
        user = DBusAddress(f"{_LOGIND[0]}/user/_{os.getuid()}", _LOGIND[1], wire.PROPERTIES)
        linger = self._ask(self.system_bus, new_method_call(user, "Get", "ss", (f"{_LOGIND[1]}.User", "Linger")))
        return {
            "shown": self._shown(),
            "systemd": {key: unit[key] for key in ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload")},
            "drop-ins": [str(path) for path in unit["DropInPaths"]],
            "run": "another" if run and run != self._run else "same" if run else "none",
            "linger": linger[0][1],
            "files": dict(self._files()),
            **self._rows(),
        }

    def _shown(self) -> dict[str, Any]:
        manager = DBusAddress(ROOT_PATH, BUS_NAME, MANAGER_INTERFACE)
        body = ([VICTIM], {"settings": ("b", True)})
        with suppress(DBusErrorResponse):
            (found,) = self._ask(self.bus, new_method_call(manager, "ListModels", "asa{sv}", body))
            keys = ("State", "UnitFileState", "Secrets", "RestartNeeded", "Warnings", "Settings")
            shown = {key: found[0][key][1] for key in keys}
            return shown | {"daemon": self._get(self.bus, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE)["Warnings"]}
        return {"daemon": self._get(self.bus, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE)["Warnings"]}

    def _files(self) -> Iterator[tuple[str, str]]:
        data = self.home / ".cortex"
        runtime = Path(self.environment["XDG_RUNTIME_DIR"]) / "systemd"
        for folder in (self.units, data / "secrets", data / "logs", runtime / "user.control", runtime / "user"):
            for path in sorted(folder.rglob("*")):
                if BYSTANDER in str(path) or not (VICTIM in str(path) or path.name.startswith(".")):
                    continue
                if path.suffix == ".log":  # of runs, each with its time
                    continue
                where = str(path).partition(".kept-")[0]  # and a time
                is_text = path.is_file() and not path.is_symlink() and path.suffix == ".service"
                yield (
                    where + ".kept" * (where != str(path)),
                    hashlib.sha256(path.read_bytes()).hexdigest() if is_text else "",
                )

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        path = self.home / ".cortex" / "models.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            yield database

    def _rows(self) -> Picture:
        kinds = ",".join(f"'{kind}'" for kind in CLAIMS)
        claims = f"SELECT kind FROM events WHERE model = ? AND id > ? AND kind IN ({kinds}) ORDER BY id"
        with self._database() as database:
            return {
                "settings": database.execute("SELECT settings FROM models WHERE name = ?", (VICTIM,)).fetchall(),
                "intents": database.execute("SELECT model, kind FROM intents").fetchall(),
                "claims": [kind for (kind,) in database.execute(claims, (VICTIM, self._seen))],
            }


class MockPlace(Place):
    """On python-dbusmock and a message bus of its own."""

    sandboxes = False

    @classmethod
    @contextmanager
    def create(cls, folder: Path) -> Iterator[MockPlace]:
        home, runtime = folder / "home", folder / "run"
        for path in (home, runtime):
            path.mkdir()
        with private_bus(folder) as address, ExitStack() as closing:
            closing.enter_context(_logind(address))
            with (folder / "mock.log").open("wb") as log:
                mock = subprocess.Popen(
                    mock_command(home / ".config" / "systemd" / "user", runtime),
                    env={"DBUS_SESSION_BUS_ADDRESS": address, "PATH": os.environ["PATH"]}, stdout=log, stderr=log,
                )  # fmt: skip
            closing.callback(mock.wait)
            closing.callback(mock.kill)
            self = cls(folder, home, address, address)
            self.environment["XDG_RUNTIME_DIR"] = str(runtime)
            closing.callback(self.close)
            until(self._answers, "the mock")
            self.program.write_text("#!/bin/sh\n")
            self.program.chmod(0o755)
            yield self

    def _answers(self) -> bool:
        manager = DBusAddress(wire.MANAGER_PATH, wire.DESTINATION, wire.MANAGER)
        with suppress(DBusErrorResponse):
            self._ask(self.bus, new_method_call(manager, "ListJobs"))
            return True
        return False

    def _script(self, member: str, signature: str, *body: Any) -> None:
        script = DBusAddress(wire.MANAGER_PATH, wire.DESTINATION, SCRIPT)
        self._ask(self.bus, new_method_call(script, member, signature, body))

    def stubborn(self) -> None:
        self._script("Behave", "ss", UNIT, json.dumps({"stop": "failed"}))

    def hold(self, on: bool) -> None:
        self._script("Behave", "ss", UNIT, json.dumps({"start": "hang"} if on else {}))

    def crash(self) -> None:
        self._script("Crash", "sii", UNIT, 2, signal.SIGKILL)


class RealPlace(Place):
    """On this session's own systemd manager, which is a private one (scripts/private-systemd)."""

    sandboxes = True
    _stubborn = False

    @classmethod
    @contextmanager
    def create(cls, folder: Path) -> Iterator[RealPlace]:
        with private_bus(folder) as system_bus, _logind(system_bus):
            self = cls(folder, Path.home(), os.environ["DBUS_SESSION_BUS_ADDRESS"], system_bus)
            make_program(self.program)
            try:
                yield self
            finally:
                self.close()

    @property
    def _gate(self) -> Path:
        return self.model.with_name("gate")

    def settings(self, name: str = VICTIM) -> dict[str, str]:
        words = ["--fake-gate", str(self._gate), *(["--fake-ignore-term"] if self._stubborn else [])]
        return super().settings(name) | ({"extra_args": shlex.join(words)} if name == VICTIM else {})

    def stubborn(self) -> None:
        self._stubborn = True

    def hold(self, on: bool) -> None:
        """It reads this file before it serves; opening a FIFO waits for the other end."""
        self._gate.unlink(missing_ok=True)
        if on:
            os.mkfifo(self._gate)
        else:
            self._gate.touch()

    def calm(self) -> None:
        super().calm()
        self._stubborn = False

    def crash(self) -> None:
        os.kill(self.unit(UNIT)["MainPID"], signal.SIGKILL)


@contextmanager
def _logind(address: str) -> Iterator[None]:
    process = PROCESSES.Process(target=logind.process, args=(address,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
