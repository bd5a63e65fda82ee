"""Ends of which cortexd was no witness: of runs, of pauses before the next one, and of systemd's own attempts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cortexd import missed
from cortexd.api.describe import model_properties
from cortexd.events import Priority
from cortexd.journal import What
from cortexd.states import State
from tests.manager.test_giving_up import trips
from tests.manager.test_missed import Journal, now_runs
from tests.manager.test_restarts import crash_loop
from tests.support.house import House

SILENT = "#!/bin/sh\n"


def forgets(house: House, unit: str) -> None:
    """systemd drops a unit that is at rest and that nobody needs, and what it knew of it."""
    house.systemd.change(
        unit, active_state="inactive", sub_state="dead", main_pid=0, invocation_id="", n_restarts=0, result="success",
        exec_main_code=0, exec_main_status=0, job=0,
    )  # fmt: skip


async def opened_again(house: House) -> list[str]:
    """The kinds of the events after two more lives of the daemon, of which neither may add any."""
    await house.events()
    before = await house.kinds()
    for _ in range(2):
        await house.close()
        await house.open()
        await house.events()
    assert await house.kinds() == before
    return before


async def test_an_end_of_which_nobody_has_a_word_is_told_once_and_is_the_reason(house: House, journalctl: Path) -> None:
    """With status 0 or by SIGTERM: systemd writes nothing of that and forgets the unit."""
    unit = await house.running()
    run = house.unit().invocation_id
    await house.events()
    await house.close()
    journalctl.write_text(SILENT)
    forgets(house, unit)
    await house.open()
    told = (await house.events())[-1]
    assert (told.kind, told.invocation_id, told.priority) == ("exited", run, Priority.WARNING)
    assert told.message.startswith("it ended while cortexd was away, and how is not known")
    assert (house.state(), house.reason()) == (State.STOPPED, told.message)
    assert (await opened_again(house)).count("exited") == 1
    assert house.reason() == told.message
    await (await house.start()).wait()
    await (await house.stop()).wait()
    assert (house.state(), house.reason()) == (State.STOPPED, "")


@pytest.mark.parametrize("what", ["boot", "session", "cortexctl stop"])
async def test_what_ended_with_all_else_or_was_to_end_is_no_such_end(
    house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    unit = await house.running()
    if what == "cortexctl stop":
        house.systemd.behave(unit, stop="hang")
        await house.stop()
    await house.events()
    await house.close()
    journalctl.write_text(SILENT)
    if what == "boot":
        monkeypatch.setattr(missed, "boot_time", lambda: time.time() + 1)
    if what == "session":
        line = '{"__REALTIME_TIMESTAMP": "1"}'
        journalctl.write_text(f"#!/bin/sh\ncase \"$*\" in *USER_UNIT=basic.target*) echo '{line}';; esac\n")
    forgets(house, unit)
    await house.open()
    assert "exited" not in await house.kinds() and house.state() is State.STOPPED


async def test_a_run_is_ready_once(house: House, journalctl: Path) -> None:
    """journald has that line some milliseconds after we have written our event."""
    unit = await house.running()
    run = house.unit().invocation_id
    await house.until_event("ready")
    await house.close()
    told, now = Journal(journalctl, unit), time.time() + 1
    told.say(What.READY, run, now)
    told.say(What.FAILED, run, now + 1)
    told.say(What.AGAIN, run, now + 1)
    now_runs(house, unit, 1)
    await house.open()
    assert [e.kind for e in await house.events() if e.invocation_id == run and e.kind != "cause"] == [
        "run", "ready", "ended",
    ]  # fmt: skip


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_stop_in_the_pause_leaves_the_failure_before_it(
    house: House, journalctl: Path, forgotten: bool
) -> None:
    unit = await house.running(Restart="always")
    run, now = house.unit().invocation_id, time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, run, now)
    told.say(What.STOPPED, run, now + 1)
    house.systemd.crash(unit)
    house.systemd.change(unit, active_state="inactive", sub_state="dead")
    if forgotten:
        forgets(house, unit)
    await house.open()
    assert (await opened_again(house))[-2:] == ["ended", "stopped"]
    ended, stopped = [e for e in await house.events() if e.kind in ("ended", "stopped")]
    assert ended.invocation_id == stopped.invocation_id == run
    at = [int(now * 1e6), int((now + 1) * 1e6)] if forgotten else [house.unit().state_change] * 2
    assert [ended.time, stopped.time] == at
    assert house.state() is State.STOPPED and house.manager.view("a").model.budget.failed == 1


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_stop_in_a_pause_that_was_seen_to_begin_is_told(
    house: House, journalctl: Path, forgotten: bool
) -> None:
    unit = await crash_loop(house, 1)
    run, now = house.unit().invocation_id, time.time() + 1
    await house.close()
    Journal(journalctl, unit).say(What.STOPPED, run, now)
    house.systemd.change(unit, active_state="inactive", sub_state="dead")
    if forgotten:
        forgets(house, unit)
    await house.open()
    assert (await opened_again(house))[-2:] == ["ended", "stopped"]


async def test_a_limit_that_tripped_after_a_failure_that_was_seen_is_the_same_end(house: House) -> None:
    unit = await crash_loop(house, 2, max_restarts=50)
    await house.close()
    trips(house, unit, 2)
    await house.open()
    await house.until_event("stays-stopped")
    assert house.reason().startswith(
        "systemd gave up at its own limit of starts, after 2 failed runs in a row, the last"
    )
    assert (await opened_again(house))[-3:] == ["failed", "gave-up", "stays-stopped"]
    assert model_properties(house.manager.view("a"), ["NRestarts"]) == {"NRestarts": 1}, "one began no run"
    house.systemd.change(unit, n_restarts=0)
    assert model_properties(house.manager.view("a"), ["NRestarts"]) == {"NRestarts": 0}


async def test_a_limit_that_was_reset_since_is_the_same_end(house: House, journalctl: Path) -> None:
    """systemctl reset-failed, after which systemd knows nothing of it."""
    unit = await house.running(max_restarts=50)
    run, now = house.unit().invocation_id, time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    for what in (What.FAILED, What.AGAIN, What.FAILED):
        told.say(what, run, now)
    forgets(house, unit)
    await house.open()
    await house.until_event("stays-stopped")
    assert house.state() is State.FAILED and house.reason() == (
        "systemd gave up at its own limit of starts, after 1 failed run: it ended with the result 'signal'; it is "
        "restarted no more until it is started by hand or at boot"
    )
    assert (await opened_again(house))[-4:] == ["ended", "failed", "gave-up", "stays-stopped"]


@pytest.mark.parametrize("word", [True, False])
async def test_the_begin_of_a_run_that_is_over_is_told_once(house: House, journalctl: Path, word: bool) -> None:
    """Of the last one, whose end the unit tells, whether the journal has a word of it or not."""
    unit = await house.running(max_restarts=50)
    first, now = house.unit().invocation_id, time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, first, now)
    told.say(What.AGAIN, first, now)
    now_runs(house, unit, 1)
    last = house.unit().invocation_id
    if word:
        told.run(last, now + 1, now + 2, now + 3)
        told.say(What.FAILED, last, now + 4)
    house.systemd.crash(unit)
    trips(house, unit, 2)
    await house.open()
    await house.until_event("stays-stopped")
    kinds = await opened_again(house)
    assert kinds[kinds.index("ended") :] == ["ended", "run", *["ready"] * word, "failed", "gave-up", "stays-stopped"]
    (begun,) = [e for e in await house.events() if e.kind == "run" and e.invocation_id == last]
    assert begun.details == {"restart": True, "n_restarts": 1}
    assert house.manager.view("a").model.budget.failed == 2


@pytest.mark.parametrize("seen", [True, False])
async def test_the_reason_names_the_last_failed_run_though_another_has_begun(
    house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """cortexd and the last run that the budget allows are killed together. `seen`: that it ended was written."""
    unit = await crash_loop(house, 1, max_restarts=2 if not seen else 9)
    if not seen:
        house.systemd.finish(unit)
        await house.until_event("ready")
        run, now = house.unit().invocation_id, time.time() + 1
        await house.close()
        told = Journal(journalctl, unit)
        told.say(What.FAILED, run, now)
        told.say(What.AGAIN, run, now)
    else:
        await house.close()
        monkeypatch.setattr("cortexd.budget.Budget.spent", lambda budget, most: True)
    now_runs(house, unit, 2 - seen)
    await house.open()
    await house.until_event("stays-stopped")
    how = "1 run failed: the server was killed by SIGKILL" if seen else (
        "2 runs failed in a row, the last: it ended with the result 'signal'"
    )  # fmt: skip
    assert house.reason() == f"{how}; it is restarted no more until it is started by hand or at boot"
