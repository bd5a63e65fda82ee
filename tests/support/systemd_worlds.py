"""Three worlds in which the same story can be told of a systemd manager: in memory, on python-dbusmock, and for real.

A world has a folder of unit files, a started `Systemd`, and the same few ways to make units behave. What a unit does is a
recipe: the real world puts it into the unit's text, the other two are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cortexd.bus import Bus, BusError
from cortexd.systemd.client import SystemdClient
from cortexd.systemd.fake import FakeSystemd
from cortexd.systemd.protocol import Systemd, SystemdJob, UnitState
from cortexd.systemd.wire import DESTINATION, MANAGER, MANAGER_PATH

DEADLINE = 10.0
MOCK_TEMPLATE = Path(__file__).parents[1] / "mock" / "systemd1.py"
SCRIPT = "org.cortexlinux.Test.Script"

Recipe = Literal["server", "loading", "broken", "stubborn", "restarting"]
"""server: ready at once, runs. loading: its start ends when the world says `finish`. broken: cannot be started. stubborn: its stop ends
when the world says `finish`. restarting: a server that systemd starts again when it crashed."""

_names = itertools.count(1)


class World(ABC):
    """One manager to play with."""

    systemd: Systemd
    runtime: Path
    """The user's runtime folder, as the manager has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.units: list[str] = []

    async def add(self, recipe: Recipe = "server", *, install: bool = True) -> str:
        """Write a new unit's file and reload; returns its name."""
        unit = f"cortex-test{os.getpid()}-{next(_names)}.service"
        self.write(unit, recipe, install=install)
        await self.behave(unit, recipe)
        await self.systemd.reload()
        return unit

    def write(self, unit: str, recipe: Recipe = "server", *, install: bool = True, description: str = "test") -> None:
        """Write a unit's file."""
        self.units.append(unit)
        wanted = "\n[Install]\nWantedBy=default.target\n" if install else ""
        service = "\n".join(self.directives(unit, recipe))
        (self.folder / unit).write_text(f"[Unit]\nDescription={description}\n\n[Service]\n{service}\n{wanted}")

    def directives(self, unit: str, recipe: Recipe) -> list[str]:
        """What the unit's [Service] says."""
        return ["Type=exec", "ExecStart=/bin/sleep infinity"]

    async def until(self, unit: str, condition: Callable[[UnitState], bool]) -> UnitState:
        """Wait until the cached state fulfils the condition, told by listeners alone."""
        told = asyncio.Event()
        self.systemd.listen(lambda _, __: told.set())
        async with asyncio.timeout(DEADLINE):
            while not condition(self.systemd.cached(unit)):
                told.clear()
                await told.wait()
        return self.systemd.cached(unit)

    async def started(self, recipe: Recipe = "server") -> str:
        """A new unit that runs."""
        unit = await self.add(recipe)
        assert await done(await self.systemd.start_unit(unit)) == "done"
        return unit

    @abstractmethod
    async def behave(self, unit: str, recipe: Recipe) -> None:
        """Make the unit do what the recipe says."""

    @abstractmethod
    async def finish(self, unit: str) -> None:
        """End what the unit hangs in."""

    @abstractmethod
    async def crash(self, unit: str) -> None:
        """Kill the main process with SIGKILL, as from outside."""

    async def close(self) -> None:
        """Leave nothing behind."""
        await self.systemd.close()


async def done(job: SystemdJob) -> str:
    """A job's result, which has to come by itself, not because a wait ran out."""
    async with asyncio.timeout(DEADLINE):
        return await job.wait(3600)


_SCRIPTS: dict[Recipe, dict[str, Any]] = {
    "server": {},
    "loading": {"start": "hang"},
    "broken": {"start": "failed"},
    "stubborn": {"stop": "hang"},
    "restarting": {"restart": True},
}


class ScriptedWorld(World):
    """One in which it can be chosen when JobRemoved comes."""

    @abstractmethod
    async def script(self, unit: str, **behaviour: Any) -> None:
        """Say what a unit does; see fake_units.Behaviour."""

    async def behave(self, unit: str, recipe: Recipe) -> None:
        await self.script(unit, **_SCRIPTS[recipe])


class FakeWorld(ScriptedWorld):
    """FakeSystemd."""

    @classmethod
    async def create(cls, folder: Path) -> FakeWorld:
        self = cls(folder / "units")
        self.runtime = folder / "run"
        self.systemd = self.fake = FakeSystemd(self.folder, runtime=self.runtime)
        await self.fake.start()
        return self

    async def script(self, unit: str, **behaviour: Any) -> None:
        self.fake.behave(unit, **behaviour)

    async def finish(self, unit: str) -> None:
        self.fake.finish(unit)

    async def crash(self, unit: str) -> None:
        self.fake.crash(unit)


class BusWorld(World):
    """SystemdClient on some bus."""

    bus: Bus
    client: SystemdClient

    async def connect(self, address: str) -> None:
        self.address = address
        self.bus = await Bus.connect(address)
        self.systemd = self.client = SystemdClient(self.bus)
        await self.client.start()

    async def manager(
        self, member: str, signature: str = "", *body: Any, interface: str = MANAGER, bus: Bus | None = None
    ) -> list[Any]:
        """Ask the manager as any other program would."""
        return await (bus or self.bus).call(DESTINATION, MANAGER_PATH, interface, member, signature, body)

    async def close(self) -> None:
        await super().close()
        self.bus.close()


