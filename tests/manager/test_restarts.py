"""The restart budget: spent, kept over the daemon's end, cleared by a person."""

from __future__ import annotations

import asyncio

from cortexd.events import Priority
from cortexd.states import State
from tests.support.house import ME, House


async def crash_loop(house: House, runs: int, *, reload: bool = False, **settings: object) -> str:
    """A model that has failed so often; systemd starts it again each time, as long as it may. Returns its unit."""
    unit = await house.running(**{"max_restarts": 3, "Restart": "always", **settings})
    house.systemd.behave(unit, restart=True)
    await fail_again(house, unit, runs, reload=reload)
    return unit


async def ends(house: House) -> int:
    return (await house.kinds()).count("ended")


async def fail_again(house: House, unit: str, runs: int, *, reload: bool = False) -> None:
    for number in range(runs):
        if number:
            house.systemd.finish(unit)
            await house.until(State.READY)
        before = await ends(house)
        house.systemd.crash(unit)
        async with asyncio.timeout(10):
            while await ends(house) == before:
                await asyncio.sleep(0.005)
        if reload:
            await house.systemd.reload()


async def test_failed_runs_in_a_row_spend_it_and_the_model_is_failed_once(house: House) -> None:
    unit = await crash_loop(house, 3, reload=True)
    await house.until(State.FAILED)
    assert house.asked("StopUnit") == [("StopUnit", unit)] and house.unit().active_state == "inactive"
    assert house.reason() == (
        "3 runs failed in a row, the last: the server was killed by SIGKILL; it is restarted no more until it is "
        "started by hand or at boot"
    )
    told = [event for event in await house.events() if event.kind == "gave-up"]
    assert [(e.priority, e.details) for e in told] == [(Priority.ERROR, {"failed": 3})]
    assert "stopped" not in await house.kinds()


async def test_one_less_does_not(house: House) -> None:
    await crash_loop(house, 2)
    assert house.asked("StopUnit") == [] and house.state() is State.RESTARTING


async def test_it_stays_failed_over_the_daemons_end_and_a_person_clears_it(house: House) -> None:
    unit = await crash_loop(house, 3)
    await house.until(State.FAILED)
    await house.close()
    await house.open()
    assert house.state() is State.FAILED and house.reason().startswith("3 runs failed in a row")
    await (await house.start()).wait()
    assert house.state() is State.READY
    house.systemd.behave(unit, restart=True)
    await fail_again(house, unit, 2)
    assert house.state() is State.RESTARTING, "two of three"


async def test_reset_failed_forgets_it(house: House) -> None:
    await crash_loop(house, 3)
    await house.until(State.FAILED)
    await house.manager.reset_failed("a", ME)
    assert house.state() is State.STOPPED


async def test_a_start_past_cortexd_is_a_persons(house: House) -> None:
    """systemctl --user start: a run that systemd does not count as a restart."""
    unit = await crash_loop(house, 3)
    await house.until(State.FAILED)
    house.systemd.change(unit, n_restarts=0)
    await house.systemd.start_unit(unit)
    await house.until(State.READY)
    await house.until_event("ready")
    await house.systemd.stop_unit(unit)
    await house.until(State.STOPPED)


async def test_what_was_spent_while_nobody_lived_is_acted_on_at_the_start(house: House) -> None:
    unit = await crash_loop(house, 2)
    await house.close()
    house.systemd.finish(unit)
    house.systemd.crash(unit)
    await house.open()
    await house.until(State.FAILED)
    assert house.asked("StopUnit") == [("StopUnit", unit)]


async def test_a_namesake_before_it_does_not_count(house: House) -> None:
    unit = await crash_loop(house, 2)
    await (await house.unregister(force=True)).wait()
    unit = await house.running(max_restarts=3, Restart="always")
    house.systemd.behave(unit, restart=True)
    await fail_again(house, unit, 2)
    assert house.state() is State.RESTARTING


async def test_how_long_it_usually_loads(house: House) -> None:
    await house.running()
    model = house.manager.view("a").model
    assert len(model.loads) == 1 and model.usual_load == model.loads[0]
    await house.events()
    await house.close()
    await house.open()
    assert house.manager.view("a").model.loads == model.loads


async def test_why_says_both_that_it_was_given_up_and_how_the_last_run_failed(house: House) -> None:
    await crash_loop(house, 3)
    await house.until(State.FAILED)
    await house.until_event("cause")
    found = await house.manager.why("a")
    assert found.cause == "crash-loop"
    assert found.sentence.startswith("3 runs failed in a row, the last: ")
    assert found.sentence.endswith("; it is restarted no more until it is started by hand or at boot")
