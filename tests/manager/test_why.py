"""Why a run ended: found when its log is read, kept as an event, told to whoever asks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from cortexd import lifecycle, runlog
from cortexd.diagnosis import diagnoser
from cortexd.errors import InvalidConfig, JobFailed, StoreFailed
from cortexd.events import Event, Priority
from cortexd.names import unit_name
from cortexd.runlog import RunLine, RunLog
from cortexd.states import BY_SYSTEMD, State
from cortexd.store import Store
from cortexd.systemd.memory import MemoryEvents
from tests.manager.steps import again, fail, journal_of, sick
from tests.support.house import EMPTY_GGUF, ME, House

MANAGER = {"_SYSTEMD_USER_UNIT": "init.scope", "SYSLOG_IDENTIFIER": "systemd"}
LOG = journal_of(
    {"MESSAGE": "bind: address already in use"},
    {"MESSAGE": "Failed with result 'exit-code'.", "_SYSTEMD_USER_UNIT": "init.scope", "SYSLOG_IDENTIFIER": "systemd"},
)


async def broken(house: House, journalctl: Path) -> str:
    journalctl.write_text(LOG)
    unit = await house.register()
    house.systemd.behave(unit, start="failed")
    return unit


async def test_a_start_that_fails_names_the_cause(house: House, journalctl: Path) -> None:
    await broken(house, journalctl)
    began = time.monotonic()
    with pytest.raises(JobFailed, match=r"^port \d+ is taken by another program$"):
        await (await house.start()).wait()
    assert time.monotonic() - began < lifecycle.CAUSE_SECONDS
    event = await house.until_event("cause")
    run = house.unit().invocation_id
    assert (event.invocation_id, event.priority, event.details["cause"]) == (run, Priority.ERROR, "port-in-use")
    assert ["Log", "bind: address already in use"] in event.details["evidence"]
    found = await house.manager.why("a")
    assert (found.cause, found.sentence) == ("port-in-use", event.message)
    assert house.reason() == found.sentence


async def test_a_start_waits_no_longer_than_its_bound_for_a_journal_that_is_slow(
    house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broken(house, journalctl)
    journalctl.write_text("#!/bin/sh\nexec sleep 1000\n")
    monkeypatch.setattr(lifecycle, "CAUSE_SECONDS", 0.05)
    with pytest.raises(JobFailed, match=r"^the server exited with status 1$"):
        await (await house.start()).wait()


async def test_a_cause_outlives_the_daemon_and_systemds_memory(house: House, journalctl: Path) -> None:
    unit = await broken(house, journalctl)
    with pytest.raises(JobFailed):
        await (await house.start()).wait()
    await house.until_event("cause")
    before = await house.manager.why("a")
    journalctl.write_text("#!/bin/sh\n")
    await again(house)
    assert (await house.manager.why("a"), house.reason()) == (before, before.sentence)
    house.systemd.change(unit, active_state="inactive", sub_state="dead", result="success", invocation_id="")
    assert await house.manager.why("a") == before


async def test_a_model_that_runs_or_was_stopped_or_never_started(house: House, journalctl: Path) -> None:
    journalctl.write_text("#!/bin/sh\n")
    await house.register()
    assert (await house.manager.why("a")).cause == "never-started"
    await (await house.start()).wait()
    assert (await house.manager.why("a")).sentence == "it is ready"
    await (await house.stop()).wait()
    await house.until(State.STOPPED)
    found = await house.manager.why("a")
    assert (found.cause, found.sentence) == ("stopped", f"it was stopped by {ME.actor}")
    house.systemd.change(unit_name("a"), invocation_id="")
    await house.until_event("stopped")
    assert (await house.manager.why("a")).sentence == f"it was stopped by {ME.actor}"


async def test_a_run_of_which_nobody_saw_the_end(house: House) -> None:
    unit = await house.running()
    await house.until_event("ready")
    house.systemd._units.listeners.clear()
    house.systemd.change(
        unit,
        active_state="inactive",
        sub_state="dead",
        result="success",
        invocation_id="",
        main_pid=0,
        control_group="",
    )
    found = await house.manager.why("a")
    assert (found.cause, "ended with your session or the machine" in found.sentence) == ("machine-down", True)


async def test_an_end_of_which_nothing_is_known_is_not_guessed(house: House, journalctl: Path) -> None:
    journalctl.write_text("#!/bin/sh\n")
    unit = await house.running()
    await house.until_event("ready")
    house.systemd._units.listeners.clear()
    house.systemd.change(unit, active_state="inactive", sub_state="dead", invocation_id="", main_pid=0)
    found = await house.manager.why("a")
    assert (found.cause, "neither systemd nor the journal has a word" in found.sentence) == ("unknown", True)


async def test_an_end_that_systemd_has_forgotten_is_in_the_journal(house: House, journalctl: Path) -> None:
    unit = await house.running()
    await house.until_event("ready")
    house.systemd._units.listeners.clear()
    house.systemd.change(unit, active_state="inactive", sub_state="dead", invocation_id="", main_pid=0)
    stopping = {"MESSAGE_ID": runlog._STOPPING, "MESSAGE": "Stopping a..."}
    journalctl.write_text(journal_of({**MANAGER, **stopping}, {**MANAGER, "MESSAGE_ID": runlog._STOPPED}))
    found = await house.manager.why("a")
    assert (found.cause, found.sentence) == ("stopped", f"it was stopped by systemd: {BY_SYSTEMD}")


async def test_a_cause_that_a_killed_cortexd_left_open_is_found_by_the_next(
    house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of a run that systemd still shows, and of one after which others came."""
    left = asyncio.Event()

    async def killed(*_: object) -> None:
        left.set()

    journalctl.write_text(LOG)
    with monkeypatch.context() as dying:
        dying.setattr(diagnoser.Diagnoser, "ended", killed)
        unit = await house.running(Restart="always")
        first = house.unit().invocation_id
        house.systemd.crash(unit)
        await house.until_event("failed")
        await house.close()
    await house.open()
    event = await house.until_event("cause")
    assert (event.invocation_id, event.details["cause"]) == (first, "killed")
    assert house.reason() == event.message
    assert [file.name[-36:-4] for file in (house.scope.logs / "a").iterdir()] == [first]
    with monkeypatch.context() as dying:
        dying.setattr(diagnoser.Diagnoser, "ended", killed)
        await (await house.start()).wait()
        second = house.unit().invocation_id
        house.systemd.crash(unit)
        await aio_until_events(house, "failed", 2)
        await (await house.start()).wait()
        await house.close()
    main = {
        "MESSAGE_ID": runlog._EXITED,
        "EXIT_CODE": "exited",
        "EXIT_STATUS": "9",
        "MESSAGE": "a: Main process exited",
    }
    end = {"MESSAGE_ID": runlog._FAILED, "UNIT_RESULT": "exit-code", "MESSAGE": "a: Failed"}
    journalctl.write_text(
        journal_of({"MESSAGE": "the disk: No space left on device"}, {**MANAGER, **main}, {**MANAGER, **end})
    )
    await house.open()
    events = await aio_until_events(house, "cause", 2)
    assert (events[-1].invocation_id, events[-1].details["cause"]) == (second, "disk-full")
    assert ["Exit", "status 9"] in events[-1].details["evidence"]
    assert len(list((house.scope.logs / "a").iterdir())) == 2
    await again(house)
    await asyncio.gather(*house.manager._observer._tasks)
    assert len(await aio_until_events(house, "cause", 2)) == 2


