"""Unregistering, and what waits for a model that goes."""

from __future__ import annotations

import asyncio

import pytest

from cortexd.errors import (
    Busy,
    JobFailed,
    NoSuchModel,
    StoreFailed,
    SystemdUnavailable,
    UnitFailed,
)
from cortexd.states import State
from cortexd.store import Intent
from tests.manager.steps import (
    everything,
    fail,
)
from tests.support.house import ME, House


async def test_unregister(house: House) -> None:
    unit = await house.register()
    await house.manager.enable("a", ME, linger=False)
    removed: list[str] = []
    house.manager.on_remove = removed.append
    await (await house.unregister()).wait()
    assert removed == ["a"] and everything(house) == {"files": {}, "rows": [], "specs": {}}
    assert house.unit().load_state == "not-found" and unit not in house.systemd.known_units()
    order = house.asked("DisableUnitFiles", "StopUnit", "Reload", "ResetFailedUnit")
    assert [call[0] for call in order[-4:]] == ["DisableUnitFiles", "StopUnit", "Reload", "ResetFailedUnit"]
    assert (await house.kinds())[-1] == "unregistered"  # its events stay
    with pytest.raises(NoSuchModel):
        house.manager.view("a")


async def test_a_running_model_is_unregistered_by_force_only(house: House) -> None:
    await house.running()
    with pytest.raises(Busy, match="model 'a' is ready; stop it first, or use --force"):
        await house.unregister()
    assert house.state() is State.READY
    await (await house.unregister(force=True)).wait()
    assert house.manager.catalog.models == {} and not house.unit().running
    assert "failed" not in await house.kinds()


async def test_what_was_answered_with_a_job_is_written_down(house: House) -> None:
    """Though it has to wait for its turn."""
    unit = await house.register()
    async with house.manager.catalog.get("a").lock:
        job = await house.unregister()
        (begun,) = await house.store.unfinished()
        assert (begun.kind, begun.model, begun.details) == ("unregister", "a", {"force": False, "enabled": False})
        assert house.asked("DisableUnitFiles", "StopUnit") == [] and house.path().exists()
    await job.wait()
    assert await house.store.unfinished() == [] and unit not in house.systemd.known_units()


@pytest.mark.parametrize("force", [False, True])
async def test_what_a_killed_daemon_was_to_remove_goes_on_only_by_force_where_it_runs(
    house: House, force: bool
) -> None:
    """It was started by hand meanwhile, say."""
    unit = await house.running()
    await house.store.begin(Intent(model="a", kind="unregister", details={"force": force}))
    await house.close()
    await house.open()
    await house.manager.recovery.run()
    assert house.systemd.cached(unit).running is not force
    assert ("a" in house.manager.catalog.models) is not force
    assert await house.store.unfinished() == []


async def test_a_model_whose_unit_file_is_gone_can_be_unregistered(house: House) -> None:
    await house.register()
    house.path().unlink()
    await house.systemd.reload()
    await (await house.unregister()).wait()
    assert house.manager.catalog.models == {}


@pytest.mark.parametrize("where", ["disable", "stop", "file", "store"])
async def test_a_removal_that_fails_leaves_the_model(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    await house.register()
    await house.manager.enable("a", ME, linger=False)
    before = everything(house)
    with monkeypatch.context() as patch:
        if where == "disable":
            patch.setattr(house.systemd, "disable_unit", fail(SystemdUnavailable("gone")))
        elif where == "stop":
            patch.setattr(house.systemd, "stop_unit", fail(UnitFailed("no")))
        elif where == "file":
            house.scope.unit_folder.chmod(0o500)
        else:
            patch.setattr(house.store, "delete_model", fail(StoreFailed("disk full")))
        with pytest.raises(JobFailed):
            await (await house.unregister()).wait()
        house.scope.unit_folder.chmod(0o700)
    assert everything(house) == before
    assert house.unit().unit_file_state == "enabled"
    await (await house.start()).wait()
    await (await house.unregister(force=True)).wait()


async def test_systemd_that_does_not_reload_does_not_bring_a_model_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()
    removed: list[str] = []
    house.manager.on_remove = removed.append
    monkeypatch.setattr(house.systemd, "disable_unit", house.systemd.refresh)
    monkeypatch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
    warnings = await (await house.unregister()).wait()
    assert warnings == ["is removed, but systemd still remembers its unit: gone"]
    assert removed == ["a"] and house.manager.catalog.models == {} and not house.path().exists()


async def test_what_waits_for_a_model_that_is_removed_meanwhile(house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, stop="hang")
    job = await house.unregister(force=True)
    await house.until(State.STOPPING)
    waiting = [
        asyncio.create_task(work)  # type: ignore[arg-type]
        for work in (
            house.start(),
            house.manager.set("a", {"port": "18006"}, ME),
            house.manager.enable("a", ME, linger=False),
            house.manager.disable("a", ME),
            house.restart(),
        )
    ]
    await asyncio.sleep(0)
    house.systemd.finish(unit)
    await job.wait()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(r) for r in results] == [NoSuchModel] * 5
    assert everything(house) == {"files": {}, "rows": [], "specs": {}}
