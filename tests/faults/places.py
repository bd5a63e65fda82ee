"""The two kinds of places: on python-dbusmock, of which everything can be kept and restored, and on a real manager."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, new_method_call
from jeepney.wrappers import DBusErrorResponse

from cortexd.systemd import wire
from tests.faults.picture import UNIT, VICTIM
from tests.faults.place import PROCESSES, Place
from tests.support import logind
from tests.support.fixtures import message_bus as private_bus
from tests.support.systemd_worlds import SCRIPT, mock_command
from tests.support.units import make_program
from tests.support.wait import until


class MockPlace(Place):
    """On python-dbusmock and a message bus of its own."""

    is_real = False

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
            self._runtime = runtime
            self.environment["XDG_RUNTIME_DIR"] = str(runtime)
            # The session's own journal has the runs of a model of that name on the real manager.
            journal = folder / "bin" / "journalctl"
            journal.parent.mkdir()
            journal.write_text("#!/bin/sh\n")
            journal.chmod(0o755)
            self.environment["PATH"] = f"{journal.parent}:{os.environ['PATH']}"
            closing.callback(self.close)
            until(self._answers, "the mock")
            self.program.write_text("#!/bin/sh\n")
            self.program.chmod(0o755)
            yield self

    def _answers(self) -> bool:
        manager = DBusAddress(wire.MANAGER_PATH, wire.DESTINATION, wire.MANAGER)
        with suppress(DBusErrorResponse):
            self.view.ask(self.view.bus, new_method_call(manager, "ListJobs"))
            return True
        return False

    def _script(self, member: str, signature: str, *body: Any) -> None:
        script = DBusAddress(wire.MANAGER_PATH, wire.DESTINATION, SCRIPT)
        self.view.ask(self.view.bus, new_method_call(script, member, signature, body))

    def stubborn(self) -> None:
        self._script("Behave", "ss", UNIT, json.dumps({"stop": "failed"}))

    def hold(self, on: bool) -> None:
        self._script("Behave", "ss", UNIT, json.dumps({"start": "hang"} if on else {}))

    def refuse(self, member: str, times: int = 1) -> None:
        """Have systemd answer the next calls of a method with an error."""
        self._script("Refuse", "sssi", member, f"{wire.DESTINATION}.NotThisTime", "not this time", times)

    def keep(self) -> None:
        """Remember everything, while no daemon runs."""
        self._script("Keep", "")
        for path in (self.home, self._runtime):
            shutil.copytree(path, self.folder / "kept" / path.name, symlinks=True, dirs_exist_ok=False)

    def forget(self) -> None:
        """What is remembered."""
        shutil.rmtree(self.folder / "kept", ignore_errors=True)

    def restore(self) -> None:
        """Have everything as it was, while no daemon runs."""
        for path in (self.home, self._runtime):
            shutil.rmtree(path)
            shutil.copytree(self.folder / "kept" / path.name, path, symlinks=True)
        self._script("Restore", "")
        self.view.linger_no_more()

    def crash(self) -> None:
        self._script("Crash", "sii", UNIT, 2, signal.SIGKILL)


class RealPlace(Place):
    """On this session's own systemd manager, which is a private one (scripts/private-systemd)."""

    is_real = True
    _stubborn = False
    _waited_for: int | None = None
    """The other end of the FIFO in which it hangs."""

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
        if not on and self._gate.is_fifo():  # who has come to it waits on
            self._waited_for = until(self._other_end, "its coming to the gate")
        self._gate.unlink(missing_ok=True)
        if on:
            os.mkfifo(self._gate)
        else:
            self._gate.touch()

    def _other_end(self) -> int | None:
        try:
            return os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody reads yet
            return None

    def calm(self) -> None:
        if self._waited_for is not None:
            os.close(self._waited_for)
            self._waited_for = None
        self._gate.unlink(missing_ok=True)
        super().calm()
        self._stubborn = False

    def crash(self) -> None:
        os.kill(self.view.unit(UNIT)["MainPID"], signal.SIGKILL)


@contextmanager
def _logind(address: str) -> Iterator[None]:
    process = PROCESSES.Process(target=logind.process, args=(address,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
