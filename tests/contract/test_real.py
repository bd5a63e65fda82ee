"""What only a real manager does: re-executing itself, unloading units, control groups, storms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cortexd.bus import Bus, BusError
from cortexd.systemd.protocol import UNKNOWN, UnitState
from cortexd.systemd.wire import DESTINATION, MANAGER, MANAGER_PATH, PROPERTIES, UNIT, unit_path
from tests.support.systemd_worlds import RealWorld, done


async def _active_state(real: RealWorld, unit: str) -> str:
    """As systemd says it at this moment."""
    (state,) = await real.bus.call(DESTINATION, unit_path(unit), PROPERTIES, "Get", "ss", [UNIT, "ActiveState"])
    return str(state)


async def test_state_is_never_older_than_the_job_waited_for(real: RealWorld) -> None:
    unit = await real.add()
    for _ in range(30):
        await done(await real.systemd.start_unit(unit))
        assert real.systemd.cached(unit).active_state == "active"
        await done(await real.systemd.stop_unit(unit))
        assert real.systemd.cached(unit).active_state == "inactive"
    assert real.systemd.cached(unit).control_group == ""


async def test_start_that_fails_at_once_is_never_missed(real: RealWorld) -> None:
    unit = await real.add("broken")
    for _ in range(60):
        await real.systemd.reset_failed(unit)
        assert await done(await real.systemd.start_unit(unit)) == "failed"
        assert real.systemd.cached(unit).active_state == "failed"
    assert await _active_state(real, unit) == "failed"


async def test_what_others_do_is_seen(real: RealWorld) -> None:
    unit = await real.add()
    other = await Bus.connect(real.address)
    await real.manager("StartUnit", "ss", unit, "replace", bus=other)
    started = await real.until(unit, lambda state: state.active_state == "active" and bool(state.control_group))
    assert started.main_pid > 0
    await real.manager("EnableUnitFiles", "asbb", [unit], False, False, bus=other)
    await real.until(unit, lambda state: state.unit_file_state == "enabled")
    assert (
        await real.systemd.refresh(unit)
    ).unit_file_state == "enabled"  # systemd's own property is not, without a reload
    await real.manager("StopUnit", "ss", unit, "replace", bus=other)
    await real.until(unit, lambda state: state.active_state == "inactive")
    drop_in = real.folder / f"{unit}.d" / "theirs.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nNice=1\n")
    await real.manager("Reload", bus=other)
    await real.until(unit, lambda state: not state.running)
    assert (await real.systemd.refresh(unit)).drop_in_paths == (str(drop_in),)
    other.close()


async def test_drop_in_of_a_loaded_unit_is_seen_after_a_reload(real: RealWorld) -> None:
    units = [await real.started(), await real.add("broken")]
    await done(await real.systemd.start_unit(units[1]))
    for unit in units:
        drop_in = real.folder / f"{unit}.d" / "theirs.conf"
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nNice=1\n")
    await real.systemd.reload()
    assert [len(real.systemd.cached(unit).drop_in_paths) for unit in units] == [1, 1]
    assert [real.systemd.cached(unit).active_state for unit in units] == ["active", "failed"]


async def test_looking_at_units_is_no_storm(real: RealWorld) -> None:
    """A query loads the unit, which is signalled, which must not lead to a query."""
    unit = await real.add()
    seen: list[str] = []
    await real.bus.subscribe(
        f"type='signal',interface='{MANAGER}',member='UnitNew'", lambda signal: seen.append(signal.body[0])
    )
    await real.systemd.refresh(unit)
    for _ in range(20):  # what came of it would have come by now
        await real.manager("ListUnitsByPatterns", "asas", [], [unit])
    assert seen.count(unit) <= 2


async def test_storm_of_reloads_loses_no_job(real: RealWorld) -> None:
    units = [await real.add() for _ in range(4)]
    other = await Bus.connect(real.address)

    async def reload_without_end() -> None:
        while True:
            await real.manager("Reload", bus=other)

    storm = asyncio.create_task(reload_without_end())
    for _ in range(5):
        starts = await asyncio.gather(*map(real.systemd.start_unit, units))
        assert await asyncio.gather(*map(done, starts)) == ["done"] * 4
        assert [real.systemd.cached(unit).active_state for unit in units] == ["active"] * 4
        stops = await asyncio.gather(*map(real.systemd.stop_unit, units))
        assert await asyncio.gather(*map(done, stops)) == ["done"] * 4
        assert [real.systemd.cached(unit).active_state for unit in units] == ["inactive"] * 4
    storm.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storm
    other.close()


class TestReexecution:
    """`systemctl --user daemon-reexec`, as an upgrade of systemd does it: the manager leaves the bus and returns."""

    async def reexecute(self, real: RealWorld) -> None:
        """Ask for it and wait until there is another owner of the name."""
        (before,) = await _owner(real)
        with pytest.raises(BusError, match="NoReply"):
            await real.manager("Reexecute")
        async with asyncio.timeout(20):
            while True:
                try:
                    if await _owner(real) != [before]:
                        return
                except BusError:
                    await asyncio.sleep(0)

    async def test_states_and_signals_go_on(self, real: RealWorld) -> None:
        runs, rests = await real.started(), await real.add()
        before = real.systemd.cached(runs)
        await self.reexecute(real)
        assert (await real.systemd.refresh(runs)).invocation_id == before.invocation_id
        assert real.systemd.cached(rests).load_state == "loaded"
        await real.crash(runs)
        await real.until(runs, lambda state: state.active_state == "failed")
        assert await done(await real.systemd.start_unit(rests)) == "done"

    async def test_job_under_way_goes_on(self, real: RealWorld) -> None:
        unit = await real.add("loading")
        job = await real.systemd.start_unit(unit)
        await real.until(unit, lambda state: state.sub_state == "start-post")
        waiter = asyncio.create_task(done(job))
        await self.reexecute(real)
        await real.finish(unit)
        assert await waiter == "done"
        assert real.systemd.cached(unit).active_state == "active"


async def _owner(real: RealWorld) -> list[str]:
    dbus = "org.freedesktop.DBus"
    return await real.bus.call(dbus, "/org/freedesktop/DBus", dbus, "GetNameOwner", "s", [DESTINATION])


async def test_usage_comes_from_the_control_group(real: RealWorld) -> None:
    unit = await real.started()
    usage = (await real.systemd.usage([unit]))[unit]
    assert 0 < usage.cpu_nsec < UNKNOWN
    group = Path("/sys/fs/cgroup") / real.systemd.cached(unit).control_group.lstrip("/")
    # A container's kernel may have given us no memory and pids controllers.
    assert (usage.memory != UNKNOWN) == (group / "memory.current").exists()
    assert (usage.tasks != UNKNOWN) == (group / "pids.current").exists()


async def test_enabled_unit_starts_with_the_session(real: RealWorld) -> None:
    unit = await real.add()
    await real.systemd.enable_unit(unit)
    await real.systemd.reload()
    (wants,) = await real.bus.call(DESTINATION, unit_path("default.target"), PROPERTIES, "Get", "ss", [UNIT, "Wants"])
    assert unit in wants
    await real.systemd.disable_unit(unit)
    assert not (real.folder / "default.target.wants" / unit).is_symlink()


async def test_many_units_are_read_on_start(real: RealWorld) -> None:
    running = [await real.started() for _ in range(3)]
    resting = [f"cortex-many-{n}.service" for n in range(40)]
    for unit in resting:
        real.write(unit)
    await real.manager("Reload")
    bus = await Bus.connect(real.address)
    other = type(real.client)(bus)
    await other.start()
    assert set(running + resting) <= set(other.known_units())
    assert [other.cached(unit) for unit in running] == [real.systemd.cached(unit) for unit in running]
    assert {other.cached(unit).active_state for unit in resting} == {"inactive"}
    await other.close()
    bus.close()


async def test_masked_unit(real: RealWorld) -> None:
    unit = await real.add()
    (real.folder / unit).unlink()
    (real.folder / unit).symlink_to("/dev/null")
    await real.systemd.reload()
    assert real.systemd.cached(unit).load_state == "masked"
    assert (await real.systemd.refresh(unit)).load_state == "masked"


async def test_unit_state_has_what_systemd_tells(real: RealWorld) -> None:
    """No field is left at its default by a wrong name of a property."""
    unit = await real.started("restarting")
    await real.crash(unit)
    await real.until(unit, lambda state: state.n_restarts == 1 and state.active_state == "active")
    await real.until(unit, lambda state: state.job == 0)
    state = await real.systemd.refresh(unit)
    blank = {name for name in UnitState.__slots__ if getattr(state, name) == getattr(UnitState(unit=""), name)}
    assert blank == {
        "result", "drop_in_paths", "exec_main_code", "exec_main_status", "status_text", "need_daemon_reload", "job",
    }  # fmt: skip
    assert MANAGER_PATH in unit_path(unit)


@pytest.fixture
async def no_unit_files(real: RealWorld) -> AsyncIterator[None]:
    """None of the test's is left."""
    yield
    for folder in (real.folder, real.runtime / "systemd" / "user", real.folder.parent):
        for path in (*folder.glob("cortex-state-*"), *folder.glob("*.wants/cortex-state-*")):
            path.unlink()
    await real.manager("Reload")


