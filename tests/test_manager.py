"""The use-cases, on a systemd in memory, a real database and real files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd import journal, observer
from cortexd.errors import (
    Busy,
    CortexError,
    InvalidConfig,
    InvalidName,
    JobCanceled,
    JobFailed,
    JobTimeout,
    ModelExists,
    NoSuchModel,
    PortInUse,
    ShuttingDown,
    StoreFailed,
    SystemdUnavailable,
    UnitConflict,
    UnitFailed,
)
from cortexd.events import Priority
from cortexd.health.policy import Decision, HealthState, Outcome
from cortexd.jobs import JobState, JobTable
from cortexd.model import SETTINGS
from cortexd.names import unit_name
from cortexd.registration import Caller
from cortexd.states import State
from cortexd.systemd.fake import FakeSystemd
from cortexd.units.render import FOLDER_TEMPLATE
from tests.support.house import ME, House
from tests.support.wait import aio_until

JOURNALCTL = """#!/bin/sh
case "$*" in *UNIT_RESULT*) echo failed;; *) echo "last words of $*";; esac
"""


@pytest.fixture(autouse=True)
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journal, at its seam: a program of this name that the test may replace."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(JOURNALCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(observer, "_SETTLE_SECONDS", 0.01)
    house = House(tmp_path)
    await house.open()
    yield house
    await house.close()


def fail(error: Exception) -> Callable[..., Any]:
    """A method that fails."""

    async def failing(*_: object, **__: object) -> None:
        raise error

    return failing


def everything(house: House) -> dict[str, object]:
    """All that must be as before where something failed: the files, the models' settings, what is registered."""
    files = {p.name: p.read_text() for p in house.scope.unit_folder.iterdir() if p.is_file()}
    files.pop(FOLDER_TEMPLATE, None)
    with sqlite3.connect(house.scope.database) as connection:
        rows = connection.execute("SELECT name, settings FROM models").fetchall()
    connection.close()
    specs = {name: model.spec for name, model in house.manager.catalog.models.items()}
    return {"files": files, "rows": rows, "specs": specs}


# -- Register


async def test_registered(house: House) -> None:
    added: list[str] = []
    house.manager.on_add = added.append
    unit = await house.register("a", memory="2G", health__interval_seconds=70)
    assert added == ["a"]
    text = house.path().read_text()
    assert "MemoryMax=2147483648" in text or "MemoryMax=2G" in text
    assert house.unit().load_state == "loaded" and ("Reload",) in house.systemd.calls
    assert stat.S_IMODE(house.path().stat().st_mode) & 0o022 == 0
    view = house.manager.view("a")
    assert (view.model.spec.health.interval, view.judgement.state, unit) == (70.0, State.STOPPED, "cortex-a.service")
    (event,) = await house.events()
    assert (event.kind, event.actor, event.message) == ("registered", "me[1]", "registered with llamacpp")
    assert event.details["memory"] == "2G"
    # Only what was asked for is stored: defaults may change with a release.
    (row,) = await house.store.models()
    assert row.settings is not None
    assert set(row.settings) == {"backend", "path", "exec", "port", "gpus", "memory", "health.interval_seconds"}


@pytest.mark.parametrize(
    ("name", "given", "error", "says"),
    [
        ("-a", {}, InvalidName, "name '-a'"),
        ("a.service", {}, InvalidName, "unit"),
        ("a" * 65, {}, InvalidName, "65 characters"),
        ("a", {"prot": "1"}, InvalidConfig, "unknown setting 'prot'; did you mean port?"),
        ("a", {"port": "70000"}, InvalidConfig, "port='70000'"),
        ("a", {"path": ""}, InvalidConfig, "path: is missing"),
        ("a", {"path": "/nowhere.gguf"}, InvalidConfig, "does not exist"),
        ("a", {"exec": "/nowhere/llama-server"}, InvalidConfig, "is no executable file"),
        ("a", {"exec": ""}, InvalidConfig, "no llama-server on your PATH"),
        ("a", {"backend": "none"}, InvalidConfig, "backend='none'"),
        ("a", {"memory": "2G", "MemoryHigh": "3G"}, InvalidConfig, "MemoryHigh=3G"),
        ("a", {"health.timeout_seconds": "40"}, InvalidConfig, "health.timeout_seconds=40"),
        ("a", {"host": "example.org", "port": "auto"}, InvalidConfig, "host='example.org'"),
        ("a", {"extra_args": "'"}, InvalidConfig, "extra_args"),
    ],
)
async def test_bad_input_changes_nothing(
    house: House, name: str, given: dict[str, object], error: type[CortexError], says: str
) -> None:
    before = everything(house)
    with pytest.raises(error) as caught:
        await house.register(name, **given)
    assert says in str(caught.value)
    assert everything(house) == before == {"files": {}, "rows": [], "specs": {}}
    assert await house.events(name) == [] and house.asked("Reload") == []


