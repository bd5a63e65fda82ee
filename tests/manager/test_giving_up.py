"""Giving up, and a person or a boot who wants the model all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cortexd.states import State
from cortexd.store import Store
from tests.manager.test_restarts import crash_loop, fail_again
from tests.support.house import House
from tests.support.wait import aio_until


@pytest.mark.parametrize("again", ["active", "auto-restart"])
async def test_a_start_that_failed_once_before_cortexd_was_up_is_not_undone(house: House, again: str) -> None:
    """After giving up: a boot, or systemctl start, while cortexd is away."""
    unit = await crash_loop(house, 3)
    await house.until(State.FAILED)
    await house.until_event("stays-stopped")
    await house.close()
    house.systemd.change(unit, n_restarts=0)
    house.systemd._units.run(unit)
    house.systemd.crash(unit)
    if again == "active":
        house.systemd.finish(unit)
        house.systemd._units.run(unit)
        house.systemd.change(unit, active_state="active", sub_state="running")
    await house.open()
    assert house.state() is (State.READY if again == "active" else State.RESTARTING)
    assert house.unit().n_restarts == 1 and house.asked("StopUnit") == [("StopUnit", unit)]


async def test_a_stop_that_was_not_done_yet_is_done_by_the_next_daemon(house: House) -> None:
    unit = await house.running(max_restarts=2, Restart="always")
    house.systemd.behave(unit, restart=True, stop="hang")
    await fail_again(house, unit, 2)
    await aio_until(lambda: bool(house.asked("StopUnit")), "the stop")
    await house.close()
    house.systemd.finish(unit)
    house.systemd._units.run(unit)
    house.systemd.change(unit, n_restarts=3, active_state="active", sub_state="running")
    house.systemd.behave(unit)
    await house.open()
    await house.until(State.FAILED)
    await house.until_event("stays-stopped")


async def test_a_stop_that_was_done_while_nobody_looked_is_told(house: House) -> None:
    unit = await house.running(max_restarts=2, Restart="always")
    house.systemd.behave(unit, restart=True, stop="hang")
    await fail_again(house, unit, 2)
    await aio_until(lambda: bool(house.asked("StopUnit")), "the stop")
    await house.close()
    house.systemd.finish(unit)
    await house.open()
    assert "stays-stopped" in await house.kinds()


@pytest.mark.parametrize("by", ["cortexctl", "systemctl"])
async def test_a_start_while_it_is_given_up_wins(house: House, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """The last failure is being counted when a person starts the model."""
    unit = await crash_loop(house, 2)
    house.systemd.finish(unit)
    events, counting, go_on = Store.events, asyncio.Event(), asyncio.Event()

    async def slowly(store: Store, query: Any) -> Any:
        found = await events(store, query)
        if "gave-up" in query.kinds and not go_on.is_set():
            counting.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(Store, "events", slowly)
    house.systemd.crash(unit)
    await counting.wait()
    if by == "cortexctl":
        starting = asyncio.create_task(house.start())
    else:
        house.systemd.change(unit, n_restarts=0)
        starting = asyncio.create_task(house.systemd.restart_unit(unit))  # type: ignore[arg-type]
    for _ in range(100):
        await asyncio.sleep(0)
    go_on.set()
    job = await starting
    await (job.wait() if by == "cortexctl" else job.wait(5))  # type: ignore[call-arg]
    await house.events()
    assert house.state() is State.READY and not house.manager.view("a").model.gave_up
    kinds = await house.kinds()
    if "gave-up" in kinds:
        assert kinds.index("gave-up") < kinds.index("start", 3), "before it was asked for"
