"""Why a run ended: found when its log is read, kept as an event, told to whoever asks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from cortexd import lifecycle
from cortexd.diagnosis import diagnoser
from cortexd.errors import InvalidConfig, JobFailed, StoreFailed
from cortexd.events import Priority
from cortexd.names import unit_name
from cortexd.states import State
from cortexd.systemd.memory import MemoryEvents
from tests.manager.steps import again, fail, sick
from tests.support.house import EMPTY_GGUF, ME, House

LOG = """#!/bin/sh
case "$*" in *UNIT_RESULT*) echo failed;; *)
echo "2026-11-23T18:00:00+0000 host cortex-a[9]: bind: address already in use"
echo "2026-11-23T18:00:00+0000 host systemd[7]: cortex-a.service: Failed with result 'exit-code'."
esac
"""


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
    assert ["Memory", "limit 2G, at most 2G used; limit hit 1 times, 1 processes killed, throttled 9 times"] in (
        event.details["evidence"]
    )


async def test_health_and_kill(house: House) -> None:
    unit = await house.running()
    await house.manager.kill("a", "KILL", "all", ME)
    assert (await house.until_event("cause")).message == "it was sent SIGKILL with cortexctl kill"
    run = house.unit().invocation_id
    # A cortexd that began since then knows it from the log.
    house.manager.view("a").model.ending = type(house.manager.view("a").model.ending)()
    evidence = await house.manager._diagnoser._evidence(house.manager.view("a").model, house.unit(), b"")
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