@pytest.mark.parametrize("where", ["store", "write", "reload", "cancelled"])
async def test_a_registration_that_fails_is_undone(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before = everything(house)
    with monkeypatch.context() as patch:
        if where == "store":
            patch.setattr(house.store, "_insert", fail(sqlite3.OperationalError("disk full")))
        elif where == "write":
            house.scope.unit_folder.chmod(0o500)
        elif where == "reload":
            patch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
        else:
            patch.setattr(house.systemd, "reload", fail(asyncio.CancelledError()))  # type: ignore[arg-type]
        with pytest.raises((StoreFailed, UnitConflict, SystemdUnavailable, asyncio.CancelledError)):
            await house.register()
        house.scope.unit_folder.chmod(0o700)
    assert everything(house) == before
    assert await house.kinds() == ([] if where == "store" else ["registered", "register-failed"])
    await house.running()  # and it can be done again


async def test_two_at_once_share_no_port_and_no_name(house: House) -> None:
    await asyncio.gather(*(house.register(f"m{number}") for number in range(8)))
    ports = [house.manager.view(f"m{number}").model.spec.port for number in range(8)]
    assert len(set(ports)) == 8
    results = await asyncio.gather(*(house.register("twin") for _ in range(5)), return_exceptions=True)
    assert results.count("cortex-twin.service") == 1
    assert sum(isinstance(r, ModelExists) for r in results) == 4
    assert "cortexctl set twin KEY=VALUE" in str(next(r for r in results if isinstance(r, ModelExists)))
    assert await house.kinds("twin") == ["registered"]


async def test_a_common_port_is_a_warning(house: House) -> None:
    await house.register("a", port=18001)
    assert list(await house.manager.register("b", _like("a", house, port="18001"), ME)) == [
        "port=18001: model a has it, too; only one of them can run at a time"
    ]
    assert house.manager.view("a").model.warnings  # the other one's, too
    await (await house.unregister("b")).wait()
    assert house.manager.view("a").model.warnings == ()


def _like(name: str, house: House, **changed: object) -> dict[str, object]:
    return {**house.manager.view(name).model.definition.explicit, **changed}


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
async def test_a_unit_file_of_somebody_elses_is_kept(house: House, kind: str) -> None:
    path = house.path()
    if kind == "file":
        path.write_text("[Service]\nExecStart=/bin/true\n")
    elif kind == "link":
        path.symlink_to("/dev/null")  # masked
    else:
        path.mkdir()
    with pytest.raises(UnitConflict, match="move it away, or choose another name"):
        await house.register()
    assert path.is_symlink() == (kind == "link") and path.is_dir() == (kind == "folder")
    if kind == "file":
        assert path.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert house.manager.catalog.models == {} and await house.events() == []


async def test_a_unit_that_lies_elsewhere_is_not_covered(house: House) -> None:
    house.systemd.change(
        "cortex-a.service", load_state="loaded", fragment_path="/usr/lib/systemd/user/cortex-a.service"
    )
    house.systemd._units.unit("cortex-a.service").text = "[Service]"
    with pytest.raises(UnitConflict, match=r"/usr/lib/systemd/user/cortex-a\.service\); choose another name"):
        await house.register()
    assert not house.path().exists()


# -- Set


async def test_change(house: House) -> None:
    await house.running()
    run, text = house.unit().invocation_id, house.path().read_text()
    changed: list[str] = []
    house.manager.on_change = changed.append
    os.utime(house.path(), (0, 0))
    needed, warnings = await house.manager.set("a", {"health.interval_seconds": "50"}, ME)
    assert (needed, list(warnings), house.path().read_text()) == (False, [], text)
    # The fake's clock begins at 1970: any file is younger than its runs.
    needed, _ = await house.manager.set("a", {"max_model_len": 77}, ME)
    assert needed and '"77"' in house.path().read_text() and house.unit().invocation_id == run
    assert set(changed) == {"a"}
    events = await house.events()
    assert [(e.kind, e.message) for e in events[-2:]] == [
        ("set", "changed health.interval_seconds=50"),
        ("set", "changed max_model_len=77"),
    ]
    assert events[-1].actor == "me[1]" and events[-1].details == {"max_model_len": "77"}
    await house.manager.set("a", {"max_model_len": ""}, ME)
    assert house.manager.view("a").model.spec.max_model_len == 4096
    (row,) = await house.store.models()
    assert row.settings is not None and "max_model_len" not in row.settings


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "no setting was given"),
        ({"max_model_len": "77", "port": "x"}, "port='x'"),
        ({"max_model_len": "77", "unknown": "1"}, "unknown setting"),
        ({"MemoryHigh": "33G"}, "MemoryHigh=33G"),
    ],
)
async def test_a_change_is_all_or_nothing(house: House, given: dict[str, object], says: str) -> None:
    await house.register()
    before = everything(house)
    with pytest.raises(InvalidConfig, match=says):
        await house.manager.set("a", given, ME)
    assert everything(house) == before and await house.kinds() == ["registered"]


