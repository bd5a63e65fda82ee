"""What the daemon finds when it starts, and leaves when it ends."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings

from cortexd import missed
from cortexd.errors import (
    ShuttingDown,
)
from cortexd.events import Priority
from cortexd.states import State
from tests.manager.steps import (
    NASTY,
    QUICK,
    ROWS,
    again,
)
from tests.support.house import ME, House
from tests.support.wait import aio_until


async def test_what_is_missing_or_outdated_is_written_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("missing", "outdated", "edited", "current"):
        await house.register(name)
    texts = {name: house.path(name).read_text() for name in ("missing", "outdated", "edited", "current")}
    edited = texts["edited"] + "Nice=5\n"
    inode = house.path("current").stat().st_ino

    def meanwhile() -> None:
        from cortexd.units.files import with_marker

        house.path("missing").unlink()
        house.path("outdated").write_text(with_marker("[Service]\nExecStart=/bin/old\n"))
        house.path("edited").write_text(edited)

    reloads = len(house.asked("Reload"))
    await again(house, before=meanwhile)
    assert {n: house.path(n).read_text() for n in texts} == texts | {"edited": edited}
    assert house.path("current").stat().st_ino == inode
    assert len(house.asked("Reload")) == reloads + 1
    warnings = {n: bool(house.manager.view(n).model.warnings) for n in texts}
    assert warnings == {"missing": False, "outdated": False, "edited": True, "current": False}
    await again(house)
    assert len(house.asked("Reload")) == reloads + 1  # all as it should be: nothing to do


async def test_units_of_no_model_are_reported_and_kept(house: House) -> None:
    await house.register("orphan")
    await house.register("a")
    (house.scope.unit_folder / "cortex-stranger.service").write_text("[Service]\nExecStart=/bin/true\n")

    def forget() -> None:
        with sqlite3.connect(house.scope.database) as connection:
            connection.execute("DELETE FROM models WHERE name = 'orphan'")
        connection.close()

    await again(house, before=forget)
    (warning,) = house.manager.catalog.warnings
    assert "cortex-orphan.service was written by cortexd, but no model 'orphan' is registered" in warning
    assert house.path("orphan").exists() and list(house.manager.catalog.models) == ["a"]


async def test_a_row_that_cannot_be_read_is_reported_and_hides_no_other(house: House) -> None:
    await house.register("a")

    def harm() -> None:
        with sqlite3.connect(house.scope.database) as connection:
            connection.executemany("INSERT INTO models VALUES (?, ?, 0, 0)", NASTY)
        connection.close()

    await again(house, before=harm)
    assert list(house.manager.catalog.models) == ["a"]
    warnings = "\n".join(house.manager.catalog.warnings)
    assert warnings.count("cannot be read and is left alone") == len(NASTY)
    assert len(await house.store.models()) == 1 + len(NASTY)
    assert [p.name for p in house.scope.unit_folder.glob("cortex-*")] == ["cortex-a.service"]


@given(row=ROWS)
@settings(deadline=None, database=None, max_examples=100)
def test_no_row_keeps_the_daemon_from_starting(tmp_path_factory: pytest.TempPathFactory, row: Any) -> None:
    async def story() -> None:
        house = House(tmp_path_factory.mktemp("house"))
        await house.open()
        await house.close()
        with sqlite3.connect(house.scope.database) as connection:
            connection.execute("INSERT INTO models VALUES ('x', ?, 0, 0)", (json.dumps(row),))
        connection.close()
        await house.open()
        assert bool(house.manager.catalog.models) != bool(house.manager.catalog.warnings)
        await house.close()

    asyncio.run(story())


async def test_running_models_are_adopted(house: House) -> None:
    unit = await house.running(**QUICK)
    run = house.unit().invocation_id
    await again(house)
    assert house.state() is State.READY and house.unit().invocation_id == run
    assert (await house.kinds()).count("run") == 1  # known already
    asked = len(house.prober.asked)
    await aio_until(lambda: len(house.prober.asked) > asked, "its probes")

    def by_hand() -> None:
        house.systemd.crash(unit)
        house.systemd._units.run(unit)
        house.systemd._units.change(unit, active_state="active", sub_state="running")

    await again(house, before=by_hand)
    event = await house.until_event("run")
    assert (event.message, event.invocation_id) == ("run began while cortexd was not there", house.unit().invocation_id)
    await (await house.stop()).wait()
    assert house.state() is State.STOPPED


async def test_what_happens_while_the_daemon_starts_is_not_missed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking the journal gives others their turn: a unit may change before the last model is taken over."""
    await house.running("a", **QUICK)
    unit = await house.register("b", **QUICK)
    await house.close()
    missed_runs = missed.missed_runs

    async def slowly(*asked: Any) -> Any:
        await (await house.systemd.start_unit(unit)).wait(5)
        return await missed_runs(*asked)

    monkeypatch.setattr(missed, "missed_runs", slowly)
    await house.open()
    assert (await house.until_event("ready", "b")).invocation_id == house.unit("b").invocation_id
    asked = len(house.prober.asked)
    url = house.manager.view("b").model.url
    await aio_until(lambda: any(u.startswith(url) for u in house.prober.asked[asked:]), "probes of b")


async def test_a_stop_that_outlived_the_daemon_ends_stopped(house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, stop="hang")
    job = await house.stop()
    await house.until(State.STOPPING)
    await again(house, before=lambda: house.systemd.finish(unit, "failed"))
    with pytest.raises(ShuttingDown, match="systemd goes on with the stop of a"):
        await job.wait()
    await house.until(State.STOPPED)
    assert (await house.until_event("stop-unclean")).priority is Priority.WARNING


async def test_while_it_ends_nothing_is_begun(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    job = await house.start()
    waiting = asyncio.create_task(job.wait())
    await asyncio.sleep(0)
    before = list(house.systemd.calls)
    await house.manager.life.close()
    with pytest.raises(ShuttingDown, match="systemd goes on with the start of a"):
        await waiting
    for work in (
        house.start, house.stop, house.restart, house.unregister,
        lambda: house.register("b"),
        lambda: house.manager.set("a", {"port": "1"}, ME),
        lambda: house.manager.enable("a", ME, linger=False),
        lambda: house.manager.disable("a", ME),
        lambda: house.manager.kill("a", "TERM", "all", ME),
        lambda: house.manager.reset_failed("a", ME),
    ):  # fmt: skip
        with pytest.raises(ShuttingDown):
            await work()  # type: ignore[operator]
    assert house.systemd.calls == before
    assert house.state() is State.STARTING  # models go on


async def test_events_that_are_queued_are_written_at_the_end(house: House) -> None:
    unit = await house.running()
    for _ in range(20):
        house.systemd.behave(unit)
        await (await house.restart()).wait()
    await house.close()
    await house.open()
    assert (await house.kinds()).count("run") == 21
