"""Starting: what is checked, and what a job's end means."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import pytest

from cortexd.errors import (
    JobFailed,
    PortInUse,
    SystemdUnavailable,
    UnitFailed,
)
from cortexd.events import Priority
from cortexd.jobs import JobState
from cortexd.journal import BY_MANAGER
from cortexd.states import State
from tests.manager.steps import (
    fail,
)
from tests.support.house import House
from tests.support.wait import aio_until


async def test_start(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    job = await house.start()
    assert (job.kind, job.state, house.state()) == ("start", JobState.RUNNING, State.STARTING)
    house.systemd.finish(unit)
    assert await job.wait() == []
    assert (job.state, house.state()) == (JobState.DONE, State.READY)
    assert house.asked("ResetFailedUnit", "StartUnit") == [("ResetFailedUnit", unit), ("StartUnit", unit)]
    events = await house.events()
    assert [(e.kind, e.actor) for e in events] == [
        ("registered", "me[1]"), ("start", "me[1]"), ("run", ""), ("ready", "")
    ]  # fmt: skip
    assert {e.invocation_id for e in events[2:]} == {house.unit().invocation_id}


async def test_start_of_what_runs_is_done_and_harms_nothing(house: House) -> None:
    await house.running()
    run = house.unit().invocation_id
    await (await house.start()).wait()
    assert house.unit().invocation_id == run
    assert (await house.kinds())[2:] == ["run", "ready", "start"]


async def test_two_starts_are_one(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    jobs = [await house.start() for _ in range(3)]
    house.systemd.finish(unit)
    for job in jobs:
        await job.wait()
    assert (await house.kinds()).count("run") == 1


@pytest.mark.parametrize("removed", ["before", "after", "twice"])
async def test_whenever_systemd_says_that_its_job_is_over(house: House, removed: str) -> None:
    unit = await house.register()
    house.systemd.behave(unit, removed=removed)
    for act, state in ((house.start, State.READY), (house.restart, State.READY), (house.stop, State.STOPPED)):
        await (await act()).wait()
        assert house.state() is state


async def test_a_start_that_fails_says_why_and_keeps_the_log(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="failed")
    with pytest.raises(JobFailed, match="the server exited with status 1"):
        await (await house.start()).wait()
    assert house.state() is State.FAILED
    assert house.reason().startswith("the server exited with status 1; the last it said: last words of ")
    event = await house.until_event("failed")
    run = house.unit().invocation_id
    assert (event.priority, event.invocation_id) == (Priority.ERROR, run)
    (log,) = await aio_until(lambda: list((house.scope.logs / "a").glob("*.log")), "the saved log")
    assert log.name.endswith(f"-{run}.log")
    matches = f"_SYSTEMD_INVOCATION_ID={run} _UID={os.getuid()} + USER_INVOCATION_ID={run} {' '.join(BY_MANAGER)}"
    assert matches in log.read_text()
    assert (stat.S_IMODE(log.stat().st_mode), stat.S_IMODE(log.parent.stat().st_mode)) == (0o600, 0o700)


async def test_a_waiters_word_is_the_reason(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    job = await house.start()
    house.systemd.change(unit, status_text="Not ready: another program answers on port 8000")
    house.systemd.crash(unit, code=1, status=0, result="exit-code")
    with pytest.raises(JobFailed, match=r"^another program answers on port 8000$"):
        await job.wait()


async def test_a_start_that_systemd_tries_again_says_so(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="failed", restart=True)
    with pytest.raises(JobFailed, match=r"status 1; .*; systemd tries again"):
        await (await house.start()).wait()
    assert house.state() is State.RESTARTING
    event = await house.until_event("ended")
    assert event.message == "the server exited with status 1; systemd starts it again"
    house.systemd.finish(unit)
    assert (await house.until_event("ready")).invocation_id == house.unit().invocation_id != event.invocation_id


async def test_systemd_refuses(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.register()
    with monkeypatch.context() as patch:
        patch.setattr(house.systemd, "start_unit", fail(UnitFailed("systemd refused to start it: bad setting")))
        with pytest.raises(UnitFailed, match="bad setting"):
            await house.start()
    house.systemd.gone = True
    with pytest.raises(SystemdUnavailable):
        await house.start()
    house.systemd.gone = False
    await (await house.start()).wait()


async def test_a_port_that_another_model_holds(house: House) -> None:
    await house.running("a", port=18003)
    await house.register("b", port=18003)
    with pytest.raises(PortInUse, match=r"port 18003 is held by model a; stop it, or 'cortexctl set b port=auto'"):
        await house.start("b")
    assert ("StartUnit", "cortex-b.service") not in house.systemd.calls and await house.kinds("b") == [
        "registered",
        "start-refused",
    ]
    await (await house.stop("a")).wait()
    await (await house.start("b")).wait()
    assert house.state("b") is State.READY


@pytest.mark.parametrize(("one", "other", "clash"), [
    ("127.0.0.1", "0.0.0.0", True), ("0.0.0.0", "127.0.0.1", True), ("127.0.0.1", "127.0.0.2", False), ("::1", "127.0.0.1", False),
])  # fmt: skip
async def test_addresses_that_overlap(house: House, one: str, other: str, clash: bool) -> None:
    await house.running("a", port=18004, host=one)
    await house.register("b", port=18004, host=other)
    if clash:
        with pytest.raises(PortInUse, match="model a"):
            await house.start("b")
    else:
        await (await house.start("b")).wait()


async def test_a_port_that_a_process_holds(house: House) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        await house.register(port=port)
        with pytest.raises(PortInUse, match=rf"port {port} is held by process {os.getpid()} \(.*\); stop it"):
            await house.start()
    assert house.asked("StartUnit") == []
    await (await house.start()).wait()


async def test_of_two_starts_at_once_one_gets_the_port(house: House) -> None:
    for name in "ab":
        await house.register(name, port=18005)
    results = await asyncio.gather(house.start("a"), house.start("b"), return_exceptions=True)
    assert sorted(type(r).__name__ for r in results) == ["Job", "PortInUse"]


async def test_a_running_model_is_not_in_its_own_way(house: House) -> None:
    with socket.socket() as sock:  # the model's own server, to the check
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        await house.running(port=port)
        sock.listen()
        await (await house.start()).wait()
        await (await house.restart()).wait()
        assert house.state() is State.READY
