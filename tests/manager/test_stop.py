"""Stopping and restarting, in every phase."""

from __future__ import annotations

from typing import Any

import pytest

from cortexd.errors import (
    JobCanceled,
    JobFailed,
)
from cortexd.events import Priority
from cortexd.jobs import JobState
from cortexd.registration import Caller
from cortexd.states import State
from cortexd.systemd.fake_units import CLD_EXITED
from tests.manager.steps import (
    PHASES,
    failed,
    ready,
    restarting,
    starting,
)
from tests.support.house import ME, House
from tests.support.wait import aio_until


async def test_stop(house: House) -> None:
    await house.running()
    job = await house.stop()
    assert await job.wait() == []
    assert (job.kind, house.state(), house.reason()) == ("stop", State.STOPPED, "")
    events = await house.events()
    assert [(e.kind, e.actor) for e in events[-2:]] == [("stop", "me[1]"), ("stopped", "")]
    assert len({e.invocation_id for e in events[-4:]} - {""}) == 1


async def test_stop_of_what_does_not_run_is_done(house: House) -> None:
    await house.register()
    assert await (await house.stop()).wait() == []
    assert (await house.kinds())[-1] == "stop"


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "SIGKILL"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__[1:])
async def test_a_stop_in_every_phase_ends_stopped_never_failed(house: House, phase: Any, clean: bool) -> None:
    unit = await house.register()
    await phase(house, unit)
    ran = house.unit().running
    starts, stops = len(house.asked("StartUnit", "RestartUnit")), len(house.asked("StopUnit"))
    house.systemd.behave(unit, stop="hang")
    job = await house.stop()
    await aio_until(lambda: len(house.asked("StopUnit")) > stops, "the stop")
    if ran:
        await house.until(State.STOPPING)
    await aio_until(lambda: house.systemd._units.unit(unit).job, "systemd's job")
    house.systemd.finish(unit, "done" if clean else "failed")
    warnings = await job.wait()
    assert (job.state, house.state(), house.unit().active_state) == (JobState.DONE, State.STOPPED, "inactive")
    kinds = await house.kinds()
    if clean or not ran:
        assert warnings == [] and "stop-unclean" not in kinds
    else:
        assert warnings == ["it did not end within 20 s and was killed"] and kinds.count("stop-unclean") >= 1
        assert (await house.until_event("stop-unclean")).priority is Priority.WARNING
    # What a person stopped stays stopped, and is nobody's failure.
    assert len(house.asked("StartUnit", "RestartUnit")) == starts
    if phase is not failed:
        assert "failed" not in kinds
    assert list((house.scope.logs / "a").glob("*.log")) == [] or phase in (failed, restarting)


@pytest.mark.parametrize(
    ("phase", "warnings"), [(starting, []), (ready, ["it did not end cleanly: the server exited with status 1"])]
)
async def test_the_exit_status_of_a_server_that_was_interrupted_while_it_loaded(
    house: House, phase: Any, warnings: list[str]
) -> None:
    """vLLM's is 1 then: one of its processes is always the first to end, and the others say that they miss it."""
    unit = await house.register()
    await phase(house, unit)
    house.systemd.behave(unit, stop="hang")
    job = await house.stop()
    await house.until(State.STOPPING)
    await aio_until(lambda: house.systemd._units.unit(unit).job, "systemd's job")
    house.systemd.crash(unit, code=CLD_EXITED, status=1)
    assert await job.wait() == warnings
    assert (house.state(), house.unit().active_state) == (State.STOPPED, "inactive")
    last = (await house.events())[-1]
    assert last.kind == ("stop-unclean" if warnings else "stopped") and last.invocation_id


