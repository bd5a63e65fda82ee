"""kill -9 at every step of every use-case: afterwards each model is as it was, or as it was asked to be, never between.

A step is a call of the database, of systemd or of a thread (files): all that outlives a process. The steps of a use-case
are counted as it runs, not written down here: one that is new is killed at, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cortexd.states import State
from cortexd.units.files import FileState
from tests.support.house import ME, House
from tests.support.wait import aio_until

STORE = ("begin", "end", "save_model", "add_models", "delete_models", "add_event")
SYSTEMD = (
    "start_unit", "stop_unit", "restart_unit", "kill_unit", "reset_failed", "reload", "enable_unit", "disable_unit", "refresh",
)  # fmt: skip


class Killer:
    """Counts steps, and lets everything stand still for ever at the one that it is told."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self._at, self._after = at, after
        self.steps = 0
        self.dead = self.over = False
        self.killed = asyncio.Event()
        self._standing: list[asyncio.Future[None]] = []
        for owner, names in ((house.store, STORE), (house.systemd, SYSTEMD), (asyncio, ("to_thread",))):
            for name in names:
                monkeypatch.setattr(owner, name, self._hooked(getattr(owner, name)))

    def _hooked(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def step(*arguments: Any, **keywords: Any) -> Any:
            if self.over:
                raise asyncio.CancelledError
            if not self.dead:
                self.steps += 1
                last = self.steps == self._at
                result = None if last and not self._after else await function(*arguments, **keywords)
                if not last:
                    return result
                self.dead = True
                self.killed.set()
            standing = asyncio.get_running_loop().create_future()
            self._standing.append(standing)
            return await standing

        return step

    def bury(self) -> None:
        """What stands still may go."""
        self.over = True
        for standing in self._standing:
            standing.cancel()


async def killed_at(
    house: House, monkeypatch: pytest.MonkeyPatch, use: Callable[[House], Awaitable[None]], at: int, *, after: bool
) -> Callable[[], Awaitable[None]] | None:
    """Kill the daemon at a step of `use` and start the next one; None if there are not so many. What is returned buries the
    dead one, whose tasks do again whatever they like then."""
    with monkeypatch.context() as patch:
        killer = Killer(house, patch, at, after=after)
        task = asyncio.ensure_future(use(house))
        dying = asyncio.ensure_future(killer.killed.wait())
        await asyncio.wait({task, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not killer.killed.is_set():
            await task
            dying.cancel()
            return None
        house.systemd._units.listeners.clear()
        await house.store._connection.close()  # the kernel closes a dead process's files
    house._closing = AsyncExitStack()
    await house.open()
    await house.manager.go_on()
    await house.events()

    async def bury() -> None:
        killer.bury()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    return bury


def picture(house: House) -> dict[str, Any]:
    """What there is of the model, as far as a use-case is meant to change it."""
    if "a" not in house.manager.catalog.models:
        return {"registered": False, "file": house.path().exists()}
    model = house.manager.catalog.models["a"]
    return {
        "registered": True,
        "file": model.file_state is FileState.CURRENT,
        "length": model.spec.max_model_len,
        "state": house.state(),
        "enabled": house.unit().unit_file_state == "enabled",
        "secrets": model.definition.secrets.names,
    }


async def _register(house: House) -> None:
    await house.register()


async def _set(house: House) -> None:
    await house.manager.set("a", {"max_model_len": 77}, ME)


async def _start(house: House) -> None:
    await (await house.start()).wait()


async def _stop(house: House) -> None:
    await (await house.stop()).wait()


async def _restart(house: House) -> None:
    await (await house.restart()).wait()


async def _enable(house: House) -> None:
    await house.manager.enable("a", ME, linger=False)


async def _disable(house: House) -> None:
    await house.manager.disable("a", ME)


async def _unregister(house: House) -> None:
    await (await house.unregister(force=True)).wait()


async def _secret(house: House) -> None:
    await house.manager.set_secret("a", "HF_TOKEN", b"canary", ME)


async def _nothing(house: House) -> None:
    pass


async def _running(house: House) -> None:
    await house.running()


async def _enabled(house: House) -> None:
    await house.running()
    await _enable(house)


async def _loading(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    await house.start()
    await house.until(State.STARTING)
    house.systemd.behave(unit, start="done")


CASES = {
    "register": (_nothing, _register),
    "set": (_register, _set),
    "set-running": (_running, _set),
    "start": (_register, _start),
    "stop": (_running, _stop),
    "restart": (_running, _restart),
    "restart-loading": (_loading, _restart),
    "enable": (_running, _enable),
    "disable": (_enabled, _disable),
    "unregister": (_register, _unregister),
    "unregister-running": (_enabled, _unregister),
    "secret": (_register, _secret),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("case", CASES)
async def test_killed_at_every_step(
    case: str, after: bool, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, use = CASES[case]
    reference = House(tmp_path_factory.mktemp("as-asked"))
    await reference.open()
    await prepare(reference)
    before = picture(reference)
    await use(reference)
    asked = picture(reference)
    await reference.close()
    for at in range(1, 200):
        house = House(tmp_path_factory.mktemp(f"killed-{at}"))
        await house.open()
        await prepare(house)
        await house.events()
        bury = await killed_at(house, monkeypatch, use, at, after=after)
        if bury is None:
            await house.close()
            assert at > 1
            return

        def settled(house: House = house) -> bool:
            return picture(house) in (before, asked)

        try:
            await aio_until(settled, deadline=5)
        except AssertionError:
            raise AssertionError(f"killed at step {at}: {picture(house)} is between {before} and {asked}") from None
        assert await house.store.unfinished() == []
        assert house.manager.catalog.warnings == [], f"at {at}"
        await bury()
        await house.close()
    raise AssertionError("a use-case of two hundred steps?")
