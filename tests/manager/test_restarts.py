"""The restart budget: spent, kept over the daemon's end, cleared by a person."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cortexd import observer
from cortexd.events import Priority
from cortexd.health.policy import HealthState, Outcome, Past, Verdict
from cortexd.states import State
from cortexd.units.render import restart_pause
from tests.support.house import ME, House
from tests.support.wait import aio_until


async def crash_loop(house: House, runs: int, *, reload: bool = False, **settings: Any) -> str:
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
    assert [(e.priority, e.details["failed"]) for e in told] == [(Priority.ERROR, 3)]
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


# Runs that go well


async def stable_run(house: House, unit: str, seconds: float = 0) -> None:
    """The next run becomes ready, and has been for so long."""
    house.systemd.finish(unit)
    await house.until(State.READY)
    house.systemd.change(unit, active_enter=house.unit().active_enter - int(seconds * 1e6))


async def test_a_stable_run_clears_it_and_systemds_count(house: House) -> None:
    """By systemd's count the pause before a restart grows."""
    unit = await crash_loop(house, 2, health__enabled="no")
    await stable_run(house, unit, 599)
    assert house.unit().n_restarts == 2 and house.manager.view("a").model.budget.failed == 2
    asked = len(house.asked("ResetFailedUnit"))
    house.systemd.change(unit, active_enter=house.unit().active_enter - 1_000_000)
    told = await house.until_event("stable")
    assert told.message == "ready for 600 s: what failed before counts no more"
    await aio_until(lambda: house.unit().n_restarts == 0, "systemd's count")
    assert len(house.asked("ResetFailedUnit")) == asked + 1
    assert house.state() is State.READY and house.manager.view("a").model.budget.failed == 0
    await fail_again(house, unit, 2)
    assert house.state() is State.RESTARTING, "two of three"


async def judged(house: House, meaning: str, **found: Any) -> None:
    """A round of probes came to this."""
    model = house.manager.view("a").model
    past = Past(0, "http", Outcome.OK if meaning == "ok" else Outcome.TIMEOUT, 0, meaning)
    state = HealthState(run=house.unit().invocation_id, probed=True, history=(past,), **found)
    await house.manager._observer.liveness.judged("a", model.health, Verdict(state))
    await house.until(State.READY if meaning in ("ok", "void") else State.BUSY if "busy" in found else State.DEGRADED)


DEGRADED: Any = {"meaning": "failed", "failures": 1}
EXCUSED: Any = {"meaning": "busy", "busy": True, "excused_since": 1.0}
ALIVE: Any = {"meaning": "busy", "busy": True}
VOID: Any = {"meaning": "void"}


@pytest.mark.parametrize("found", [DEGRADED, EXCUSED, ALIVE, VOID])
async def test_a_run_that_is_probed_is_stable_by_being_well_so_long(house: House, found: Any) -> None:
    """Not as long as it is only excused, nor as soon as that is over; one that is busy and generates is well."""
    unit = await crash_loop(house, 1)
    house.prober.outcome = Outcome.UNASKED
    await stable_run(house, unit, 601)
    await judged(house, **found)
    await house.events()
    assert ("stable" in await house.kinds()) == (found is ALIVE)
    if found in (DEGRADED, EXCUSED):
        await judged(house, "ok")
        await house.events()
        assert "stable" not in await house.kinds()
        unwell = house.manager._observer._restarts._unwell
        unwell["a"] = (house.unit().invocation_id, unwell["a"][1] - 600)
    await judged(house, "ok")
    await house.until_event("stable")
    await aio_until(lambda: house.unit().n_restarts == 0, "systemd's count")


async def test_runs_that_hang_excused_for_longer_than_a_run_needs_to_be_stable_spend_it(house: House) -> None:
    unit = await crash_loop(house, 1)
    house.prober.outcome = Outcome.UNASKED
    for _ in range(2):
        await stable_run(house, unit, 601)
        await judged(house, **EXCUSED)
        await house.events()
        house.systemd.crash(unit)
    await house.until(State.FAILED)
    assert "stable" not in await house.kinds()


async def test_a_run_without_failures_before_it_leaves_no_trace_of_being_stable(house: House) -> None:
    unit = await house.running(stable_after_seconds=1)
    asked = len(house.asked("ResetFailedUnit"))
    house.systemd.change(unit, active_enter=house.unit().active_enter - 10_000_000)
    await house.events()
    assert not house.manager._observer._restarts._timers
    assert "stable" not in await house.kinds() and len(house.asked("ResetFailedUnit")) == asked


@pytest.mark.parametrize("jump", [86400, -86400])
async def test_clocks_that_are_set_change_nothing(house: House, monkeypatch: pytest.MonkeyPatch, jump: int) -> None:
    """Not while a run is ready, nor for one that ended while nobody looked."""
    unit = await crash_loop(house, 2)
    await stable_run(house, unit)
    monkeypatch.setattr(house.store, "_now", lambda: time.time() + jump)
    house.systemd.change(unit, state_change=house.unit().state_change + jump * 1_000_000)
    await fail_again(house, unit, 1)
    await house.until(State.FAILED)
    assert "stable" not in await house.kinds()


