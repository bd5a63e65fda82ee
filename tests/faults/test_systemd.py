"""systemd's manager re-executed and reloaded in a loop, journald and logind gone, the end of a job never told, clocks that jump."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from cortexd import reread
from cortexd.errors import JobTimeout, UnitFailed
from cortexd.states import State
from cortexd.systemd import client
from tests.faults.picture import UNIT, VICTIM
from tests.faults.places import MockPlace
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.house import House
from tests.support.systemd_worlds import MockWorld, done
from tests.support.units import make_program, systemctl
from tests.support.wait import aio_until, until

MODELS = 20


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_in_a_loop_while_twenty_models_start(daemon: Daemon, cortex: Cortex, verb: str) -> None:
    server = make_program(Path.home() / "bin" / "fake-server")
    names = [f"m{number}" for number in range(MODELS)]
    for name in names:
        cortex.run(
            "register", name, "--backend", "llamacpp", "--path", str(lab.TINY_GGUF), "--exec", str(server),
            "--gpus", "none", "--port", "auto", "--memory", "1G",
        )  # fmt: skip
    over, count = threading.Event(), Counter[int]()

    def storm() -> None:
        while True:
            count[systemctl(verb, check=False).returncode] += 1
            if over.wait(0.5 if verb == "daemon-reload" else 2):
                break

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        for _ in range(20):
            started = cortex.run("start", *names, check=False)
            # What systemd was asked in the moment in which it went away, nobody can tell the fate of: the client is told so.
            lines = [line for line in started.stderr.splitlines() if "systemd's manager" not in line]
            assert lines == [], started.stderr[-3000:]
            if started.returncode == 0:
                break
    finally:
        over.set()
        thread.join()
    assert count[0] > 0, count
    assert started.returncode == 0, started.stderr[-3000:]
    states = {found["Name"]: found["State"] for found in cortex.json("list")}
    assert states == dict.fromkeys(names, "ready")
    for name in names[::5]:
        kinds = Counter(event["Kind"] for event in cortex.json("events", name))
        assert (kinds["run"], kinds["ready"], kinds["failed"]) == (1, 1, 0), kinds


def test_without_logind(daemon: Daemon, cortex: Cortex) -> None:
    daemon.stop()
    daemon.start(DBUS_SYSTEM_BUS_ADDRESS="unix:path=/nonexistent")
    cortex.register_tiny("tiny")
    enabled = cortex.run("enable", "tiny")
    assert "logind does not say whether you linger: without it models start at your login" in enabled.stderr
    assert cortex.properties("tiny")["UnitFileState"] == "enabled"
    cortex.run("disable", "tiny")


JOURNALD_GONE = """
    export PATH=~/.local/bin:$PATH
    kill -KILL $(pgrep -x systemd-journal)
    cortexctl register tiny --backend llamacpp --path "$GGUF" --exec "$SERVER" --gpus none --port auto --memory 2G --max-model-len 256
    cortexctl start tiny
    cortexctl is-active tiny
    ! cortexctl set tiny port=nonsense 2>/dev/null
    kill -KILL $(cortexctl show tiny -p MainPID --value)
    for attempt in {1..200}; do cortexctl events tiny | grep -q SIGKILL && break; sleep 0.1; done
    cortexctl events tiny | grep -q SIGKILL
    cortexctl wait tiny
    cortexctl stop tiny
    cortexctl why tiny