async def aio_until_events(house: House, kind: str, count: int) -> list[Event]:
    async with asyncio.timeout(10):
        while len(found := [event for event in await house.events() if event.kind == kind]) < count:
            await asyncio.sleep(0.01)
    return found


async def test_what_is_found_after_the_model_is_gone_is_kept_nowhere(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor under another model of its name."""
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def read(*_: object) -> RunLog:
        reading.set()
        await go_on.wait()
        return RunLog((RunLine(1, "a[1]", "last words"),))

    unit = await house.running()
    monkeypatch.setattr(runlog, "read_ended", read)
    house.systemd.crash(unit)
    await reading.wait()
    (finding,) = (task for task in house.manager._observer._tasks if not task.done())
    await (await house.unregister()).wait()
    await house.register()
    go_on.set()
    await finding
    assert await aio_until_events(house, "cause", 0) == []
    assert not (house.scope.logs / "a").exists()


async def test_a_former_model_of_the_same_name_is_another(house: House, journalctl: Path) -> None:
    unit = await broken(house, journalctl)
    with pytest.raises(JobFailed):
        await (await house.start()).wait()
    await house.until_event("cause")
    await (await house.unregister()).wait()
    await house.register()
    house.systemd.change(unit, invocation_id="")
    assert (await house.manager.why("a")).cause == "never-started"


async def test_memory_killed_at_the_limit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = await house.running(memory="2G")
    run = house.unit().invocation_id
    house.manager._diagnoser._memory._seen[run] = MemoryEvents(1, 1, 9, 2 << 30)
    house.systemd.crash(unit, result="oom-kill")
    event = await house.until_event("cause")
    assert event.message == "out of memory: the kernel killed it at its memory limit of 2G"
    assert ["Memory", "limit 2G, at most 2G used; limit hit: 1, processes killed: 1, throttled: 9"] in (
        event.details["evidence"]
    )


async def test_health_and_kill(house: House) -> None:
    unit = await house.running()
    await house.manager.kill("a", "KILL", "all", ME)
    assert (await house.until_event("cause")).message == "it was sent SIGKILL with cortexctl kill"
    run = house.unit().invocation_id
    # A cortexd that began since then knows it from the log.
    house.manager.view("a").model.ending = type(house.manager.view("a").model.ending)()
    evidence = await house.manager._diagnoser._evidence(house.manager.view("a").model, house.unit(), RunLog())
    assert (evidence.ending.run, evidence.ending.by, evidence.ending.signal) == (run, "kill", 9)
    assert unit == house.unit().unit


async def test_a_sick_run(house: House) -> None:
    unit, run = await sick(house)
    event = await house.until_event("cause")
    told = "2 health probes failed in a row, the last: no answer"
    assert (event.invocation_id, event.message) == (run, f"cortexd killed it: {told}")
    assert ["Probes", told] in event.details["evidence"]
    assert (await house.manager.why("a")).sentence == f"cortexd killed it: {told}; systemd starts it again"
    house.systemd.finish(unit)


async def test_a_database_that_fails_costs_the_cause_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = await house.running()
    await house.until_event("ready")
    monkeypatch.setattr(house.store, "events", fail(StoreFailed("no")))
    house.systemd.crash(unit)
    await house.until(State.FAILED)
    assert house.reason() == "the server was killed by SIGKILL"


@pytest.mark.parametrize("lost", [False, True])
async def test_a_full_disk_costs_the_log_and_not_the_cause(
    house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """And where it costs the cause, no other model's."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def killed(*_: object) -> None:
        pass

    journalctl.write_text(LOG)
    with monkeypatch.context() as dying:
        dying.setattr(diagnoser.Diagnoser, "ended", killed)
        for name in ("a", "b"):
            unit = await house.running(name)
            house.systemd.crash(unit)
            await house.until_event("failed", name)
        await house.close()
    add_event = Store.add_event

    async def refuses(store: Store, event: Event) -> None:
        if lost and (event.model, event.kind) == ("a", "cause"):
            raise StoreFailed("the disk is full")
        await add_event(store, event)

    monkeypatch.setattr(Store, "add_event", refuses)
    monkeypatch.setattr(runlog, "save", full)
    await house.open()
    (catching_up,) = house.manager._observer._tasks
    await catching_up
    found = {name: [e.details["cause"] for e in await house.events(name) if e.kind == "cause"] for name in ("a", "b")}
    assert found == {"a": [] if lost else ["killed"], "b": ["killed"]}


async def test_few_runs_are_remembered(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnoser, "_REMEMBERED", 5)
    await asyncio.gather(*(house.manager._diagnoser.cause_of(str(number), 0.01) for number in range(20)))
    assert len(house.manager._diagnoser._found) == 5


async def test_a_start_that_was_refused_is_why_it_does_not_run(house: House) -> None:
    await house.register()
    house.gguf.unlink()
    with pytest.raises(InvalidConfig, match="does not exist") as refused:
        await house.start()
    event = await house.until_event("start-refused")
    assert (event.message, event.priority, event.actor) == (str(refused.value), Priority.WARNING, ME.actor)
    found = await house.manager.why("a")
    assert found.cause == "start-refused" and found.sentence.startswith("its start was refused: path=")
    assert found.remedy and found.remedy in event.message
    house.gguf.write_bytes(EMPTY_GGUF)
    await (await house.start()).wait()
    await (await house.stop()).wait()
    assert (await house.manager.why("a")).cause == "stopped"


async def test_the_kill_that_spent_the_budget_is_still_the_callers(house: House) -> None:
    unit = await house.running(max_restarts=1, Restart="always")
    house.systemd.behave(unit, restart=True)
    await house.manager.kill("a", "KILL", "all", ME)
    await house.until(State.FAILED)
    event = await house.until_event("cause")
    assert event.details["sentence"] == "it was sent SIGKILL with cortexctl kill"