@pytest.mark.parametrize(("seconds", "condemned", "stable"), [(599, "", False), (601, "", True), (671, "hung", False)])
async def test_how_long_a_run_was_ready_that_ended_while_nobody_looked(
    house: House, seconds: float, condemned: str, stable: bool
) -> None:
    """systemd knows, by a clock that nobody sets."""
    unit = await crash_loop(house, 2)
    await stable_run(house, unit)
    if condemned:  # and the daemon dies before it sees that it is dead
        house.manager._observer.recorder.tell(house.manager.view("a").model, "health-restart", condemned)
    await house.events()
    await house.close()
    house.systemd.crash(unit)
    house.systemd.change(unit, active_exit=house.unit().active_enter + int(seconds * 1e6))
    await house.open()
    await house.until(State.RESTARTING if stable else State.FAILED)
    assert house.manager.view("a").model.budget.failed == (1 if stable else 3)


@pytest.mark.parametrize(("release", "pauses"), [(252, [10, 10, 10]), (257, [10, 19.7, 39])])
async def test_the_pause_that_is_told_is_the_one_that_comes(house: House, release: int, pauses: list[float]) -> None:
    house.manager._release = release
    unit = await crash_loop(house, 1, max_restarts=10)
    for number, pause in enumerate(pauses):
        house.systemd.change(unit, n_restarts=number)
        assert house.reason().endswith(f"; systemd starts it again {pause:g} s after its end")


def test_a_pause_grows_as_systemd_has_it() -> None:
    assert [restart_pause(10, n, 257) for n in (0, 5, 100)] == [10, 300, 300]
    assert {restart_pause(seconds, 3, 257) for seconds in (300, 400)} == {300, 400}
    assert restart_pause(0, 3, 257) == 0 and restart_pause(10, 3, 253) == 10


async def test_an_end_is_told_though_somebody_starts_it_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is clear that systemd does not."""
    monkeypatch.setattr(observer, "_SETTLE_SECONDS", 600.0)
    unit = await house.running(Restart="no")
    run = house.unit().invocation_id
    house.systemd.crash(unit, status=11)
    await (await house.systemd.start_unit(unit)).wait(5)
    failed = await house.until_event("failed")
    assert failed.invocation_id == run and "SIGSEGV" in failed.message
    assert (await house.kinds())[-3:] == ["failed", "run", "ready"]


async def test_an_end_is_told_though_it_is_started_with_cortexctl_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has systemd forget the failure first."""
    monkeypatch.setattr(observer, "_SETTLE_SECONDS", 600.0)
    unit = await house.running(Restart="no")
    run = house.unit().invocation_id
    house.systemd.crash(unit, status=11)
    await (await house.start()).wait()
    failed = await house.until_event("failed")
    assert failed.invocation_id == run and (await house.kinds()).count("ended") == 0
    assert house.state() is State.READY


@pytest.mark.parametrize("passed", ["failed", "inactive"])
async def test_what_systemd_passes_through_on_its_way_to_a_restart_is_no_end_of_its_own(
    house: House, monkeypatch: pytest.MonkeyPatch, passed: str
) -> None:
    """As 252 does: failed before the pause; inactive with a job after it."""
    monkeypatch.setattr(observer, "_SETTLE_SECONDS", 600.0)
    unit = await house.running(Restart="always", max_restarts=10)
    house.systemd.behave(unit, restart=True)
    house.systemd.crash(unit)
    await house.until_event("ended")
    house.systemd.change(unit, n_restarts=1, job=7)
    house.systemd.change(unit, active_state=passed, sub_state="dead")
    house.systemd._units.run(unit)
    house.systemd.change(unit, active_state="active", sub_state="running", job=0)
    await house.until(State.READY)
    assert (await house.kinds())[-4:] == ["ready", "ended", "run", "ready"]


async def test_a_restart_past_us_in_a_later_pause_is_a_persons(house: House) -> None:
    """There systemd neither begins to count anew nor counts on."""
    unit = await crash_loop(house, 2)
    assert house.unit().sub_state == "auto-restart" and house.unit().n_restarts == 1
    await house.systemd.restart_unit(unit)
    await house.until(State.READY)
    await aio_until(lambda: house.manager.view("a").model.budget.failed == 0, "the budget of a start by hand")
    house.systemd.crash(unit)
    await aio_until(lambda: house.manager.view("a").model.budget.failed == 1, "its failure")
    house.systemd.finish(unit)
    await house.until(State.READY)
    assert house.manager.view("a").model.budget.failed == 1, "that one was systemd's own"


async def test_what_cortexd_killed_it_for_is_known_to_the_next_one(house: House) -> None:
    """kill -9 of cortexd after it has killed a run, before it saw the end."""
    unit = await house.running(max_restarts=1, Restart="no")
    run = house.unit().invocation_id
    model = house.manager.view("a").model
    message = "3 health probes failed in a row, the last: no answer; it is killed and systemd starts it again"
    house.manager._observer.recorder.tell(model, "health-restart", message, Priority.ERROR, run=run)
    await house.manager._observer.recorder.written()
    await house.close()
    house.systemd.crash(unit)
    await house.open()
    assert (await house.until_event("failed")).message == "the server was killed by SIGKILL after failed health probes"
    await house.until_event("gave-up")
    assert "cortexd killed it: 3 health probes failed in a row, the last: no answer" in house.reason()
