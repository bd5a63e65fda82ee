"""Giving up, and a person or a boot who wants the model all the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cortexd import recorder, restarts
from cortexd.api.describe import probe_values
from cortexd.errors import StoreFailed, SystemdUnavailable
from cortexd.events import Event, Priority
from cortexd.health.policy import Outcome, Probe
from cortexd.restarts import Restarts
from cortexd.states import State
from cortexd.store import EventQuery, Store
from cortexd.systemd.jobs import Job
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
    await house.open()
    assert house.state() is (State.READY if again == "active" else State.RESTARTING)
    assert house.unit().n_restarts == (again == "active") and house.asked("StopUnit") == [("StopUnit", unit)]


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


# What is not done at once


async def refuses(house: House, monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Has StopUnit fail so often; returns those that were asked for."""
    asked, stop = list[str](), house.systemd.stop_unit

    async def stop_unit(unit: str) -> Job:
        asked.append(unit)
        if len(asked) <= times:
            raise SystemdUnavailable("systemd did not answer in time")
        return await stop(unit)

    monkeypatch.setattr(house.systemd, "stop_unit", stop_unit)
    return asked


async def test_a_stop_that_systemd_refused_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "_RETRY_SECONDS", 0.02)
    asked = await refuses(house, monkeypatch, 2)
    await crash_loop(house, 3)
    await house.until_event("stays-stopped")
    assert len(asked) == 3 and house.state() is State.FAILED and (await house.kinds()).count("gave-up") == 1


