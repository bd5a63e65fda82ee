"""Giving up, and a person or a boot who wants the model all the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cortexd.api.describe import probe_values
from cortexd.errors import StoreFailed
from cortexd.events import Event
from cortexd.health.policy import Outcome, Probe
from cortexd.states import State
from cortexd.store import Store
from tests.manager.steps import fail
from tests.manager.test_restarts import crash_loop, fail_again
from tests.support.house import ME, House
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
    """It is being written down that the model is given up when a person starts it."""
    unit = await crash_loop(house, 2)
    house.systemd.finish(unit)
    add, counting, go_on = Store.add_event, asyncio.Event(), asyncio.Event()

    async def slowly(store: Store, event: Event) -> None:
        await add(store, event)
        if event.kind == "gave-up":
            counting.set()
            await go_on.wait()

    monkeypatch.setattr(Store, "add_event", slowly)
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
    await (job.wait() if by == "cortexctl" else job.wait(5))
    await house.events()
    assert house.state() is State.READY and not house.manager.view("a").model.gave_up
    kinds = await house.kinds()
    assert ("start" if by == "cortexctl" else "run") in kinds[kinds.index("gave-up") :]
    assert by == "cortexctl" or house.asked("StopUnit") == []


# systemd's own limit


def trips(house: House, unit: str, restarts: int) -> None:
    """As systemd does at its limit (measured on 252): what it counts as a restart begins no run."""
    house.systemd.change(unit, active_state="failed", sub_state="failed", n_restarts=restarts)


async def test_systemds_own_limit_is_the_same_end(house: House) -> None:
    unit = await crash_loop(house, 2, max_restarts=10)
    trips(house, unit, 3)
    gave_up = await house.until_event("gave-up")
    assert gave_up.message == (
        "systemd gave up at its own limit of starts, after 2 failed runs in a row, the last: the server was killed by "
        "SIGKILL; it is restarted no more until it is started by hand or at boot"
    )
    await house.until_event("stays-stopped")
    assert house.state() is State.FAILED and house.reason() == gave_up.message
    await house.systemd.reset_failed(unit)  # past cortexd
    assert house.unit().active_state == "inactive" and house.state() is State.FAILED
    await house.close()
    await house.open()
    assert house.state() is State.FAILED and (await house.kinds()).count("gave-up") == 1
    house.systemd.behave(unit)
    await (await house.start()).wait()
    assert house.state() is State.READY and not house.manager.view("a").model.gave_up


async def test_a_limit_that_tripped_while_nobody_looked_is_told(house: House) -> None:
    unit = await crash_loop(house, 1, max_restarts=10)
    house.systemd.finish(unit)
    await house.until_event("ready")
    await house.close()
    house.systemd.crash(unit)
    trips(house, unit, 3)
    await house.open()
    await house.until_event("stays-stopped")
    assert house.reason().startswith("systemd gave up at its own limit of starts")


async def test_a_unit_that_failed_in_another_way_is_not_given_up(house: House) -> None:
    """systemctl stop of what does not end, after restarts."""
    unit = await crash_loop(house, 1, max_restarts=10)
    house.systemd.finish(unit)
    await house.until_event("ready")
    house.systemd.change(unit, active_state="failed", sub_state="failed", result="timeout", main_pid=0)
    await house.until_event("failed")
    await house.events()
    assert not house.manager.view("a").model.gave_up


async def test_a_stop_in_the_pause_before_a_restart_is_no_failure(house: House) -> None:
    """systemctl stop; systemd 257 has it failed then, 252 inactive."""
    unit = await crash_loop(house, 2)
    house.systemd.change(unit, active_state="failed", sub_state="failed")
    async with asyncio.timeout(10):
        while (await house.events())[-1].message != "stopped while it waited for its next start":
            await asyncio.sleep(0.005)
    assert not house.manager.view("a").model.gave_up


# What is told


async def test_how_much_is_spent_and_what_comes_next(house: House) -> None:
    unit = await crash_loop(house, 1)
    assert house.manager.view("a").model.budget.failed == 1
    house.systemd.finish(unit)
    await house.until(State.READY)

    def coming() -> str:
        return str(probe_values(house.manager.view("a"), Probe(outcome=Outcome.OK))["Next"].value)

    assert coming() == "after 3 failed probes in a row it is restarted"
    await fail_again(house, unit, 1)
    house.systemd.finish(unit)
    await house.until(State.READY)
    assert coming() == "after 3 failed probes in a row it is stopped for good: that would be 3 failed runs in a row"
    await house.manager.set("a", {"max_restarts": "1"}, ME)
    model = house.manager.view("a").model
    await house.manager._observer.liveness.condemn(model, replace(model.health, run=house.unit().invocation_id))
    told = await house.until_event("health-restart")
    assert told.message.endswith("; it is killed and its restart budget is spent with that")
    await house.until(State.FAILED)


async def test_a_full_disk_does_not_let_it_flap_for_ever(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = await crash_loop(house, 2)
    house.systemd.finish(unit)
    await house.until(State.READY)
    await house.events()
    monkeypatch.setattr(Store, "add_event", fail(StoreFailed("the disk is full")))
    house.systemd.crash(unit)
    await house.until(State.FAILED)
    assert house.reason().startswith("3 runs failed in a row")