"""


def test_without_journald() -> None:
    """Models go on being started, watched and restarted; what is lost are log lines."""
    told = in_a_session_of_its_own(JOURNALD_GONE)
    assert "active" in told or "ready" in told


def in_a_session_of_its_own(script: str, **environment: str) -> str:
    """What a script prints under a manager, bus and journal that it may harm; cortexd is installed there."""
    install = f"{lab.PROJECT}/scripts/install --venv {Path(sys.executable).parent.parent} >/dev/null"
    command = [str(lab.PROJECT / "scripts" / "private-systemd"), "--", "bash", "-euo", "pipefail", "-c"]
    environment = {"SERVER": str(lab.LLAMA_SERVER), "GGUF": str(lab.TINY_GGUF), **environment}
    ended = subprocess.run(
        [*command, f"{install}\n{script}"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0, f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


# -- The end of a job that is never told


async def test_an_end_that_is_never_told_is_found_out(
    tmp_path: Path, private_bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOST_AFTER", 0.2)
    mock = await MockWorld.create(tmp_path, private_bus)
    unit = await mock.add()
    await mock.script(unit, removed="never")
    assert await done(await mock.systemd.start_unit(unit)) == "done"
    assert await done(await mock.systemd.stop_unit(unit)) == "done"
    await mock.script(unit, removed="never", start="hang")
    job = await mock.systemd.start_unit(unit)
    with pytest.raises(JobTimeout):
        await job.wait(1)
    await mock.finish(unit)
    assert await done(job) == "done"
    await mock.close()


# -- A manager that reads no unit files again, for now


async def test_a_daemon_starts_though_systemd_refuses_to_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    await house.open()
    unit = await house.running()
    await house.close()
    house.path().unlink()
    reload, refusals = house.systemd.reload, 2
    asked = asyncio.Event()

    async def refuse() -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise UnitFailed("systemd refused to reload its unit files: not enough space")
        asked.set()
        await reload()

    monkeypatch.setattr(house.systemd, "reload", refuse)
    monkeypatch.setattr(reread, "PAUSES", (0.0, 0.0))
    await house.open()
    assert house.state() is State.READY and house.systemd.cached(unit).running
    (warning,) = house.manager.catalog.warnings
    assert warning.startswith(
        "systemd refused to reload its unit files: not enough space; units are as it read them last"
    )
    await asyncio.wait_for(house.manager.go_on(), 10)
    assert asked.is_set() and house.manager.catalog.warnings == []
    await house.close()


async def test_a_daemon_starts_though_systemd_does_not_come_to_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    await house.open()
    await house.running()
    await house.close()
    house.path().unlink()
    with monkeypatch.context() as patch:
        patch.setattr(reread, "PATIENCE", 0.05)
        patch.setattr(house.systemd, "reload", asyncio.Event().wait)
        await asyncio.wait_for(house.open(), 10)
    (warning,) = house.manager.catalog.warnings
    assert warning.startswith("systemd has not read its unit files again in 0.05 s")
    assert house.state() is State.READY
    await asyncio.wait_for(house.manager.go_on(), 10)
    assert house.manager.catalog.warnings == []
    await house.close()


def test_a_real_daemon_starts_though_systemd_refuses_to_reload(tmp_path: Path) -> None:
    with MockPlace.create(tmp_path) as place:
        place.start()
        place.do(*place.register())
        place.kill()
        place.delete_unit()
        place.refuse("Reload", 2)
        place.start()
        until(lambda: "systemd has read its unit files again" in place.log(), "the third time that it is asked")
        assert place.view.unit(UNIT)["LoadState"] == "loaded"
        place.do("start", VICTIM)
        place.do("stop", VICTIM)


# -- Clocks


@pytest.mark.parametrize("days", [1, -1])
async def test_a_clock_that_jumps_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    house = House(tmp_path)
    await house.open()
    await house.running(health__interval_seconds=1, health__timeout_seconds=1, health__startup_delay_seconds=0)
    before, run = await house.events(), house.unit().invocation_id
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + days * 86400)
    house.store._now = time.time
    asked = len(house.prober.asked)
    await aio_until(lambda: len(house.prober.asked) > asked, "probes go on")
    assert (house.state(), house.unit().invocation_id) == (State.READY, run)
    await (await house.restart()).wait()
    after = await house.events()
    assert [event.id for event in after] == sorted(event.id for event in after)
    assert [event.kind for event in after[: len(before)]] == [event.kind for event in before], "in the order they came"
    assert abs(after[-1].time - before[-1].time) > 80_000 * 1e6
    await house.close()
    await house.open()
    assert house.state() is State.READY and house.manager.view("a").model.gave_up == ""
    assert (await house.kinds())[-1] == "ready", "nothing was taken for news"
    await (await house.stop()).wait()
    await asyncio.sleep(0)
    assert house.state() is State.STOPPED
    await house.close()