@pytest.mark.parametrize("where", ["store", "write", "reload", "cancelled"])
async def test_a_change_that_fails_is_undone(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    await house.running()
    await house.events()
    before = everything(house)
    with monkeypatch.context() as patch:
        if where == "store":
            patch.setattr(house.store, "_insert", fail(sqlite3.OperationalError("disk full")))
        elif where == "write":
            house.scope.unit_folder.chmod(0o500)
        elif where == "reload":
            patch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
        else:
            patch.setattr(house.systemd, "reload", fail(asyncio.CancelledError()))  # type: ignore[arg-type]
        with pytest.raises((StoreFailed, UnitConflict, SystemdUnavailable, asyncio.CancelledError)):
            await house.manager.set("a", {"max_model_len": "77"}, ME)
        house.scope.unit_folder.chmod(0o700)
    assert everything(house) == before
    assert (await house.kinds())[-2:] == (["run", "ready"] if where == "store" else ["set", "set-failed"])
    assert await house.manager.set("a", {"max_model_len": "78"}, ME)
    assert '"78"' in house.path().read_text()


async def test_changes_at_once_lose_nothing(house: House) -> None:
    await house.register()
    await asyncio.gather(
        *(house.manager.set("a", {name: value}, ME) for name, value in
          [("max_model_len", "77"), ("RestartSec", "3"), ("CPUWeight", "50"), ("port", "18002")])
    )  # fmt: skip
    spec = house.manager.view("a").model.spec
    assert (spec.max_model_len, spec.restart.restart_seconds, spec.limits.cpu_weight, spec.port) == (77, 3.0, 50, 18002)
    await house.close()
    await house.open()
    assert house.manager.view("a").model.spec == spec


# -- Units that somebody edits


async def test_an_edited_unit_is_kept_and_reported(house: House) -> None:
    await house.register()
    edited = house.path().read_text().replace("[Service]", "[Service]\nNice=5")
    house.path().write_text(edited)
    with pytest.raises(UnitConflict, match="was edited by hand and is kept; move the change to a drop-in"):
        await house.manager.set("a", {"max_model_len": "77"}, ME)
    await (await house.start()).wait()
    assert house.path().read_text() == edited
    assert any("is not what cortexd wrote and is kept" in w for w in house.manager.view("a").model.warnings)
    await (await house.stop()).wait()
    await (await house.unregister()).wait()
    assert house.path().read_text() == edited
    assert "was not as cortexd wrote it and is kept" in (await house.events())[-1].message


async def test_drop_ins_survive(house: House) -> None:
    await house.register()
    drop_in = house.scope.unit_folder / "cortex-a.service.d" / "mine.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nNice=5\n")
    await house.manager.set("a", {"max_model_len": "77"}, ME)
    assert house.unit().drop_in_paths == (str(drop_in),)
    await (await house.start()).wait()
    await (await house.unregister(force=True)).wait()
    assert drop_in.read_text() == "[Service]\nNice=5\n"


async def test_a_unit_file_that_is_gone_is_written_again_at_the_start(house: House) -> None:
    await house.register()
    text = house.path().read_text()
    house.path().unlink()
    await house.systemd.reload()
    await (await house.start()).wait()
    assert house.path().read_text() == text and house.state() is State.READY


async def test_folders_that_a_backend_writes_have_a_unit_that_makes_them(house: House) -> None:
    await house.register(path="org/name:Q4")
    assert (house.scope.unit_folder / FOLDER_TEMPLATE).exists()
    assert FOLDER_TEMPLATE.split("@")[0] in house.path().read_text()


# -- Start


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
    assert (house.state(), house.reason()) == (State.FAILED, "the server exited with status 1")
    event = await house.until_event("failed")
    run = house.unit().invocation_id
    assert (event.priority, event.invocation_id) == (Priority.ERROR, run)
    (log,) = await aio_until(lambda: list((house.scope.logs / "a").glob("*.log")), "the saved log")
    assert log.name.endswith(f"-{run}.log")
    # The journal does not know the run of a line whose process is gone: what has its identifier counts, too.
    since = f"--since=@{house.unit().exec_main_start / 1e6:.6f}"
    matches = f"_SYSTEMD_INVOCATION_ID={run} + USER_INVOCATION_ID={run} + SYSLOG_IDENTIFIER=cortex-a _UID={os.getuid()}"
    assert f"{since} {matches}" in log.read_text()
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
    with pytest.raises(JobFailed, match="status 1; systemd tries again"):
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


