"""The disk full at every page that a use-case writes: then the model is as it was or as it was asked to be, as the client is told.

The disk is a real one of a few pages, under database, unit files and secrets alike; it runs full in the kernel. How many
pages a use-case needs is found out: from none on, until it does what it should.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cortexd.errors import CortexError, StoreFailed
from cortexd.states import State
from cortexd.store import files
from cortexd.systemd.fake import FakeSystemd
from cortexd.units.files import FileState
from tests.support.disk import SmallDisk
from tests.support.house import ME, House

Step = Callable[[House], Awaitable[Any]]


HERE = "CORTEX_SMALL_DISK"
"""Names the small disk where these tests see it; test_disk.py runs them there."""


@pytest.fixture
def disk() -> SmallDisk:
    return SmallDisk(Path(os.environ[HERE]))


async def _nothing(house: House) -> None:
    pass


async def _secret(house: House) -> None:
    await house.register()
    await house.manager.set_secret("a", "HF_TOKEN", b"canary", ME)


async def _edited(house: House) -> None:
    await house.running()
    house.path().write_text(house.path().read_text().replace("[Service]", "[Service]\nNice=5"))


async def _deleted(house: House) -> None:
    await house.register()
    house.path().unlink()


async def _enabled(house: House) -> None:
    await house.running()
    await house.manager.enable("a", ME, linger=False)


USES: dict[str, tuple[Step, Step]] = {
    "register": (_nothing, lambda house: house.register()),
    "set": (lambda house: house.register(), lambda house: house.manager.set("a", {"max_model_len": 77}, ME)),
    "set-running": (lambda house: house.running(), lambda house: house.manager.set("a", {"memory": "3G"}, ME)),
    "start": (lambda house: house.register(), lambda house: _to_its_end(house.start())),
    "start-deleted": (_deleted, lambda house: _to_its_end(house.start())),
    "stop": (lambda house: house.running(), lambda house: _to_its_end(house.stop())),
    "restart": (lambda house: house.running(), lambda house: _to_its_end(house.restart())),
    "enable": (lambda house: house.register(), lambda house: house.manager.enable("a", ME, linger=False)),
    "disable": (_enabled, lambda house: house.manager.disable("a", ME)),
    "secret-set": (lambda house: house.register(), lambda house: _secret_set(house)),
    "secret-unset": (_secret, lambda house: house.manager.remove_secret("a", "HF_TOKEN", ME)),
    "repair": (_edited, lambda house: house.manager.repair("a", ME)),
    "kill": (lambda house: house.running(), lambda house: house.manager.kill("a", "KILL", "all", ME)),
    "unregister": (_secret, lambda house: _to_its_end(house.unregister())),
    "unregister-running": (_enabled, lambda house: _to_its_end(house.unregister(force=True))),
}


ENDS = ("stop", "kill", "unregister", "unregister-running")


async def _to_its_end(job: Awaitable[Any]) -> None:
    await (await job).wait()


async def _secret_set(house: House) -> None:
    await house.manager.set_secret("a", "HF_TOKEN", b"canary", ME)


def picture(house: House) -> dict[str, Any]:
    """What there is of the model, as far as somebody can ask for it."""
    if "a" not in house.manager.catalog.models:
        return {"registered": False, "file": house.path().exists()}
    model, unit = house.manager.catalog.get("a"), house.unit()
    return {
        # One that is missing is written by the first who needs it, whatever becomes of what was asked for.
        "edited": house.manager.catalog.units.drift(model).state is FileState.EDITED,
        "length": model.spec.max_model_len,
        "memory": str(model.spec.limits),
        "running": unit.running,
        "run": unit.invocation_id,
        "enabled": unit.unit_file_state == "enabled",
        "secrets": house.manager.catalog.secrets.names("a"),
    }


@asynccontextmanager
async def prepared(disk: SmallDisk, prepare: Step) -> AsyncIterator[House]:
    """A cortexd on the disk; nothing is left there afterwards."""
    disk.free()
    house = House(disk.path / "house")
    # systemd's own files lie in /run.
    house.systemd = FakeSystemd(house.scope.unit_folder, runtime=disk.path.with_name("run"))
    try:
        await house.open()
        await prepare(house)
        await house.events()
        yield house
    finally:
        disk.free()
        await house.close()
        await asyncio.to_thread(shutil.rmtree, disk.path / "house")


async def _tried(use: Step, house: House) -> str:
    try:
        await use(house)
    except CortexError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("case", USES)
async def test_full_at_every_page(case: str, disk: SmallDisk) -> None:
    prepare, use = USES[case]
    async with prepared(disk, prepare) as house:
        before = picture(house)
        await use(house)
        asked = picture(house)
    refused = 0
    for pages in range(100):
        async with prepared(disk, prepare) as house:
            disk.leave(pages)
            error = await _tried(use, house)
            told, where = picture(house), f"with {pages} pages: {error or 'done'}"
            assert told == (before if error else asked), where
            assert not error or "full" in error or "No space" in error, where
            disk.free()
            assert error == "" or await _tried(use, house) == "", "with room again"
            await house.close()
            await house.open()
            await house.manager.recovery.run()
            assert {**picture(house), "run": ""} == {**asked, "run": ""}, f"{where}; after the next start"
            if not error:
                # What ends a model makes room: for that some is kept.
                assert bool(refused) is (case not in ENDS), "a use-case that needs no room?"
                return
            refused += 1
    raise AssertionError("a use-case of a hundred pages?")


async def _start(house: House) -> str:
    """What keeps a daemon from starting there; empty where nothing does."""
    try:
        await house.open()
    except StoreFailed as e:
        assert files.is_passing(e.__cause__), "systemd would not try again"
        return str(e)
    return ""


async def test_a_daemon_that_starts_on_a_full_disk(disk: SmallDisk) -> None:
    """It serves what it can and refuses what it cannot, or it ends with the reason, to be tried again; with room all is well."""
    served = refused = 0
    for pages in range(0, 100, 4):  # 64 would be the reserve
        async with prepared(disk, lambda house: house.running()) as house:
            before = picture(house)
            await house.close()
            house.path().unlink()  # there is something to write
            for kept in disk.path.glob("house/home/.cortex/models.db.reserve"):
                kept.unlink()
            disk.leave(pages)
            error = await _start(house)
            where = f"with {pages} pages: {error or 'started'}"
            if error:
                refused += 1
                assert "models.db" in error and error.endswith("; make room"), where
            else:
                assert house.state() is State.READY and {**picture(house), "file": ""} == {**before, "file": ""}, where
                told = await _tried(lambda house: house.manager.set("a", {"max_model_len": 77}, ME), house)
                assert not told or "full" in told or "No space" in told, where
                served += bool(told)
                await house.close()
            disk.free()
            assert await _start(house) == "", f"{where}; with room again"
            assert house.path().exists() and house.state() is State.READY, where
            await house.manager.set("a", {"max_model_len": 78}, ME)
    assert served and refused, "a disk on which everything can be served is not full"
    print(
        f"started on a full disk: {served} times served and refused a change, {refused} times ended to be tried again"
    )
