"""The logs of runs: read by what journald itself knows, bounded, and saved where the run failed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cortexd import journal, runlog
from cortexd.diagnosis import diagnoser
from cortexd.runlog import RunLine, RunLog
from tests.manager.steps import journal_of
from tests.support.house import House
from tests.support.wait import aio_until

RUN, UNIT = "f" * 32, "cortex-a.service"
MANAGER = {"_SYSTEMD_USER_UNIT": "init.scope", "SYSLOG_IDENTIFIER": "systemd", "_PID": "1"}
FAILED = {
    **MANAGER,
    "MESSAGE_ID": runlog._FAILED,
    "UNIT_RESULT": "signal",
    "MESSAGE": "a: Failed with result 'signal'.",
}


def exited(code: str, status: str, process: str = "Main process") -> dict[str, str]:
    message = f"{UNIT}: {process} exited, code={code}, status={status}"
    return {**MANAGER, "MESSAGE_ID": runlog._EXITED, "EXIT_CODE": code, "EXIT_STATUS": status, "MESSAGE": message}


def texts(log: RunLog) -> list[str]:
    return [line.text for line in log.lines]


async def test_how_a_run_ended_is_in_its_managers_lines(journalctl: Path) -> None:
    journalctl.write_text(
        journal_of({"MESSAGE": "mine"}, exited("exited", "1", "Control process"), exited("killed", "11"), FAILED)
    )
    log = await runlog.read(UNIT, RUN, 0)
    assert texts(log)[0] == "mine" and [line.manager for line in log.lines] == [False, True, True, True]
    assert log.end is not None
    assert (log.end.active_state, log.end.result, log.end.invocation_id) == ("failed", "signal", RUN)
    assert (log.end.exec_main_code, log.end.exec_main_status) == (2, 11)
    assert not log.stopped and not log.lost


async def test_a_run_that_systemd_stopped(journalctl: Path) -> None:
    stopping = {**MANAGER, "MESSAGE_ID": runlog._STOPPING, "MESSAGE": "Stopping a..."}
    journalctl.write_text(journal_of(stopping, {**MANAGER, "MESSAGE_ID": runlog._STOPPED, "MESSAGE": "Stopped a."}))
    log = await runlog.read(UNIT, RUN, 0)
    assert log.stopped and log.end is not None
    assert (log.end.active_state, log.end.result) == ("inactive", "success")
    journalctl.write_text(journal_of(stopping))
    assert (await runlog.read(UNIT, RUN, 0)).end is None
    for order, stopped in (((stopping, FAILED), True), ((FAILED, stopping), False)):  # in the pause after it
        journalctl.write_text(journal_of(*order))
        assert (await runlog.read(UNIT, RUN, 0)).stopped is stopped


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("a\x1b[31mb\x1b]0;x\x07\x00c", "ab c"),
        ([104, 105, 255], "hi\ufffd"),
        (["one", "two"], "two"),
        ([-1], ""),
        (None, ""),
        (7, ""),
        ("x" * 100_000, "x" * 16384),
    ],
)
async def test_any_line_is_harmless(journalctl: Path, message: object, text: str) -> None:
    record = json.dumps({"__REALTIME_TIMESTAMP": "1", "MESSAGE": message, "_PID": ["1"], "SYSLOG_IDENTIFIER": [7]})
    (journalctl.parent / "line").write_text(f"{record}\nnone\n[]\n{{}}\n{record[:20]}")
    journalctl.write_text(f"#!/bin/sh\ncat {journalctl.parent}/line\n")
    assert texts(await runlog.read(UNIT, RUN, 0)) == ([text] if text else [])


async def test_orphans_count_by_their_connection_and_none_that_is_anothers(journalctl: Path) -> None:
    """A line of a process that is gone bears no unit. Where other lines tell the run's connection, it alone counts."""
    asked = journalctl.parent / "asked"
    own = {"MESSAGE": "own", "_SYSTEMD_USER_UNIT": UNIT, "_STREAM_ID": "5", "__REALTIME_TIMESTAMP": "1"}
    orphan = {"MESSAGE": "orphan", "_STREAM_ID": "5", "__REALTIME_TIMESTAMP": "2"}
    forged = {"MESSAGE": "forged", "_SYSTEMD_USER_UNIT": "cortex-b.service", "__REALTIME_TIMESTAMP": "3"}
    journalctl.write_text(
        f'#!/bin/sh\necho "$*" >>{asked}\ncase "$*" in *=_SYSTEMD*|*" _SYSTEMD_INV"*) echo \'{json.dumps(own)}\';;\n'
        f"*) echo '{json.dumps(forged)}'; echo '{json.dumps(orphan)}';; esac\n"
    )
    assert texts(await runlog.read(UNIT, RUN, 1_000_000)) == ["own", "orphan"]
    assert "_STREAM_ID=5" in asked.read_text() and "SYSLOG_IDENTIFIER=" not in asked.read_text()
    journalctl.write_text(journalctl.read_text().replace(f"echo '{json.dumps(own)}'", ":"))
    assert texts(await runlog.read(UNIT, RUN, 1_000_000)) == ["orphan"]
    assert "SYSLOG_IDENTIFIER=cortex-a _TRANSPORT=stdout _UID=" in asked.read_text()