async def test_a_run_that_systemd_began_while_it_refused_is_stopped(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is nobody's asking: it is told, and tries again without waiting."""
    monkeypatch.setattr(restarts, "_RETRY_SECONDS", 600.0)
    asked = await refuses(house, monkeypatch, 1)
    unit = await crash_loop(house, 3)
    await house.until_event("gave-up")
    await aio_until(lambda: len(asked) == 1, "the refusal")
    assert house.manager.view("a").model.ending.by != "gave-up"
    house.systemd.finish(unit)
    await house.until(State.READY)
    house.systemd.crash(unit)
    await house.until_event("stays-stopped")
    assert len(asked) == 2 and (await house.kinds()).count("ended") == 4


async def test_a_run_that_systemd_began_before_it_took_the_stop_is_cortexds_to_stop(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RestartSec=0. Nobody else stopped it, and it is not the run that spent the budget."""
    stop = house.systemd.stop_unit

    async def stop_unit(unit: str) -> Job:
        house.systemd.finish(unit)  # the pause is over
        return await stop(unit)

    monkeypatch.setattr(house.systemd, "stop_unit", stop_unit)
    await crash_loop(house, 3)
    await house.until_event("stays-stopped")
    (gave_up,) = [event for event in await house.events() if event.kind == "gave-up"]
    told = [
        (event.kind, event.message)
        for event in await house.events()
        if event.invocation_id == house.unit().invocation_id
    ]
    assert gave_up.invocation_id != house.unit().invocation_id
    assert ("stopped", "stopped by cortexd, since it is restarted no more") in told
    assert not {"ended", "failed", "exited"} & dict(told).keys() and "systemctl" not in str(told)
    found = await house.manager.why("a")
    assert found.sentence.startswith("3 runs failed in a row, the last: the server was killed by SIGKILL")
    assert found.remedy.endswith("'cortexctl start a' starts it again")


async def test_a_person_who_starts_it_while_systemd_refused_has_it_run(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_RETRY_SECONDS", 0.05)
    asked = await refuses(house, monkeypatch, 1)
    await crash_loop(house, 3)
    await house.until_event("gave-up")
    await aio_until(lambda: len(asked) == 1, "the refusal")
    await (await house.start()).wait()
    await asyncio.sleep(0.1)  # the retry's time comes and goes
    await house.events()
    assert house.state() is State.READY and len(asked) == 1


@pytest.mark.parametrize("pause", [True, False])
async def test_a_budget_of_one_is_spent_by_the_first_failure(
    house: House, monkeypatch: pytest.MonkeyPatch, pause: bool
) -> None:
    """systemd has not counted its restart in the pause before it; the next run may be there before we decide."""
    unit = await house.running(max_restarts=1, Restart="always")
    house.systemd.behave(unit, restart=True)
    add, go_on = Store.add_event, asyncio.Event()

    async def slowly(store: Store, event: Event) -> None:
        if event.kind == "ended":
            await go_on.wait()
        await add(store, event)

    monkeypatch.setattr(Store, "add_event", slowly)
    house.systemd.crash(unit)
    await house.until(State.RESTARTING)
    assert house.unit().n_restarts == 0
    if not pause:
        house.systemd.finish(unit)
    go_on.set()
    await house.until_event("stays-stopped")
    assert house.state() is State.FAILED


async def dies_before_it_decides(house: House, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """The daemon ends when the event of a failed run is written, and nothing is done about it."""
    with monkeypatch.context() as patch:
        patch.setattr(Restarts, "failed", lambda *_: asyncio.Event().wait())
        patch.setattr(recorder, "_WRITE_SECONDS", 0.01)
        house.systemd.crash(unit)
        async with asyncio.timeout(10):
            while len(await house.store.events(EventQuery(models=["a"], kinds=["ended"], limit=9))) < 3:
                await asyncio.sleep(0.005)
        await house.close()


@pytest.mark.parametrize("now", ["pause", "run", "stable run", "systemctl restart"])
async def test_a_budget_that_was_spent_when_the_daemon_died_is_acted_on_by_the_next(
    house: House, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    """But for a run that went well meanwhile, and one of a person's."""
    unit = await crash_loop(house, 2)
    house.systemd.finish(unit)
    await house.until(State.READY)
    await house.events()
    await dies_before_it_decides(house, monkeypatch, unit)
    if now != "pause":
        house.systemd.finish(unit)
    if now == "stable run":
        house.systemd.change(unit, active_enter=house.unit().active_enter - 601_000_000)
    if now == "systemctl restart":
        house.systemd._units.run(unit)
        house.systemd.change(unit, active_state="active", sub_state="running", n_restarts=0)
    await house.open()
    if now in ("pause", "run"):
        await house.until_event("stays-stopped")
        assert house.state() is State.FAILED
    else:
        await house.events()
        assert house.state() is State.READY and house.asked("StopUnit") == []


async def test_a_smaller_budget_does_not_end_a_run_that_was_let_go_on(house: House) -> None:
    unit = await crash_loop(house, 2)
    house.systemd.finish(unit)
    await house.until_event("ready")
    await house.manager.set("a", {"max_restarts": "1"}, ME)
    await house.close()
    await house.open()
    assert house.state() is State.READY and house.asked("StopUnit") == []


# systemd's own limit


def trips(house: House, unit: str, restarts: int) -> None:
    """As systemd does at its limit (measured on 252): what it counts as a restart, before it tries, begins no run."""
    house.systemd.change(unit, n_restarts=restarts)
    house.systemd.change(unit, active_state="failed", sub_state="failed")


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
        while "stopped while it waited for its next start" not in [event.message for event in await house.events()]:
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


async def test_what_cannot_be_written_counts_and_is_told_of(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = await house.running()
    await house.events()
    monkeypatch.setattr(Store, "add_event", fail(StoreFailed("the disk is full")))
    changed: list[str] = []
    monkeypatch.setattr(house.manager, "on_change", changed.append)
    run = house.systemd.cached(unit).invocation_id
    failed = Event(model="a", kind="failed", message="failed", priority=Priority.WARNING, invocation_id=run)
    await house.manager._observer.recorder.add(failed)
    assert house.manager.view("a").model.budget.failed == 1 and changed == ["a"]
