"""Where a daemon can be killed: a user's home, and a systemd manager of whatever kind (places.py)."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Lock

from jeepney import DBusAddress, message_bus, new_method_call

from cortexd.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH
from tests.faults import dying
from tests.faults.picture import BYSTANDER, UNIT, VICTIM, View
from tests.support.units import free_port
from tests.support.wait import until

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.faults.dying", "cortexctl.actions_config", "cortexctl.actions_jobs", "cortexctl.actions_secret", "cortexctl.diagnose"])  # fmt: skip

_one_at_a_time = Lock()
"""Starting a process looks at all that were started before, and of two that read a status at once one finds nothing: 255."""


def _start(process: ForkServerProcess) -> None:
    with _one_at_a_time:
        process.start()


def _status(process: ForkServerProcess | None) -> int | None:
    """The exit status, once there is one."""
    with _one_at_a_time:
        return process.exitcode if process else None


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


@dataclass(frozen=True)
class Said:
    """What a client ended with."""

    status: int
    out: str
    errors: str


class Place(ABC):
    """One home, one daemon at a time, a model that is tormented and one that must not notice."""

    is_real: bool
    """There is a real systemd, in which a sandbox can be tried, and of which nothing can be kept."""

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
        self.view = View(home, self.environment)
        self._daemon: ForkServerProcess | None = None
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
            closing.callback(self.view.close)
            for folder in (self.home / ".cortex", self.model.parent):
                closing.callback(shutil.rmtree, folder, ignore_errors=True)
            closing.callback(self.backend.unlink)
            if not self.alive():
                self.start()
            closing.callback(self.kill)
            for name in (VICTIM, BYSTANDER):
                self.client("unregister", "--force", name)

    # The daemon and its client

    def launch(self) -> None:
        """Start a daemon, and do not wait."""
        self._daemon = PROCESSES.Process(
            target=dying.daemon, args=(self.folder, self.environment, self.is_real), daemon=True
        )
        _start(self._daemon)

    def start(self) -> None:
        """Start a daemon and wait until it serves; one that ends with status 1 is started once more, as systemd would."""
        starts = 1

        def serves() -> bool:
            nonlocal starts
            if not self.alive():
                assert _status(self._daemon) == 1 and starts == 1, f"cortexd ended: {self.log()}"
                starts += 1
                self.launch()
            return self._is_served()

        self.launch()
        until(serves, "cortexd's name on the bus", poll=0.005)

    def _is_served(self) -> bool:
        return bool(self.view.ask(self.view.bus, message_bus.NameHasOwner(BUS_NAME))[0])

    def alive(self) -> bool:
        """Whether it runs."""
        return self._daemon is not None and _status(self._daemon) is None

    def kill(self) -> None:
        """SIGKILL, while nothing is asked of it."""
        assert self._daemon is not None
        self._daemon.kill()
        self.bury()

    def bury(self) -> None:
        """Wait for the end of a daemon that was killed, until the bus knows of it."""
        assert self._daemon is not None
        status = until(lambda: _status(self._daemon), "its end", poll=0.002)
        assert status == -signal.SIGKILL, f"{status}: {self.log()}"
        until(lambda: not self._is_served(), "the end of its name", poll=0.005)

    def log(self) -> str:
        """The end of what the daemons said."""
        return (self.folder / "cortexd.log").read_text()[-3000:]

    def client(self, *words: str, typed: bytes = b"") -> Said:
        """Run cortexctl, or busctl where that is the first word."""
        if words[0] == "busctl":
            done = subprocess.run(
                ["busctl", f"--address={self.environment['DBUS_SESSION_BUS_ADDRESS']}", "--", "call", *words[1:]],
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            return Said(done.returncode, done.stdout, done.stderr)
        process = PROCESSES.Process(
            target=dying.client, args=(self.folder, self.environment, words, typed), daemon=True
        )
        _start(process)
        with suppress(AssertionError):
            until(lambda: _status(process) is not None, deadline=60, poll=0.002)
        out, errors = (self.folder / "out").read_text(), (self.folder / "errors").read_text()
        status = _status(process)
        assert status is not None, f"{words} does not end: {out}{errors}"
        return Said(status, out, errors)

    def do(self, *words: str, typed: bytes = b"") -> None:
        """The same, and it must go well."""
        said = self.client(*words, typed=typed)
        assert said.status == 0, f"{words}: {said}: {self.log()}"

    def arm(self, member: str, at: int | str = 0) -> None:
        """Have the next call of a method killed at a point, by its number from 1 on or at an await (see dying.awaits); 0: only
        have its points written down."""
        (self.folder / dying.TRACE).unlink(missing_ok=True)
        armed = {"member": member, "at": at}
        (self.folder / dying.ARMED).write_text(json.dumps(armed))

    def trace(self) -> list[str]:
        """The points of the armed call, as far as it has come."""
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
        (self.units / UNIT).unlink(missing_ok=True)  # which is left where it was edited
        self.edit_backend(1)
        self.hold(False)
        self.view.linger_no_more()

    def job(self) -> str:
        """The path of the job that cortexd does."""
        manager = DBusAddress(ROOT_PATH, BUS_NAME, MANAGER_INTERFACE)
        ((job,),) = self.view.ask(self.view.bus, new_method_call(manager, "ListJobs"))
        return str(job[0])
