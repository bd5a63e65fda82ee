"""What sick runs lead to."""

from __future__ import annotations

import asyncio
import signal

import pytest

from cortexd.events import Ending, Priority
from cortexd.health.policy import Change, Decision, HealthState, Outcome, Verdict
from cortexd.states import State
from cortexd.systemd.jobs import Job
from tests.manager.steps import (
    QUICK,
    sick,
)
from tests.support.house import ME, House
from tests.support.wait import aio_until


async def test_a_sick_run_is_killed_by_its_id_and_systemd_starts_the_next(house: House) -> None:
    unit, run = await sick(house)
    await aio_until(lambda: house.asked("Kill"), "the kill")
    assert house.asked("Kill", "RestartUnit", "StopUnit") == [("Kill", run, str(int(signal.SIGKILL)))]
    assert house.state() is State.RESTARTING and "no answer" in house.reason()
    event = await house.until_event("health-restart")
    assert event.message == (
        "2 health probes failed in a row, the last: no answer; it is killed and systemd starts it again"
    )
    assert (event.priority, event.invocation_id, event.actor) == (Priority.ERROR, run, "")
    ended = await house.until_event("ended")
    assert ended.message == "the server was killed by SIGKILL after failed health probes; systemd starts it again"
    house.prober.outcome = Outcome.OK
    house.systemd.finish(unit)
    await house.until(State.READY)
    assert house.manager.view("a").model.health.failures == 0
    kinds = await house.kinds()
    assert [k for k in kinds if k not in ("run", "ready")] == [
        "registered",
        "start",
        "degraded",
        "health-restart",
        "ended",
    ]


async def test_degraded_and_recovered(house: House) -> None:
    await sick(house, health__max_failures=1000)
    await house.until(State.DEGRADED)
    assert "failed probes in a row" in house.reason()
    house.prober.outcome = Outcome.OK
    await house.until(State.READY)
    assert (await house.until_event("recovered")).message.startswith("healthy again after ")
    assert house.asked("Kill") == []


async def test_a_sick_run_that_nobody_would_restart_is_left_alone(house: House) -> None:
    await sick(house, Restart="no")
    await house.until(State.UNHEALTHY)
    event = await house.until_event("unhealthy")
    assert event.message.endswith("not restarted, since Restart=no") and house.asked("Kill") == []


async def test_a_run_that_is_over_is_not_killed(house: House) -> None:
    """A person restarts while the verdict is on its way: the next run is not the one that was condemned."""
    await house.running()
    model = house.manager.view("a").model
    condemned = HealthState(run=house.unit().invocation_id, failures=3, reason="no answer")
    await (await house.restart()).wait()
    run = house.unit().invocation_id
    verdict = Verdict(condemned, Decision.RESTART, (Change.CONDEMNED,))
    await house.manager._observer.liveness.judged("a", HealthState(run=condemned.run), verdict)
    assert house.asked("Kill") == []
    model.ending = Ending()  # whoever ended it, it was not us
    await house.manager._observer.liveness.condemn(model, condemned)
    assert house.asked("Kill") == [("Kill", condemned.run, "9")]
    assert house.unit().invocation_id == run and house.state() is State.READY


async def test_a_stop_that_is_under_way_comes_before_a_verdict(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.running(max_restarts=1, Restart="always")
    model = house.manager.view("a").model
    condemned = HealthState(run=house.unit().invocation_id, failures=3, reason="no answer")
    stop_unit, asked, go_on = house.systemd.stop_unit, asyncio.Event(), asyncio.Event()

    async def slowly(unit: str) -> Job:
        asked.set()
        await go_on.wait()
        return await stop_unit(unit)

    monkeypatch.setattr(house.systemd, "stop_unit", slowly)
    stop = await house.stop()
    await asked.wait()
    verdict = Verdict(condemned, Decision.RESTART, (Change.CONDEMNED,))
    await house.manager._observer.liveness.judged("a", HealthState(run=condemned.run), verdict)
    go_on.set()
    assert await stop.wait() == []
    assert house.state() is State.STOPPED and house.asked("Kill") == [] and model.budget.failed == 0
    assert (await house.kinds())[4:] == ["stop", "stopped"]


@pytest.mark.parametrize(("restart", "killed"), [("no", False), ("on-success", False), ("on-abort", True)])
async def test_the_units_own_restart_decides(house: House, restart: str, killed: bool) -> None:
    """A drop-in of the user's says more than the settings."""
    unit, run = await sick(house, health__max_failures=1000, Restart="always")
    drop_in = house.scope.unit_folder / f"{unit}.d" / "mine.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nRestart={restart}\n")
    await house.systemd.reload()
    await house.manager.set("a", {"health.max_failures": "2"}, ME)
    event = await house.until_event("health-restart" if killed else "unhealthy")
    assert event.message.endswith("systemd starts it again" if killed else f"not restarted, since Restart={restart}")
    if killed:
        await aio_until(lambda: house.asked("Kill") == [("Kill", run, "9")], "the kill")
    else:
        assert house.asked("Kill") == []


async def test_health_is_asked_of_what_is_ready_and_wanted_only(house: House) -> None:
    unit = await house.register(**{**QUICK, "health__enabled": "no"})
    house.systemd.behave(unit, start="hang")
    job = await house.start()
    await asyncio.sleep(0.02)
    house.systemd.finish(unit)
    await job.wait()
    await asyncio.sleep(0.02)
    assert house.prober.asked == []
    await house.manager.set("a", {"health.enabled": "yes"}, ME)
    await aio_until(lambda: house.prober.asked, "a probe")
    await house.manager.set("a", {"health.enabled": "no"}, ME)
    asked = len(house.prober.asked)
    await asyncio.sleep(0.4)
    assert len(house.prober.asked) <= asked + 1
    await house.manager.set("a", {"health.enabled": "yes"}, ME)
    await (await house.stop()).wait()
    asked = len(house.prober.asked)
    await asyncio.sleep(0.4)
    assert len(house.prober.asked) == asked


@pytest.mark.parametrize(("drop_in", "status", "waits"), [(False, "", False), (True, "Ready", False), (True, "", True)])
async def test_a_drop_in_that_takes_the_waiter_away_has_failures_wait(
    house: House, drop_in: bool, status: str, waits: bool
) -> None:
    unit = await house.register(health__startup_delay_seconds=77)
    if drop_in:
        folder = house.scope.unit_folder / f"{unit}.d"
        folder.mkdir()
        (folder / "mine.conf").write_text("[Service]\nExecStartPost=\n")
        await house.systemd.reload()
    house.systemd.change(unit, status_text=status)
    await (await house.start()).wait()
    loops = house.manager._observer.liveness._monitor._loops
    assert loops["a"].model.grace == (77 if waits else 0)