@pytest.mark.parametrize(
    ("end", "taken", "says"),
    [
        ((exited("exited", "7"), FAILED), 9_999, ""),
        ((exited("exited", "7"), FAILED), 10_000, "may have dropped lines at its end"),
        ((FAILED,), 10_000, "the journal dropped lines at its end"),
    ],
)
async def test_lines_that_a_flood_has_cost(
    journalctl: Path, end: tuple[dict[str, str], ...], taken: int, says: str
) -> None:
    (journalctl.parent / "taken").write_text("cortex-loud.service\n" * (taken - 5) + f"{UNIT}\n" * 5)
    script = journal_of(*end).replace("esac", f"*output=cat*) cat {journalctl.parent}/taken;;\nesac")
    journalctl.write_text(script)
    log = await runlog.read(UNIT, RUN, 0, 60_000_000)
    assert (says in log.lost) and bool(says) == bool(log.lost)
    told = f"cortex-loud wrote {taken - 5} of the {taken} that it took; have cortex-loud say less"
    assert not says or f"{told}, or 'cortexctl set loud log_level=debug', or an administrator" in log.lost
    assert log.text.startswith(f"({log.lost})\n".encode()) == bool(says)


@pytest.mark.parametrize(
    ("priority", "flooded", "says"),
    [("6", "6", True), ("6", "7", False), ("7", "7", True), ("7", "6", True), ("", "7", True), ("", "6", True)],
)
async def test_a_flood_at_another_level_costs_nothing(
    journalctl: Path, priority: str, flooded: str, says: bool
) -> None:
    """Where nothing of the run is left, it may have been of any level. systemd's own words are info."""
    (journalctl.parent / "taken").write_text("cortex-loud.service\n" * 10_000)
    own = {"MESSAGE": "own", "_SYSTEMD_USER_UNIT": UNIT, "PRIORITY": priority, "__REALTIME_TIMESTAMP": "1"}
    flood = f"*output=cat*PRIORITY={flooded}*) cat {journalctl.parent}/taken;;\n*output=cat*) ;;\n"
    known = f"*) echo '{json.dumps(own)}';;\n" if priority else ""
    journalctl.write_text(f'#!/bin/sh\ncase "$*" in\n{flood}{known}esac\n')
    log = await runlog.read(UNIT, RUN, 0, 60_000_000)
    assert log.lost.startswith("the journal may have dropped lines") == bool(log.lost) == says
    assert ("log_level=debug" in log.lost) == (flooded == "6")


async def test_no_lines_no_file(house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "_PATIENCE", 0.05)
    unit = await house.running()
    journalctl.write_text("#!/bin/sh\n")
    house.systemd.crash(unit)
    await house.until_event("cause")
    assert not (house.scope.logs / "a").exists()
    journalctl.unlink()
    monkeypatch.setenv("PATH", str(journalctl.parent))
    assert await runlog.read_ended(UNIT, RUN, 1, 2) == RunLog()


async def test_a_journal_that_hangs_is_left(journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "_PATIENCE", 0.1)
    monkeypatch.setattr(journal, "_DEADLINE", 0.1)
    pids = journalctl.parent / "pids"
    journalctl.write_text(f"#!/bin/sh\necho $$ >>{pids}\nexec sleep 1000\n")
    assert await runlog.read_ended(UNIT, RUN, 1, 2) == RunLog()
    task = asyncio.create_task(runlog.read_ended(UNIT, RUN, 1, 2))
    started = len(pids.read_text().split())
    await aio_until(lambda: len(pids.read_text().split()) > started, "the program")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()


async def test_saved_logs_are_bounded_and_one_for_each_run(tmp_path: Path) -> None:
    text = RunLog(tuple(RunLine(n, "a[1]", "x" * 3000) for n in range(200))).text
    assert len(text) == runlog.MAX_BYTES
    for number in range(15):
        runlog.save(tmp_path, "a", f"{number:032}", number * 10**15, text)
    runlog.save(tmp_path, "a", f"{12:032}", 99 * 10**15, b"again\n")
    saved = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert [name[-6:-4] for name in saved] == [f"{number:02}" for number in range(5, 15)]
    assert next((tmp_path / "a").glob(f"*{12:032}.log")).read_bytes() == b"again\n"
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()} == {0o600}


async def test_a_hundred_failures_at_once_read_the_journal_a_few_at_a_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, most = 0, 0

    async def read(unit: str, run: str, began: int, ended: int) -> RunLog:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        return RunLog()

    monkeypatch.setattr(runlog, "read_ended", read)
    units = [await house.running(f"m{number}") for number in range(30)]
    for unit in units:
        house.systemd.crash(unit)
    await asyncio.gather(*(house.until_event("failed", f"m{number}") for number in range(30)))
    await aio_until(lambda: most and not at_once, "every log")
    assert most == diagnoser.SAVING
