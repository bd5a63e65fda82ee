"""What fails and cannot be undone at once, since the database is locked: it is as before, in this daemon and in the next one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import pytest

from cortexd.errors import CortexError, StoreFailed, SystemdUnavailable
from cortexd.events import Event
from cortexd.intents import Intents
from cortexd.store import Intent, database
from tests.manager.steps import again, everything
from tests.support.house import ME, House

Do = Callable[[House], Awaitable[object]]


@contextmanager
def locked(house: House) -> Iterator[None]:
    """By another program."""
    with closing(sqlite3.connect(house.scope.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)


@asynccontextmanager
async def locked_from_its_reload_on(house: House, *, refused: bool) -> AsyncIterator[None]:
    """The database, until the end of the block; the reload itself may be refused, too."""
    reload, lock = house.systemd.reload, locked(house)

    async def once(*_: Any) -> None:
        house.systemd.reload = reload  # type: ignore[method-assign]
        lock.__enter__()
        if refused:
            raise SystemdUnavailable("not this time")
        await reload()

    house.systemd.reload = once  # type: ignore[method-assign]
    yield
    lock.__exit__(None, None, None)


async def register(house: House) -> None:
    given = {"backend": "llamacpp", "path": str(house.gguf), "exec": str(house.server), "port": "auto", "gpus": "none"}
    await house.manager.register("a", given, ME, api_key=True)


async def change(house: House) -> None:
    await house.manager.set("a", {"max_model_len": 77, "memory": "3G"}, ME)


async def nothing(house: House) -> None:
    pass


USES: dict[str, tuple[Do, Do]] = {
    "register": (nothing, register),
    "set": (lambda house: house.register(), change),
    "set-running": (lambda house: house.running(), change),
}


@pytest.mark.parametrize("reload", [False, True], ids=["reload refused", "commit refused"])
@pytest.mark.parametrize("next_daemon", [False, True])
@pytest.mark.parametrize("use", USES)
async def test_it_is_as_before(house: House, use: str, next_daemon: bool, reload: bool) -> None:
    prepare, do = USES[use]
    await prepare(house)
    await house.events()
    before = everything(house)
    async with locked_from_its_reload_on(house, refused=not reload):
        with pytest.raises(CortexError, match="database is locked" if reload else "not this time"):
            await do(house)
        assert everything(house) == before
        with pytest.raises(StoreFailed, match="database is locked; another program keeps it locked; end that program"):
            await do(house)  # it still is, and that is all that is wrong
        assert everything(house) == before
    if next_daemon:
        await again(house)
        await house.manager.recovery.run()
        assert everything(house) == before
        assert await house.store.unfinished() == [] and house.manager.catalog.secrets.models() == []
    await do(house)
    assert everything(house) != before
    assert await house.store.unfinished() == []
    done, failed = ("registered", "register-failed") if use == "register" else ("set", "set-failed")
    kinds = await house.kinds()
    assert kinds.count(done) == 1 and kinds[-1] == done
    assert kinds.count(failed) == (0 if next_daemon else 1)
    after = everything(house)
    await again(house)
    assert everything(house) == after, "what was confirmed stays"


@pytest.mark.parametrize("key", [False, True])
async def test_what_was_to_be_registered_when_a_daemon_was_killed_has_left_nothing(house: House, key: bool) -> None:
    """Its unit file was there, and systemd knew it."""
    await register(house) if key else await house.register()
    await house.register("b")
    await house.close()
    with closing(sqlite3.connect(house.scope.database)) as connection:
        connection.execute("DELETE FROM models WHERE name = 'a'")
        connection.execute(
            "INSERT INTO intents (time, model, kind, details, actor) VALUES (0, 'a', 'register', '{}', '')"
        )
        connection.commit()
    await house.open()
    assert house.manager.catalog.warnings == []
    assert not house.path().exists() and house.unit().load_state == "not-found" and house.path("b").exists()
    assert house.manager.catalog.secrets.models() == []
    await house.manager.recovery.run()
    assert await house.store.unfinished() == []


async def test_a_row_that_cannot_be_read_is_replaced_by_registering_it_again(house: House) -> None:
    await house.register()

    def harm() -> None:
        with closing(sqlite3.connect(house.scope.database)) as connection:
            connection.execute("UPDATE models SET settings = '['")
            connection.commit()

    await again(house, before=harm)
    assert any("until it is registered again" in warning for warning in house.manager.catalog.warnings)
    await house.register(max_model_len=77)
    await again(house)
    assert house.manager.view("a").model.spec.max_model_len == 77


async def test_what_could_not_be_ended_is_ended_once_however_many_begin_then(house: House) -> None:
    intents = Intents(house.store)
    number = await intents.begin(Intent(model="a", kind="enable"))
    with locked(house):
        async with intents.ending(number, Event(model="a", kind="enable", message="enabled")):
            pass
        with pytest.raises(StoreFailed):
            await intents.begin(Intent(model="b", kind="start"))  # and it is not forgotten by that
    begun = await asyncio.gather(*(intents.begin(Intent(model=name, kind="start")) for name in "bcd"))
    assert [intent.id for intent in await house.store.unfinished()] == sorted(begun)
    assert await house.kinds() == ["enable"]