async def test_a_stop_that_hangs_and_is_helped_with_kill_is_still_a_stop(house: House) -> None:
    unit = await house.running(max_restarts=1, Restart="always")
    house.systemd.behave(unit, stop="hang")
    job = await house.stop()
    await house.until(State.STOPPING)
    await aio_until(lambda: house.systemd._units.unit(unit).job, "systemd's job")
    await house.manager.kill("a", "KILL", "all", ME)
    assert await job.wait() == ["it did not end cleanly: the server was killed by SIGKILL"]
    assert house.state() is State.STOPPED
    kinds = await house.kinds()
    assert kinds[4:6] == ["stop", "kill"] and {"failed", "ended", "gave-up"}.isdisjoint(kinds)
    assert not any(event.message.startswith("stopped by systemd") for event in await house.events())
    assert house.manager.view("a").model.budget.failed == 0
    assert (await house.manager.why("a")).cause == "stopped"


async def test_an_unclean_end_that_two_stops_asked_for_is_told_once(house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, stop="hang")
    jobs = [await house.stop(), await house.stop()]
    await aio_until(lambda: len(house.asked("StopUnit")) == len(jobs), "both")
    house.systemd.finish(unit, "failed")
    assert [await job.wait() for job in jobs] == [["it did not end within 20 s and was killed"]] * 2
    assert (await house.kinds())[4:] == ["stop", "stop", "stop-unclean"]


async def test_a_stop_that_a_start_supersedes(house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, stop="hang")
    stop = await house.stop()
    await house.until(State.STOPPING)
    start = await house.start()
    with pytest.raises(JobCanceled, match="the stop of a was superseded by a start"):
        await stop.wait()
    await start.wait()
    assert (stop.state, house.state()) == (JobState.CANCELED, State.READY)


async def test_a_start_that_a_stop_supersedes(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    start = await house.start()
    await (await house.stop()).wait()
    with pytest.raises(JobCanceled, match="the start of a was cancelled, or superseded by a stop"):
        await start.wait()
    assert (start.state, house.state()) == (JobState.CANCELED, State.STOPPED)
    assert "failed" not in await house.kinds()


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "SIGKILL"])
async def test_cancelling_a_start_stops_the_model(house: House, clean: bool) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang", stop="hang")
    job = await house.start()
    await job.cancel(Caller("somebody[2]"))
    await house.until(State.STOPPING)
    with pytest.raises(JobCanceled):
        await job.wait()
    house.systemd.finish(unit, "done" if clean else "failed")
    await house.until(State.STOPPED)
    assert [e.actor for e in await house.events() if e.kind == "stop"] == ["somebody[2]"]
    await job.cancel(ME)  # is over: nothing
    assert len([e for e in await house.events() if e.kind == "stop"]) == 1


async def test_a_server_that_ends_by_itself(house: House) -> None:
    unit = await house.running()
    house.systemd.crash(unit, code=1, status=0)
    event = await house.until_event("exited")
    assert event.message == "the server ended by itself with status 0; not restarted (Restart=on-failure)"
    assert event.priority is Priority.WARNING
    assert (house.state(), house.reason()) == (State.STOPPED, event.message)
    assert house.manager.view("a").model.budget.failed == 0
    await house.close()
    await house.open()
    assert (house.state(), house.reason()) == (State.STOPPED, event.message)
    assert (await house.kinds()).count("exited") == 1
    await (await house.start()).wait()
    await (await house.stop()).wait()
    assert (house.state(), house.reason()) == (State.STOPPED, "")


async def test_a_server_that_somebody_else_kills(house: House) -> None:
    unit = await house.running()
    house.systemd.crash(unit)
    event = await house.until_event("failed")
    assert event.message == "the server was killed by SIGKILL from outside"


async def test_restart(house: House) -> None:
    unit = await house.running()
    first = house.unit().invocation_id
    assert await (await house.restart()).wait() == []
    assert house.asked("RestartUnit") == [("RestartUnit", unit)] and house.unit().invocation_id != first
    kinds = await house.kinds()
    assert kinds[4:] == ["restart", "run", "ready"]


async def test_restart_of_what_does_not_run_is_a_start(house: House) -> None:
    await house.register()
    await (await house.restart()).wait()
    assert house.state() is State.READY and house.asked("RestartUnit") == []


