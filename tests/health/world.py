"""One model in the product's own observer, budget, restarts and liveness, with simulated time and systemd: what is played here
is the loop of probes, the disk, and whoever asks for anything."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from cortexd.errors import SystemdUnavailable
from cortexd.events import Ending, Event
from cortexd.health.monitor import Watched
from cortexd.model import HealthPolicy, RestartPolicy
from cortexd.observer import Observer
from cortexd.registered import Model, Serving
from cortexd.systemd.fake import FakeSystemd
from cortexd.systemd.protocol import UnitState
from tests.health.clock import Clock

PAUSE = 1.0
"""Seconds from a failed run's end to the next run."""


WRITING = 0.02
"""Seconds that an event needs to the disk, one at a time."""


class Refusing(FakeSystemd):
    """Does nothing that we ask of it until `refuses_until`; `on_failure` is told when a run has been killed."""

    refuses_until = 0.0
    on_failure: Callable[[], None]

    def refuse(self) -> None:
        if asyncio.get_running_loop().time() < self.refuses_until:
            raise SystemdUnavailable("systemd did not answer in time")

    async def stop_unit(self, unit: str) -> Any:
        self.refuse()
        return await super().stop_unit(unit)

    async def reset_failed(self, unit: str) -> None:
        self.refuse()
        await super().reset_failed(unit)

    async def kill_run(self, invocation_id: str, signal: int) -> bool:
        self.refuse()
        running = self.cached("cortex-m.service").main_pid
        if running and invocation_id == self.cached("cortex-m.service").invocation_id:
            self.on_failure()
        return await super().kill_run(invocation_id, signal)


class Watching:
    """In place of Monitor: which run is to be probed."""

    def __init__(self, on_run: Callable[[str], None]) -> None:
        self.run, self._on_run = "", on_run

    def watch(self, model: Watched) -> None:
        if model.run != self.run:
            self.run = model.run
            self._on_run(model.run)

    def forget(self, name: str) -> None:
        self.run = ""

    async def close(self) -> None:
        self.run = ""


class World:
    """`on_event`, `on_run` (one to be probed), `on_begin` (systemd starts the next) and `on_failure` (a run was killed) tell
    what happens."""

    def __init__(self, health: HealthPolicy, restart: RestartPolicy, player: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / "cortex-m.service").write_text("[Service]\nExecStart=/bin/true\nRestart=always\n")
        self._player = player
        self._runner = asyncio.Runner(loop_factory=Clock)
        self.loop = self._runner.get_loop()
        self.loop.set_exception_handler(lambda loop, context: player.wrong.append(repr(context)))
        clock = SimpleNamespace(monotonic_ns=lambda: int(self.loop.time() * 1e9))
        self._patch = mock.patch("cortexd.systemd.fake_units.time", clock)
        self._patch.start()
        self.systemd = Refusing(folder)
        self.systemd.on_failure = player.on_failure
        spec = SimpleNamespace(health=health, restart=restart)
        definition = SimpleNamespace(spec=spec, serving=lambda run, known: Serving(run, "http://127.0.0.1:9", "/", "d"))
        self.model = Model("m", cast(Any, definition))
        self.unit = self.model.unit
        self._disk = asyncio.Lock()
        self.run(self._open())

    def run(self, story: Any) -> Any:
        """Have a coroutine run, and whatever else is due in its time."""
        return self._runner.run(story)

    def close(self) -> None:
        self.run(self.observer.close())
        self._runner.close()
        self._patch.stop()
        self._folder.cleanup()

    @property
    def now(self) -> float:
        return self.loop.time()

    @property
    def state(self) -> UnitState:
        return self.systemd.cached(self.unit)

    async def _open(self) -> None:
        await self.systemd.start()
        self.systemd.behave(self.unit, restart=True)
        catalog = SimpleNamespace(
            models={"m": self.model}, locked=self._locked, secrets=None, count=self.model.budget.add
        )
        store = SimpleNamespace(add_event=self._add_event)
        scope = SimpleNamespace(runtime=None)

        async def ended(*_: object) -> None:
            pass

        diagnoser = SimpleNamespace(watch=lambda *_: None, ended=ended)
        told = lambda name: None  # noqa: E731
        parts: list[Any] = [scope, catalog, store, self.systemd, None, diagnoser, told]
        self.observer = Observer(*parts)
        self.watching = Watching(self._player.on_run)
        self.observer.liveness._monitor = cast(Any, self.watching)
        self.observer.added(self.model)
        self.systemd.listen(self.observer._on_unit)
        self.systemd.listen(self._on_unit)

    @asynccontextmanager
    async def _locked(self, model: Model) -> AsyncIterator[None]:
        async with model.lock:
            yield

    async def _add_event(self, event: Event) -> None:
        async with self._disk:
            await asyncio.sleep(WRITING)
            self.model.budget.add(event)
            self._player.on_event(event)

    def _on_unit(self, unit: str, new: UnitState) -> None:
        if new.sub_state == "auto-restart":
            self.loop.call_later(PAUSE, self._again, new.invocation_id)

    def _again(self, run: str) -> None:
        if (self.state.sub_state, self.state.invocation_id) == ("auto-restart", run):
            self._player.on_begin()
            self.systemd.finish(self.unit)

    # What people do; systemd refuses them nothing

    async def start(self) -> None:
        """cortexctl start."""
        async with self.model.lock:
            await self._asked("start")
            if self.state.active_state != "active":
                await FakeSystemd.reset_failed(self.systemd, self.unit)
            if self.state.sub_state == "auto-restart":
                await self.systemd.restart_unit(self.unit)
            else:
                await self.systemd.start_unit(self.unit)
        await asyncio.sleep(0.5)

    async def start_past_us(self) -> None:
        """systemctl start, of a unit at rest."""
        self.systemd.change(self.unit, n_restarts=0)
        await self.systemd.start_unit(self.unit)
        await asyncio.sleep(0.5)

    async def stop(self) -> None:
        """cortexctl stop."""
        await self._asked("stop")
        self.model.ending = Ending(self.state.invocation_id, "stop")
        await FakeSystemd.stop_unit(self.systemd, self.unit)
        await asyncio.sleep(0.5)

    async def _asked(self, kind: str) -> None:
        run = self.state.invocation_id
        await self.observer.recorder.add(Event(model="m", kind=kind, message=kind, invocation_id=run, actor="me"))