# -- Ports


async def test_a_port_that_another_model_holds(house: House) -> None:
    await house.running("a", port=18003)
    await house.register("b", port=18003)
    with pytest.raises(PortInUse, match=r"port 18003 is held by model a; stop it, or 'cortexctl set b port=auto'"):
        await house.start("b")
    assert ("StartUnit", "cortex-b.service") not in house.systemd.calls and await house.kinds("b") == ["registered"]
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


# -- Stop


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


async def _starting(house: House, unit: str) -> None:
    house.systemd.behave(unit, start="hang")
    await house.start()


async def _ready(house: House, unit: str) -> None:
    await (await house.start()).wait()


async def _restarting(house: House, unit: str) -> None:
    house.systemd.behave(unit, restart=True)
    await (await house.start()).wait()
    house.systemd.crash(unit)
    assert house.state() is State.RESTARTING


async def _failed(house: House, unit: str) -> None:
    await (await house.start()).wait()
    house.systemd.crash(unit)
    assert house.state() is State.FAILED


async def _stopping(house: House, unit: str) -> None:
    await (await house.start()).wait()
    house.systemd.behave(unit, stop="hang")
    await house.stop()
    await house.until(State.STOPPING)


PHASES = [_starting, _ready, _restarting, _failed, _stopping]


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
    if phase is not _failed:
        assert "failed" not in kinds
    assert list((house.scope.logs / "a").glob("*.log")) == [] or phase in (_failed, _restarting)


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
    event = await house.until_event("ended")
    assert (event.message, event.priority) == ("stopped, or ended by itself with status 0", Priority.INFO)
    assert house.state() is State.STOPPED


async def test_a_server_that_somebody_else_kills(house: House) -> None:
    unit = await house.running()
    house.systemd.crash(unit)
    event = await house.until_event("failed")
    assert event.message == "the server was killed by SIGKILL from outside"


# -- Restart


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
    await _starting(house, unit)
    first = house.unit().invocation_id
    house.systemd.behave(unit)
    await (await house.restart()).wait()
    assert house.asked("StopUnit", "RestartUnit") == [("StopUnit", unit)]
    assert house.state() is State.READY and house.unit().invocation_id != first


async def test_a_stop_during_such_a_restart_is_the_last_word(house: House) -> None:
    unit = await house.register()
    await _starting(house, unit)
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


# -- Unregister


async def test_unregister(house: House) -> None:
    unit = await house.register()
    await house.manager.enable("a", ME, linger=False)
    removed: list[str] = []
    house.manager.on_remove = removed.append
    await (await house.unregister()).wait()
    assert removed == ["a"] and everything(house) == {"files": {}, "rows": [], "specs": {}}
    assert house.unit().load_state == "not-found" and unit not in house.systemd.known_units()
    order = house.asked("DisableUnitFiles", "StopUnit", "Reload", "ResetFailedUnit")
    assert [call[0] for call in order[-5:]] == ["DisableUnitFiles", "Reload", "StopUnit", "Reload", "ResetFailedUnit"]
    assert (await house.kinds())[-1] == "unregistered"  # its events stay
    with pytest.raises(NoSuchModel):
        house.manager.view("a")


async def test_a_running_model_is_unregistered_by_force_only(house: House) -> None:
    await house.running()
    with pytest.raises(Busy, match="model 'a' is ready; stop it first, or use --force"):
        await house.unregister()
    assert house.state() is State.READY
    await (await house.unregister(force=True)).wait()
    assert house.manager.catalog.models == {} and not house.unit().running
    assert "failed" not in await house.kinds()


async def test_a_model_whose_unit_file_is_gone_can_be_unregistered(house: House) -> None:
    await house.register()
    house.path().unlink()
    await house.systemd.reload()
    await (await house.unregister()).wait()
    assert house.manager.catalog.models == {}


