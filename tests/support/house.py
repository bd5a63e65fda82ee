"""A whole Manager in one process: FakeSystemd below it, a real database and real files in a folder of the test's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from cortexd import waiter
from cortexd.events import Event
from cortexd.health.policy import Outcome, Probe
from cortexd.health.probe import Answer, Prober, Server
from cortexd.jobs import Job
from cortexd.manager import Manager
from cortexd.names import unit_name
from cortexd.registration import Caller
from cortexd.scope import Scope
from cortexd.states import State
from cortexd.store import EventQuery, Store
from cortexd.systemd.fake import FakeSystemd
from cortexd.systemd.protocol import UnitState
from cortexd.units.render import Tools
from tests.support.wait import aio_until

EMPTY_GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
"""A whole GGUF file of version 3, with neither tensors nor metadata."""

ME = Caller("me[1]", search_path="", working_directory="/")


class FakeLogind:
    """Says what it is told to say about lingering."""

    def __init__(self) -> None:
        self.lingers: bool | None = True
        self.asked: list[bool] = []

    async def listen(self, resumed: Callable[[], None]) -> None:
        self.resumed = resumed

    def close(self) -> None:
        pass

    async def linger(self) -> bool | None:
        return self.lingers

    async def set_linger(self, enable: bool) -> None:
        self.asked.append(enable)
        self.lingers = enable


class FakeProber(Prober):
    """Answers as it is told, at once."""

    def __init__(self) -> None:
        self.outcome = Outcome.OK
        self.reason = ""
        self.asked: list[str] = []

    async def probe(self, server: Server, timeout: float) -> Probe:
        self.asked.append(server.url + server.endpoint)
        await asyncio.sleep(0)
        return Probe(outcome=self.outcome, reason=self.reason)

    async def ask(self, server: Server, path: str, timeout: float, *, json: str = "", max_body: int = 0) -> Answer:
        self.asked.append(server.url + path)
        return Answer(404)


class House:
    """One user's home with a cortexd in it. `open` starts the daemon's inside, `close` ends it; both any number of times."""

    manager: Manager
    store: Store

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        self.scope = Scope(
            bus_address="",
            system_bus_address="",
            home=home,
            unit_folder=home / ".config" / "systemd" / "user",
            data=home / ".cortex",
            cache=home / ".cache",
            search_path="/usr/bin:/bin",
            backend_folders=(home / ".config" / "cortex" / "backends",),
        )
        self.scope.unit_folder.mkdir(parents=True)
        self.gguf, self.server = folder / "tiny.gguf", folder / "llama-server"
        self.gguf.write_bytes(EMPTY_GGUF)
        self.server.write_text("#!/bin/sh\n")
        self.server.chmod(0o755)
        self.systemd = FakeSystemd(self.scope.unit_folder)
        self.logind, self.prober = FakeLogind(), FakeProber()
        self._closing = AsyncExitStack()

    async def open(self) -> Manager:
        """What app.run does, without a bus."""
        self.store = await Store.open(self.scope.database)
        self._closing.push_async_callback(self.store.close)
        tools = Tools(sys.executable, waiter.__file__, "/usr/bin/env", "/usr/bin/mkdir", 252)
        self.manager = Manager(self.scope, self.store, self.systemd, self.logind, self.prober, tools)
        self._closing.push_async_callback(self.manager.close)
        self.manager._examiner.prover._known = True  # no unit of ours can try a sandbox here
        await self.systemd.start()
        await self.manager.start()
        return self.manager

    async def close(self) -> None:
        """End the daemon; systemd's units go on."""
        self.systemd._units.listeners.clear()
        await self._closing.aclose()

    # What tests do

    async def register(self, name: str = "a", **settings: object) -> str:
        """Register a model of llama.cpp; returns its unit."""
        given = {
            "backend": "llamacpp",
            "path": str(self.gguf),
            "exec": str(self.server),
            "port": "auto",
            "gpus": "none",
        }
        await self.manager.register(name, given | {k.replace("__", "."): v for k, v in settings.items()}, ME)
        return unit_name(name)

    async def running(self, name: str = "a", **settings: object) -> str:
        """Register a model and start it; returns its unit."""
        unit = await self.register(name, **settings)
        await (await self.start(name)).wait()
        return unit

    async def start(self, name: str = "a") -> Job:
        return await self.manager.life.start(name, ME)

    async def stop(self, name: str = "a") -> Job:
        return await self.manager.life.stop(name, ME)

    async def restart(self, name: str = "a") -> Job:
        return await self.manager.life.restart(name, ME)

    async def unregister(self, name: str = "a", *, force: bool = False) -> Job:
        return await self.manager.unregister(name, ME, force=force)

    def path(self, name: str = "a") -> Path:
        """Its unit file."""
        return self.scope.unit_folder / unit_name(name)

    def state(self, name: str = "a") -> State:
        """What a person is told."""
        return self.manager.view(name).judgement.state

    def reason(self, name: str = "a") -> str:
        """Why."""
        return self.manager.view(name).judgement.reason

    def unit(self, name: str = "a") -> UnitState:
        """What systemd says."""
        return self.systemd.cached(unit_name(name))

    def asked(self, *calls: str) -> list[tuple[str, ...]]:
        """Which of these calls systemd got, in their order."""
        return [call for call in self.systemd.calls if call[0] in calls]

    async def events(self, name: str = "a") -> list[Event]:
        """Its events, once those that are queued are written."""
        await self.manager._observer.recorder.written()
        return await self.store.events(EventQuery(models=[name], limit=1000))

    async def kinds(self, name: str = "a") -> list[str]:
        """The kinds of its events, in their order; but for causes, which are found whenever a log was read."""
        return [event.kind for event in await self.events(name) if event.kind != "cause"]

    async def until_event(self, kind: str, name: str = "a") -> Event:
        """Wait for an event."""
        found: list[Event] = []
        async with asyncio.timeout(10):
            while not found:
                found = [e for e in await self.events(name) if e.kind == kind]
                await asyncio.sleep(0.005)
        return found[-1]

    async def until(self, state: State, name: str = "a") -> None:
        """Wait for a state."""
        await aio_until(lambda: self.state(name) is state, f"{name} to be {state}")
