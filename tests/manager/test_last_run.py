"""What is told of the last run that a restart budget allows, of one that ended by itself, and of when a run begins."""

from __future__ import annotations

import pytest

from cortexd.api.describe import probe_values
from cortexd.errors import JobFailed
from cortexd.events import Ending
from cortexd.health.policy import Outcome, Probe
from cortexd.states import State
from tests.manager.steps import sick
from tests.manager.test_restarts import crash_loop
from tests.support.house import ME, House


async def test_what_comes_next_of_a_server_that_is_being_killed(house: House) -> None:
    unit = await crash_loop(house, 1)
    house.systemd.finish(unit)
    await house.until(State.READY)
    model = house.manager.view("a").model

    def coming() -> str:
        return str(probe_values(house.manager.view("a"), Probe(outcome=Outcome.OK))["Next"].value)

    model.ending = Ending(house.unit().invocation_id, "health", 9, "no answer")
    assert coming() == "it is being killed, and systemd starts it again"
    await house.manager.set("a", {"max_restarts": "2"}, ME)
    assert coming() == "it is being killed, and is stopped for good: that is 2 failed runs in a row"
    house.systemd.change(unit, active_state="activating", sub_state="auto-restart", main_pid=0)
    assert coming() == "nothing: it is stopped for good: that is 2 failed runs in a row"


async def test_the_reason_names_the_probes_that_failed(house: House) -> None:
    """And of the last run that it may have nobody says that it is started again."""
    await sick(house, max_restarts=1)
    await house.until(State.FAILED)
    assert house.reason() == (
        "1 run failed: cortexd killed it: 2 health probes failed in a row, the last: no answer; it is restarted no more "
        "until it is started by hand or at boot"
    )
    told = [event.message for event in await house.events() if event.kind in ("ended", "failed")]
    assert told == [
        "the server was killed by SIGKILL after failed health probes; it was the last run that max_restarts allows"
    ]


async def test_a_start_that_spends_the_budget_says_so(house: House) -> None:
    unit = await house.register(max_restarts=1, Restart="always")
    house.systemd.behave(unit, start="failed", restart=True)
    with pytest.raises(JobFailed, match=r"status 1; .*; it was the last run that max_restarts allows$"):
        await (await house.start()).wait()


async def test_a_run_is_told_with_its_process_though_something_runs_before_that(house: House) -> None:
    """ExecStartPre=, as where a Unix socket is made ready."""
    unit = await house.register()
    before = {"active_state": "activating", "sub_state": "start-pre", "invocation_id": "b" * 32}
    house.systemd.change(unit, **before)
    assert house.state() is State.STARTING and "run" not in await house.kinds()
    house.systemd.change(unit, sub_state="start", main_pid=77)
    assert (await house.until_event("run")).message == "run begins (process 77)"
    assert (await house.kinds()).count("run") == 1


async def test_a_run_that_ends_before_it_has_a_process_is_told_all_the_same(house: House) -> None:
    unit = await house.register()
    house.systemd.change(unit, active_state="activating", sub_state="start-pre", invocation_id="b" * 32)
    house.systemd.change(unit, active_state="failed", sub_state="failed", result="exit-code")
    assert (await house.until_event("failed")).invocation_id == "b" * 32
    assert [kind for kind in await house.kinds() if kind in ("run", "failed")] == ["run", "failed"]
