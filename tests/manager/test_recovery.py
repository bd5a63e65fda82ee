"""What a daemon that was killed had begun: done before anybody changes that model, whatever stands in the way."""

from __future__ import annotations

import asyncio
import logging

import pytest

from cortexd import recovery
from cortexd.errors import Busy, InvalidConfig, StoreFailed, SystemdUnavailable, UnitFailed
from cortexd.states import State
from cortexd.store import Intent
from tests.manager.steps import fail
from tests.support.house import ME, House


async def killed_in(house: House, *intents: Intent) -> None:
    """A daemon was killed in these, and there is another one."""
    for intent in intents:
        await house.store.begin(intent)
    await house.close()
    await house.open()


async def test_nobody_changes_a_model_before_what_was_begun_is_finished(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = await house.running()
    await house.register("b")
    house.systemd.behave(unit, stop="hang")
    await killed_in(house, Intent(model="a", kind="unregister", details={"force": True}))
    recovering = asyncio.create_task(house.manager.recovery.run())
    await house.until(State.STOPPING)
    await house.manager.recovery.admit(["b"])
    waiting = asyncio.create_task(house.manager.recovery.admit(["b", "a"]))
    await asyncio.sleep(0)  # it has begun to wait, with all patience
    monkeypatch.setattr(recovery, "PATIENCE", 0.01)
    with pytest.raises(
        Busy, match="'a': its unregister, begun before cortexd was killed, is still being finished; try"
    ):
        await house.manager.recovery.admit(["a"])
    assert not waiting.done()
    house.systemd.finish(unit)
    await asyncio.gather(recovering, waiting)
    assert "a" not in house.manager.catalog.models
    await house.register()
    assert await house.store.unfinished() == []


async def test_what_this_daemon_begins_is_no_other_ones(house: House) -> None:
    await house.register()
    await killed_in(house)
    number = await house.store.begin(Intent(model="a", kind="enable"))
    await house.manager.recovery.run()
    assert [intent.id for intent in await house.store.unfinished()] == [number]
    assert house.unit().unit_file_state == "disabled"


@pytest.mark.parametrize("where", ["disable_unit", "stop_unit", "store"])
async def test_what_passes_is_waited_for(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    await house.running()
    await house.manager.enable("a", ME, linger=False)
    await killed_in(house, Intent(model="a", kind="unregister", details={"force": True}))
    monkeypatch.setattr(recovery, "PAUSES", (0.001,))
    monkeypatch.setattr(recovery, "PATIENCE", 0.02)
    with monkeypatch.context() as patch:
        gone = SystemdUnavailable("gone")
        if where == "store":
            patch.setattr(house.store, "end", fail(StoreFailed("gone")))
        else:
            patch.setattr(house.systemd, where, fail(gone))
        recovering = asyncio.create_task(house.manager.recovery.run())
        with pytest.raises(Busy, match=r"which cannot be done for now: .*gone; try again"):
            await house.manager.recovery.admit(["a"])
        assert len(await house.store.unfinished()) == 1
    await recovering
    assert house.manager.catalog.models == {} and not house.path().exists()
    assert await house.store.unfinished() == []
    assert (await house.kinds()).count("unregistered") == 1


async def test_what_cannot_be_done_at_all_is_told(house: House) -> None:
    unit = await house.register()
    await killed_in(house, Intent(model="a", kind="start", actor="me[1]"))
    house.gguf.unlink()
    await house.manager.recovery.run()
    (told,) = [event for event in await house.events() if event.kind == "unfinished"]
    assert told.message.startswith("its start, begun before cortexd was killed, could not be finished: path=")
    assert not house.systemd.cached(unit).running and await house.store.unfinished() == []


async def test_an_error_of_ours_is_left_to_the_next_daemon(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await house.register()
    await killed_in(house, Intent(model="a", kind="enable"))
    with monkeypatch.context() as patch:
        patch.setattr(house.systemd, "enable_unit", fail(RuntimeError("a bug")))
        with caplog.at_level(logging.ERROR):
            await house.manager.recovery.run()
    assert "a bug" in caplog.text
    await house.manager.recovery.admit(["a"])
    await killed_in(house)
    await house.manager.recovery.run()
    assert house.unit().unit_file_state == "enabled" and await house.store.unfinished() == []


async def test_what_was_begun_twice_is_done_once_as_it_was_begun_last(house: House) -> None:
    await house.running()
    run = house.unit().invocation_id
    stops = [Intent(model="a", kind="stop", details={"run": each}) for each in ("gone", run)]
    await killed_in(house, *stops, Intent(model="a", kind="enable"), Intent(model="a", kind="enable"))
    await house.manager.recovery.run()
    assert house.state() is State.STOPPED
    assert (await house.kinds()).count("enable") == 1
    assert await house.store.unfinished() == []


@pytest.mark.parametrize("killed_after", ["nothing", "enable"])
async def test_both_of_start_and_enable_or_neither(house: House, killed_after: str) -> None:
    await house.register()
    if killed_after == "enable":
        await house.manager.enable("a", ME, linger=False)
    await killed_in(house, Intent(model="a", kind="enable-now", details={"enabled": False}))
    await house.manager.recovery.run()
    await house.until(State.READY)
    assert house.unit().unit_file_state == "enabled"
    assert (await house.kinds()).count("enable") == 1


async def test_neither_where_the_start_is_refused(house: House) -> None:
    await house.register()
    house.gguf.rename(house.gguf.with_suffix(".away"))
    for enabled in (False, True):
        if enabled:
            await house.manager.enable("a", ME, linger=False)
        with pytest.raises(InvalidConfig):
            await house.manager.start_and_enable("a", ME)
        assert (house.unit().unit_file_state == "enabled") is enabled
        assert await house.store.unfinished() == []
    await house.manager.disable("a", ME)
    await killed_in(house, Intent(model="a", kind="enable-now", details={"enabled": False}))
    await house.manager.recovery.run()
    assert house.unit().unit_file_state == "disabled"


@pytest.mark.parametrize("gone", [SystemdUnavailable("went away during Reload"), UnitFailed("refused to reload")])
async def test_links_count_whether_systemd_reads_its_files_or_not(
    house: House, monkeypatch: pytest.MonkeyPatch, gone: Exception
) -> None:
    await house.register()
    monkeypatch.setattr(house.systemd, "reload", fail(gone))
    (warning,) = await house.manager.enable("a", ME, linger=False)
    assert str(gone) in warning and "daemon-reload" in warning
    assert house.unit().unit_file_state == "enabled"
    await house.manager.disable("a", ME)
    assert house.unit().unit_file_state == "disabled"
    assert [kind for kind in await house.kinds() if kind in ("enable", "disable")] == ["enable", "disable"]
    assert await house.store.unfinished() == []