@pytest.mark.parametrize("where", ["disable", "stop", "file", "store"])
async def test_a_removal_that_fails_leaves_the_model(house: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    await house.register()
    before = everything(house)
    with monkeypatch.context() as patch:
        if where == "disable":
            patch.setattr(house.systemd, "disable_unit", fail(SystemdUnavailable("gone")))
        elif where == "stop":
            patch.setattr(house.systemd, "stop_unit", fail(UnitFailed("no")))
        elif where == "file":
            house.scope.unit_folder.chmod(0o500)
        else:
            patch.setattr(house.store, "_insert", fail(sqlite3.OperationalError("disk full")))
        with pytest.raises(JobFailed):
            await (await house.unregister()).wait()
        house.scope.unit_folder.chmod(0o700)
    assert everything(house) == before
    await (await house.start()).wait()
    await (await house.unregister(force=True)).wait()


async def test_systemd_that_does_not_reload_does_not_bring_a_model_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()
    removed: list[str] = []
    house.manager.on_remove = removed.append
    monkeypatch.setattr(house.systemd, "disable_unit", house.systemd.refresh)
    monkeypatch.setattr(house.systemd, "reload", fail(SystemdUnavailable("gone")))
    warnings = await (await house.unregister()).wait()
    assert warnings == ["is removed, but systemd still remembers its unit: gone"]
    assert removed == ["a"] and house.manager.catalog.models == {} and not house.path().exists()


async def test_what_waits_for_a_model_that_is_removed_meanwhile(house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, stop="hang")
    job = await house.unregister(force=True)
    await house.until(State.STOPPING)
    waiting = [
        asyncio.create_task(work)  # type: ignore[arg-type]
        for work in (
            house.start(),
            house.manager.set("a", {"port": "18006"}, ME),
            house.manager.enable("a", ME, linger=False),
            house.manager.disable("a", ME),
            house.restart(),
        )
    ]
    await asyncio.sleep(0)
    house.systemd.finish(unit)
    await job.wait()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(r) for r in results] == [NoSuchModel] * 5
    assert everything(house) == {"files": {}, "rows": [], "specs": {}}


# -- Enable


async def test_enable_and_disable(house: House) -> None:
    await house.register()
    assert await house.manager.enable("a", ME, linger=False) == []
    assert house.unit().unit_file_state == "enabled"
    await house.manager.disable("a", ME)
    assert house.unit().unit_file_state == "disabled"
    assert [(e.kind, e.actor) for e in await house.events()][1:] == [("enable", "me[1]"), ("disable", "me[1]")]


@pytest.mark.parametrize(("lingers", "says"), [(False, "you do not linger"), (None, "logind does not say whether")])
async def test_enable_where_nobody_lingers(house: House, lingers: bool | None, says: str) -> None:
    await house.register()
    house.logind.lingers = lingers
    (warning,) = await house.manager.enable("a", ME, linger=False)
    assert says in warning and "loginctl enable-linger" in warning
    assert house.logind.asked == [] and house.unit().unit_file_state == "enabled"
    assert await house.manager.enable("a", ME, linger=True) == []
    assert house.logind.asked == [True]


# -- Kill, reset, health


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigkill", 9), ("SIGUSR1", 10), ("2", 2), (" 9", 9)])
async def test_kill(house: House, text: str, number: int) -> None:
    unit = await house.running()
    await house.manager.kill("a", text, "main", ME)
    assert house.asked("KillUnit") == [("KillUnit", unit, "main", str(number))]
    event = next(e for e in await house.events() if e.kind == "kill")
    assert (event.message, event.actor) == (f"{signal.Signals(number).name} sent to main", "me[1]")


@pytest.mark.parametrize(
    ("signal", "whom", "error", "says"),
    [
        ("", "all", InvalidConfig, "signal=''"),
        ("0", "all", InvalidConfig, "signal='0'"),
        ("99", "all", InvalidConfig, "signal='99'"),
        ("-9", "all", InvalidConfig, "signal='-9'"),
        ("SIG", "all", InvalidConfig, "signal='SIG'"),
        ("TERM", "everybody", InvalidConfig, "whom='everybody'"),
    ],
)
async def test_a_kill_that_makes_no_sense(house: House, signal: str, whom: str, error: Any, says: str) -> None:
    await house.running()
    with pytest.raises(error, match=says):
        await house.manager.kill("a", signal, whom, ME)
    assert house.asked("KillUnit") == [] and "kill" not in await house.kinds()


async def test_a_kill_says_who_it_was(house: House) -> None:
    await house.running()
    await house.manager.kill("a", "KILL", "all", ME)
    assert (await house.until_event("failed")).message == "the server was killed by SIGKILL (cortexctl kill)"
    with pytest.raises(Busy, match="is not running"):
        await house.manager.kill("a", "KILL", "all", ME)


async def test_reset_failed(house: House) -> None:
    unit = await house.running()
    house.systemd.crash(unit)
    await house.until_event("failed")
    await house.manager.reset_failed("a", ME)
    assert house.state() is State.STOPPED and (await house.kinds())[-1] == "reset-failed"
    assert [e.actor for e in await house.events() if e.kind == "reset-failed"] == ["me[1]"]


async def test_check_health(house: House) -> None:
    await house.register(port=18007, host="0.0.0.0")
    probe = await house.manager.check_health("a")  # whoever answers there is not this model
    assert (probe.outcome, probe.reason, house.prober.asked) == (Outcome.NOT_RUNNING, "it is stopped", [])
    await house.manager.set("a", {"health.enabled": "no"}, ME)
    await (await house.start()).wait()
    house.prober.outcome, house.prober.reason = Outcome.TIMEOUT, "no answer"
    probe = await house.manager.check_health("a")
    assert (probe.outcome, house.prober.asked) == (Outcome.TIMEOUT, ["http://127.0.0.1:18007/health"])
    assert house.manager.view("a").model.health.failures == 0  # asked for, it does not count