async def test_restart_of_what_is_starting_stops_it_first(house: House) -> None:
    """systemd would merge it into the start under way, and the server with the old settings would stay."""
    unit = await house.register()
    await starting(house, unit)
    first = house.unit().invocation_id
    house.systemd.behave(unit)
    await (await house.restart()).wait()
    assert house.asked("StopUnit", "RestartUnit") == [("StopUnit", unit)]
    assert house.state() is State.READY and house.unit().invocation_id != first


async def test_such_a_restart_goes_on_where_kill_helps_it(house: House) -> None:
    unit = await house.register()
    await starting(house, unit)
    first = house.unit().invocation_id
    house.systemd.behave(unit, stop="hang")
    restart = await house.restart()
    await house.until(State.STOPPING)
    await house.manager.kill("a", "KILL", "all", ME)
    await restart.wait()
    assert house.state() is State.READY and house.unit().invocation_id != first
    assert "failed" not in await house.kinds()


async def test_a_stop_during_such_a_restart_is_the_last_word(house: House) -> None:
    unit = await house.register()
    await starting(house, unit)
    house.systemd.behave(unit, stop="hang")
    restart = await house.restart()
    await house.until(State.STOPPING)
    stop = await house.stop()
    await aio_until(lambda: house.asked("StopUnit") == [("StopUnit", unit)] * 2, "both stops")
    house.systemd.finish(unit)
    await stop.wait()
    with pytest.raises(JobCanceled, match="the restart of a was superseded by a stop"):
        await restart.wait()
    assert house.state() is State.STOPPED


async def test_a_restart_whose_new_run_fails_is_a_failure(house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, start="failed")
    with pytest.raises(JobFailed, match="status 1"):
        await (await house.restart()).wait()
    assert (await house.until_event("failed")).invocation_id == house.unit().invocation_id


async def test_a_stop_past_us_that_had_to_kill_ends_stopped(house: House) -> None:
    """As cortexctl's own: nobody's failure, and no part of the budget."""
    unit = await house.running(max_restarts=1, Restart="always")
    house.systemd.behave(unit, stop="hang")
    await house.systemd.stop_unit(unit)
    await house.until(State.STOPPING)
    house.systemd.finish(unit, "failed")
    assert house.state() is State.STOPPED
    event = await house.until_event("stop-unclean")
    assert event.priority is Priority.WARNING and event.message == (
        "stopped by systemd (with systemctl, or at the end of your session): it did not end within 20 s and was killed"
    )
    await aio_until(lambda: house.unit().active_state == "inactive", "reset-failed")
    assert house.state() is State.STOPPED and house.manager.view("a").model.budget.failed == 0
    assert {"failed", "ended", "gave-up", "cause"}.isdisjoint(await house.kinds())
    assert (await house.manager.why("a")).cause == "stopped"


async def test_a_crash_that_a_stop_comes_after_is_one(house: House) -> None:
    unit = await house.running(Restart="no")
    house.systemd.change(unit, active_state="deactivating", sub_state="final-sigterm", result="signal")
    await house.systemd.stop_unit(unit)
    house.systemd.crash(unit)
    await house.until_event("failed")
    assert house.manager.view("a").model.budget.failed == 1


@pytest.mark.parametrize("stopped", [True, False])
async def test_such_a_stop_while_cortexd_was_away(house: House, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    """What tells it from a failure is the journal: whether systemd was told to stop it before it failed."""
    unit = await house.running(max_restarts=1, Restart="no")
    await house.close()
    house.systemd.behave(unit, stop="hang")
    await house.systemd.stop_unit(unit)
    house.systemd.finish(unit, "failed")
    house.systemd.change(unit, result="timeout")

    async def was_stopped(*_: object) -> bool:
        return stopped

    monkeypatch.setattr("cortexd.diagnosis.diagnoser.Diagnoser.was_stopped", was_stopped)
    await house.open()
    await house.until_event("stop-unclean" if stopped else "failed")
    await aio_until(lambda: (house.unit().active_state == "inactive") == stopped, "reset-failed, or not")
    assert house.state() is (State.STOPPED if stopped else State.FAILED)
    assert house.manager.view("a").model.budget.failed == int(not stopped)