class MockWorld(BusWorld, ScriptedWorld):
    """SystemdClient on python-dbusmock, on a message bus of its own."""

    @classmethod
    async def create(cls, folder: Path, address: str) -> MockWorld:
        self = cls(folder / "units")
        self.address = address
        self.log, self.runtime = folder / "mock.log", folder / "run"
        await self.run_manager()
        await self.connect(address)
        return self

    async def run_manager(self) -> None:
        """Run the mock, and wait until it answers."""
        appeared = asyncio.Event()
        bus = await Bus.connect(self.address)
        await bus.subscribe(
            "type='signal',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='org.freedesktop.systemd1'",
            lambda _: appeared.set(),
        )
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *mock_command(self.folder, self.runtime),
                env={"DBUS_SESSION_BUS_ADDRESS": self.address, "PATH": os.environ["PATH"]},
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(DEADLINE):
            await appeared.wait()
            answers = False
            while not answers:  # the name is owned a moment before the template's methods are there
                with contextlib.suppress(BusError):
                    await self.manager("ListJobs", bus=bus)
                    answers = True
        bus.close()

    async def kill_manager(self) -> None:
        """End the mock's process, and the name's owner with it."""
        self.process.kill()
        await self.process.wait()

    async def script(self, unit: str, **behaviour: Any) -> None:
        await self._script("Behave", "ss", unit, json.dumps(behaviour))

    async def refuse(self, member: str, error: str, message: str = "no", times: int = 1) -> None:
        """Have the next calls of a method answered with an error."""
        await self._script("Refuse", "sssi", member, error, message, times)

    async def _script(self, member: str, signature: str, *body: Any) -> None:
        await self.manager(member, signature, *body, interface=SCRIPT)

    async def calls(self, member: str) -> int:
        """How often a method of the manager was called."""
        (calls,) = await self.manager("GetMethodCalls", "s", member, interface="org.freedesktop.DBus.Mock")
        return len(calls)

    async def finish(self, unit: str) -> None:
        await self._script("Finish", "ss", unit, "done")

    async def crash(self, unit: str) -> None:
        await self._script("Crash", "sii", unit, 2, signal.SIGKILL)

    async def close(self) -> None:
        await super().close()
        if self.process.returncode is None:
            await self.kill_manager()


@functools.cache
def mock_python() -> str:
    """An interpreter that can run python-dbusmock: this one, else the system's (Debian: python3-dbusmock)."""
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([python, "-c", "import dbusmock"], capture_output=True).returncode == 0:
            return python
    raise FileNotFoundError("python-dbusmock is missing: pip install python-dbusmock, or apt install python3-dbusmock")


def mock_command(folder: Path, runtime: Path) -> list[str]:
    """The command line of a mock with that folder of unit files and that runtime folder."""
    parameters = json.dumps({"folder": str(folder), "runtime": str(runtime)})
    return [
        *(mock_python(), "-m", "dbusmock", "--session", "--template", str(MOCK_TEMPLATE)),
        *("--parameters", parameters),
    ]


class RealWorld(BusWorld):
    """SystemdClient on the systemd manager of this session, which should be a private one (scripts/private-systemd)."""

    @classmethod
    async def create(cls, folder: Path) -> RealWorld:
        self = cls(Path.home() / ".config" / "systemd" / "user")
        self.gates, self.runtime = folder, Path(os.environ["XDG_RUNTIME_DIR"])
        await self.connect(os.environ["DBUS_SESSION_BUS_ADDRESS"])
        return self

    def directives(self, unit: str, recipe: Recipe) -> list[str]:
        runs = ["Type=exec", "ExecStart=/bin/sleep infinity"]
        # PrivateTmp is not in use here: the gate is visible. Opening a FIFO waits for the other end.
        wait = f"/bin/sh -c 'read x < {self._gate(unit)}'"
        return {
            "server": runs,
            "loading": [*runs, f"ExecStartPost={wait}"],
            "broken": ["Type=exec", "ExecStart=/nonexistent/server"],
            "stubborn": [*runs, f"ExecStop={wait}"],
            "restarting": [*runs, "Restart=on-failure", "RestartSec=100ms"],
        }[recipe]

    def _gate(self, unit: str) -> Path:
        return self.gates / f"{unit}.gate"

    async def behave(self, unit: str, recipe: Recipe) -> None:
        os.mkfifo(self._gate(unit))

    async def finish(self, unit: str) -> None:
        if self.systemd.cached(unit).sub_state != "auto-restart":  # which ends by itself
            await asyncio.to_thread(self._gate(unit).write_text, "\n")

    async def crash(self, unit: str) -> None:
        os.kill(self.systemd.cached(unit).main_pid, signal.SIGKILL)

    async def close(self) -> None:
        await super().close()
        await self.connect(self.address)  # a test may have ended the first one
        for unit in self.units:
            if self.systemd.cached(unit).running:
                await self.systemd.kill_unit(unit, "all", signal.SIGKILL)
                await done(await self.systemd.stop_unit(unit))
            await self.systemd.reset_failed(unit)
            if self.systemd.cached(unit).unit_file_state == "enabled":
                await self.systemd.disable_unit(unit)
            (self.folder / unit).unlink(missing_ok=True)
            shutil.rmtree(self.folder / f"{unit}.d", ignore_errors=True)
            shutil.rmtree(self.runtime / "systemd" / "user.control" / f"{unit}.d", ignore_errors=True)
        await self.systemd.reload()
        await super().close()