# -- Bad health

QUICK = {"health__interval_seconds": 0.2, "health__timeout_seconds": 0.2, "health__max_failures": 2}


async def _sick(house: House, **more: object) -> tuple[str, str]:
    unit = await house.register(**{**QUICK, **more})
    house.systemd.behave(unit, restart=True)
    await (await house.start()).wait()
    run = house.unit().invocation_id
    house.prober.outcome, house.prober.reason = Outcome.TIMEOUT, "no answer"
    return unit, run


async def test_a_sick_run_is_killed_by_its_id_and_systemd_starts_the_next(house: House) -> None:
    unit, run = await _sick(house)
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
    await _sick(house, health__max_failures=1000)
    await house.until(State.DEGRADED)
    assert "failed probes in a row" in house.reason()
    house.prober.outcome = Outcome.OK
    await house.until(State.READY)
    assert (await house.until_event("recovered")).message.startswith("healthy again after ")
    assert house.asked("Kill") == []


async def test_a_sick_run_that_nobody_would_restart_is_left_alone(house: House) -> None:
    await _sick(house, Restart="no")
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
    await house.manager._observer._on_probe("a", HealthState(run=condemned.run), condemned, Decision.RESTART)
    assert house.asked("Kill") == []
    await house.manager._observer._condemn(model, condemned)
    assert house.asked("Kill") == [("Kill", condemned.run, "9")]
    assert house.unit().invocation_id == run and house.state() is State.READY


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


# -- At the start of the daemon


async def _again(house: House, *, before: Callable[[], object] = lambda: None) -> None:
    await house.close()
    before()
    await house.open()


async def test_what_is_missing_or_outdated_is_written_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("missing", "outdated", "edited", "current"):
        await house.register(name)
    texts = {name: house.path(name).read_text() for name in ("missing", "outdated", "edited", "current")}
    edited = texts["edited"] + "Nice=5\n"
    inode = house.path("current").stat().st_ino

    def meanwhile() -> None:
        from cortexd.units.files import with_marker

        house.path("missing").unlink()
        house.path("outdated").write_text(with_marker("[Service]\nExecStart=/bin/old\n"))
        house.path("edited").write_text(edited)

    reloads = len(house.asked("Reload"))
    await _again(house, before=meanwhile)
    assert {n: house.path(n).read_text() for n in texts} == texts | {"edited": edited}
    assert house.path("current").stat().st_ino == inode
    assert len(house.asked("Reload")) == reloads + 1
    warnings = {n: bool(house.manager.view(n).model.warnings) for n in texts}
    assert warnings == {"missing": False, "outdated": False, "edited": True, "current": False}
    await _again(house)
    assert len(house.asked("Reload")) == reloads + 1  # all as it should be: nothing to do