async def test_unit_files_are_in_the_state_that_systemd_says(real: RealWorld, no_unit_files: None) -> None:
    """We read them ourselves, since systemd takes a second for a thousand."""
    install = "[Install]\nWantedBy=default.target\n"
    exec_start = "[Service]\nExecStart=/bin/true\n"
    folder, runtime = real.folder, real.runtime / "systemd" / "user"
    runtime.mkdir(parents=True, exist_ok=True)
    texts = {
        "static": exec_start, "disabled": exec_start + install, "enabled": exec_start + install, "runtime": exec_start + install,
        "empty-install": exec_start + "[Install]\nWantedBy=\n", "also": exec_start + "[Install]\nAlso=cortex-state-static.service\n",
        "early-install": install + exec_start, "empty": "",
    }  # fmt: skip
    units = {
        key: f"cortex-state-{key}.service"
        for key in [*texts, "masked", "masked-runtime", "linked", "dangling", "below"]
    }
    for key, text in texts.items():
        (folder / units[key]).write_text(text)
    (runtime / units["below"]).write_text(exec_start)
    (runtime / units["static"]).write_text(exec_start + install)  # hidden by the other
    (folder / units["masked"]).symlink_to("/dev/null")
    (runtime / units["masked-runtime"]).symlink_to("/dev/null")
    elsewhere = real.folder.parent / units["linked"]
    elsewhere.write_text(exec_start + install)
    (folder / units["linked"]).symlink_to(elsewhere)
    (folder / units["dangling"]).symlink_to("/nowhere")
    await real.manager("Reload")
    await real.manager("EnableUnitFiles", "asbb", [units["enabled"]], False, False)
    await real.manager("EnableUnitFiles", "asbb", [units["runtime"]], True, False)
    (said,) = await real.manager("ListUnitFilesByPatterns", "asas", [], ["cortex-state-*"])
    await real.systemd.reload()
    ours = {unit: real.systemd.cached(unit).unit_file_state for unit in units.values()}
    theirs = {path.rpartition("/")[2]: state for path, state in said}
    assert theirs.keys() >= set(units.values()) - {units["dangling"]}
    assert {unit: state for unit, state in ours.items() if state} == {u: s for u, s in theirs.items() if s != "bad"}