async def test_units_of_no_model_are_reported_and_kept(house: House) -> None:
    await house.register("orphan")
    await house.register("a")
    (house.scope.unit_folder / "cortex-stranger.service").write_text("[Service]\nExecStart=/bin/true\n")

    def forget() -> None:
        with sqlite3.connect(house.scope.database) as connection:
            connection.execute("DELETE FROM models WHERE name = 'orphan'")
        connection.close()

    await _again(house, before=forget)
    (warning,) = house.manager.catalog.warnings
    assert "cortex-orphan.service was written by cortexd, but no model 'orphan' is registered" in warning
    assert house.path("orphan").exists() and list(house.manager.catalog.models) == ["a"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
ROWS = st.dictionaries(st.sampled_from([*SETTINGS, "unknown"]), JSON, max_size=4) | JSON
NASTY: list[tuple[str, str]] = [
    ("bad.service", "{}"), ("../../etc", "{}"), ("", "{}"), ("json", "{"), ("list", "[]"), ("unknown", '{"no": 1}'),
    ("host", '{"host": "nonsense"}'), ("backend", '{"backend": "none"}'), ("type", '{"port": {"a": 1}}'),
]  # fmt: skip


async def test_a_row_that_cannot_be_read_is_reported_and_hides_no_other(house: House) -> None:
    await house.register("a")

    def harm() -> None:
        with sqlite3.connect(house.scope.database) as connection:
            connection.executemany("INSERT INTO models VALUES (?, ?, 0, 0)", NASTY)
        connection.close()

    await _again(house, before=harm)
    assert list(house.manager.catalog.models) == ["a"]
    warnings = "\n".join(house.manager.catalog.warnings)
    assert warnings.count("cannot be read and is left alone") == len(NASTY)
    assert len(await house.store.models()) == 1 + len(NASTY)
    assert [p.name for p in house.scope.unit_folder.glob("cortex-*")] == ["cortex-a.service"]


@given(row=ROWS)
@settings(deadline=None, database=None, max_examples=100)
def test_no_row_keeps_the_daemon_from_starting(tmp_path_factory: pytest.TempPathFactory, row: Any) -> None:
    async def story() -> None:
        house = House(tmp_path_factory.mktemp("house"))
        await house.open()
        await house.close()
        with sqlite3.connect(house.scope.database) as connection:
            connection.execute("INSERT INTO models VALUES ('x', ?, 0, 0)", (json.dumps(row),))
        connection.close()
        await house.open()
        assert bool(house.manager.catalog.models) != bool(house.manager.catalog.warnings)
        await house.close()

    asyncio.run(story())


async def test_running_models_are_adopted(house: House) -> None:
    unit = await house.running(**QUICK)
    run = house.unit().invocation_id
    await _again(house)
    assert house.state() is State.READY and house.unit().invocation_id == run
    assert (await house.kinds()).count("run") == 1  # known already
    asked = len(house.prober.asked)
    await aio_until(lambda: len(house.prober.asked) > asked, "its probes")

    def by_hand() -> None:
        house.systemd.crash(unit)
        house.systemd._units.run(unit)
        house.systemd._units.change(unit, active_state="active", sub_state="running")

    await _again(house, before=by_hand)
    event = await house.until_event("run")
    assert (event.message, event.invocation_id) == ("run began while cortexd was not there", house.unit().invocation_id)
    await (await house.stop()).wait()
    assert house.state() is State.STOPPED


async def test_what_happens_while_the_daemon_starts_is_not_missed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the audit log gives others their turn: a unit may change before the last model is taken over."""
    await house.running("a", **QUICK)
    unit = await house.register("b", **QUICK)
    await house.close()
    events = type(house.store).events

    async def slowly(store: Any, query: Any) -> Any:
        if house.systemd.cached(unit).active_state == "inactive":
            await (await house.systemd.start_unit(unit)).wait(5)
        return await events(store, query)

    monkeypatch.setattr(type(house.store), "events", slowly)
    await house.open()
    monkeypatch.undo()
    assert (await house.until_event("ready", "b")).invocation_id == house.unit("b").invocation_id
    asked = len(house.prober.asked)
    url = house.manager.view("b").model.url
    await aio_until(lambda: any(u.startswith(url) for u in house.prober.asked[asked:]), "probes of b")


async def test_a_stop_that_outlived_the_daemon_ends_stopped(house: House) -> None:
    unit = await house.running()
    house.systemd.behave(unit, stop="hang")
    job = await house.stop()
    await house.until(State.STOPPING)
    await _again(house, before=lambda: house.systemd.finish(unit, "failed"))
    with pytest.raises(ShuttingDown, match="systemd goes on with the stop of a"):
        await job.wait()
    await house.until(State.STOPPED)
    assert (await house.until_event("stop-unclean")).priority is Priority.WARNING


# -- At its end


async def test_while_it_ends_nothing_is_begun(house: House) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang")
    job = await house.start()
    waiting = asyncio.create_task(job.wait())
    await asyncio.sleep(0)
    before = list(house.systemd.calls)
    await house.manager.life.close()
    with pytest.raises(ShuttingDown, match="systemd goes on with the start of a"):
        await waiting
    for work in (
        house.start, house.stop, house.restart, house.unregister,
        lambda: house.register("b"),
        lambda: house.manager.set("a", {"port": "1"}, ME),
        lambda: house.manager.enable("a", ME, linger=False),
        lambda: house.manager.disable("a", ME),
        lambda: house.manager.kill("a", "TERM", "all", ME),
        lambda: house.manager.reset_failed("a", ME),
    ):  # fmt: skip
        with pytest.raises(ShuttingDown):
            await work()  # type: ignore[operator]
    assert house.systemd.calls == before
    assert house.state() is State.STARTING  # models go on


async def test_events_that_are_queued_are_written_at_the_end(house: House) -> None:
    unit = await house.running()
    for _ in range(20):
        house.systemd.behave(unit)
        await (await house.restart()).wait()
    await house.close()
    await house.open()
    assert (await house.kinds()).count("run") == 21


# -- Names, lists, jobs


@pytest.mark.parametrize("name", ["none", "", "a\0b", "*"])
async def test_a_model_that_is_not_there(house: House, name: str) -> None:
    for work in (
        lambda: house.start(name), lambda: house.stop(name), lambda: house.restart(name), lambda: house.unregister(name),
        lambda: house.manager.set(name, {"port": "1"}, ME),
        lambda: house.manager.kill(name, "TERM", "all", ME),
        lambda: house.manager.check_health(name),
    ):  # fmt: skip
        with pytest.raises(NoSuchModel, match="'cortexctl list' shows those that are"):
            await work()  # type: ignore[operator]
    assert await house.events(name) == []


async def test_which_models(house: House) -> None:
    for name in ("b1", "a1", "a2"):
        await house.register(name)
    match = house.manager.match
    assert match([]) == ["a1", "a2", "b1"] and match(["a*"]) == ["a1", "a2"] and match(["b1", "a1"]) == ["a1", "b1"]
    assert match(["?1"]) == ["a1", "b1"] and match(["[c-z]*"]) == [] and match(["A*"]) == []
    with pytest.raises(NoSuchModel, match="'c'"):
        match(["a*", "c"])


async def test_usage_is_asked_of_what_runs(house: House) -> None:
    from cortexd.systemd.protocol import UnitUsage

    unit = await house.running("a")
    await house.register("b")
    house.systemd.usages[unit] = UnitUsage(memory=7, cpu_nsec=8, tasks=9)
    assert await house.manager.usage(["a", "b"]) == {"a": UnitUsage(7, 8, 9), "b": UnitUsage()}


async def test_jobs() -> None:
    table = JobTable()
    gate = asyncio.Event()

    async def wait(job: Any) -> None:
        await gate.wait()
        job.warnings.append("w")

    async def broken(job: Any) -> None:
        raise RuntimeError("a secret")

    job = table.spawn("stop", "a", wait)
    assert table.running() == [job]
    with pytest.raises(Busy, match="a stop cannot be cancelled"):
        await job.cancel(ME)
    with pytest.raises(JobTimeout, match=r"the stop of a goes on after 0\.01 s; 'cortexctl status a'"):
        await job.wait(0.01)
    assert job.state is JobState.RUNNING
    gate.set()
    assert await asyncio.gather(job.wait(), job.wait()) == [["w"], ["w"]] == [await job.wait(0), await job.wait(5)]
    assert table.running() == []
    failed = table.spawn("start", "a", broken)
    with pytest.raises(JobFailed, match=r"^internal error; the daemon's log has the details$"):
        await failed.wait()
    await table.close()


# -- The journal


async def test_no_lines_no_file(house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_DEADLINE", 0.05)
    monkeypatch.setattr(journal, "_POLL", 0.01)
    journalctl.write_text("#!/bin/sh\n")
    assert await journal.save_run(house.scope.logs, "a", "f" * 32, 1_500_000) is None
    journalctl.unlink()
    monkeypatch.setenv("PATH", str(journalctl.parent))
    assert await journal.save_run(house.scope.logs, "a", "f" * 32, 1_500_000) is None


async def test_a_journal_that_hangs_is_left(house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_DEADLINE", 0.1)
    pids = journalctl.parent / "pids"
    journalctl.write_text(f"#!/bin/sh\necho $$ >>{pids}\nexec sleep 1000\n")
    assert await journal.save_run(house.scope.logs, "a", "f" * 32, 1_500_000) is None
    task = asyncio.create_task(journal.save_run(house.scope.logs, "a", "f" * 32, 1_500_000))
    started = len(pids.read_text().split())
    await aio_until(lambda: len(pids.read_text().split()) > started, "the program")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()


async def test_saved_logs_are_bounded(house: House, journalctl: Path) -> None:
    journalctl.write_text(
        '#!/bin/sh\ncase "$*" in *UNIT_RESULT*) echo x;; *) head -c 400000 /dev/zero; echo end;; esac\n'
    )
    folder = house.scope.logs / "a"
    folder.mkdir(parents=True)
    for number in range(15):
        (folder / f"2000{number:02}01T000000-x.log").touch()
    path = await journal.save_run(house.scope.logs, "a", "f" * 32, 1_500_000)
    assert path is not None and path.stat().st_size == journal.MAX_BYTES and path.read_bytes().endswith(b"end\n")
    assert len(list(folder.iterdir())) == journal.KEEP_FILES and path in folder.iterdir()


async def test_a_hundred_failures_at_once_read_the_journal_a_few_at_a_time(
    house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, most = 0, 0

    async def save(folder: Path, model: str, run: str, began: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1

    monkeypatch.setattr(journal, "save_run", save)
    units = [await house.running(f"m{number}") for number in range(30)]
    for unit in units:
        house.systemd.crash(unit)
    await asyncio.gather(*(house.until_event("failed", f"m{number}") for number in range(30)))
    await aio_until(lambda: most and not at_once, "every log")
    assert most == observer._SAVING


def test_the_fake_is_a_systemd() -> None:
    from cortexd.systemd.protocol import Systemd

    fake: Systemd = FakeSystemd(Path("/nonexistent"))
    assert unit_name("a") not in fake.known_units()
