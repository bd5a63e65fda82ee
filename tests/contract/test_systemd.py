"""What cortexd relies on in a systemd manager: the same story in memory, on python-dbusmock and on a real `systemd --user`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from cortexd.errors import JobTimeout, SystemdUnavailable, UnitFailed
from cortexd.kinds import INFINITY
from cortexd.limits import LIMITS, left_by_us, properties
from cortexd.model import ResourceLimits
from cortexd.systemd.protocol import UnitState, UnitUsage
from tests.support.systemd_worlds import World, done


async def test_version_is_told(world: World) -> None:
    assert world.systemd.version.startswith(("252", "253", "254", "255", "256", "257", "258", "259"))


class TestUnits:
    async def test_unit_without_file_is_not_found_and_unknown(self, world: World) -> None:
        unit = "cortex-nobody.service"
        assert world.systemd.cached(unit) == UnitState(unit=unit)
        assert await world.systemd.refresh(unit) == UnitState(unit=unit)
        assert unit not in world.systemd.known_units()

    async def test_file_is_listed_before_a_reload(self, world: World) -> None:
        unit = f"cortex-listed{os.getpid()}.service"
        assert await world.systemd.existing([unit]) == set()
        world.write(unit)
        assert await world.systemd.existing([unit, f"other-{unit}"]) == {unit}

    async def test_file_is_known_after_a_reload(self, world: World) -> None:
        told: list[UnitState] = []
        world.systemd.listen(lambda _, state: told.append(state))
        unit = await world.add()
        assert unit in world.systemd.known_units()
        state = world.systemd.cached(unit)
        assert (state.load_state, state.active_state, state.sub_state) == ("loaded", "inactive", "dead")
        assert (state.unit_file_state, state.fragment_path) == ("disabled", str(world.folder / unit))
        assert (state.running, state.main_pid, state.invocation_id) == (False, 0, "")
        assert [s for s in told if s.unit == unit] == [state]

    async def test_only_our_units_are_known(self, world: World) -> None:
        world.write("cortex-@.service")
        world.write("cortexd-x.service")
        unit = await world.add()
        assert [u for u in world.systemd.known_units() if u in world.units] == [unit]

    async def test_file_with_a_mistake_is_bad_setting_and_cannot_be_started(self, world: World) -> None:
        unit = await world.add()
        (world.folder / unit).write_text("[Service]\nType=exec\n")
        await world.systemd.reload()
        assert (await world.systemd.refresh(unit)).load_state == "bad-setting"
        with pytest.raises(UnitFailed, match="bad unit file setting"):
            await world.systemd.start_unit(unit)

    async def test_changed_file_needs_a_reload(self, world: World) -> None:
        unit = await world.started()
        world.write(unit, description="another text, of another length")
        assert (await world.systemd.refresh(unit)).need_daemon_reload
        await world.systemd.reload()
        assert not world.systemd.cached(unit).need_daemon_reload
        assert world.systemd.cached(unit).active_state == "active"

    async def test_drop_ins_are_told(self, world: World) -> None:
        unit = await world.add()
        drop_in = world.folder / f"{unit}.d" / "mine.conf"
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nEnvironment=A=B\n")
        await world.systemd.reload()
        assert (await world.systemd.refresh(unit)).drop_in_paths == (str(drop_in),)

    async def test_restart_is_told_as_drop_ins_have_it(self, world: World) -> None:
        unit = await world.started()
        assert world.systemd.cached(unit).restart == "no"
        drop_in = world.folder / f"{unit}.d" / "mine.conf"
        drop_in.parent.mkdir()
        for word in ("on-failure", "always"):
            drop_in.write_text(f"[Service]\nRestart={word}\n")
            await world.systemd.reload()
            assert world.systemd.cached(unit).restart == word
        assert (await world.systemd.refresh(unit)).restart == "always"

    async def test_removed_file_is_forgotten_when_it_rests(self, world: World) -> None:
        unit = await world.add()
        (world.folder / unit).unlink()
        await world.systemd.reload()
        assert world.systemd.cached(unit) == UnitState(unit=unit)
        assert unit not in world.systemd.known_units()

    async def test_removed_file_of_a_running_unit_leaves_it_running(self, world: World) -> None:
        unit = await world.started()
        (world.folder / unit).unlink()
        await world.systemd.reload()
        state = world.systemd.cached(unit)
        assert (state.load_state, state.active_state) == ("not-found", "active")
        assert unit in world.systemd.known_units()
        assert await done(await world.systemd.stop_unit(unit)) == "done"
        assert not world.systemd.cached(unit).running

    async def test_removed_file_of_a_failed_unit_leaves_it_failed_until_reset(self, world: World) -> None:
        unit = await world.started()
        await world.crash(unit)
        await world.until(unit, lambda state: state.active_state == "failed")
        (world.folder / unit).unlink()
        await world.systemd.reload()
        state = world.systemd.cached(unit)
        assert (state.load_state, state.active_state, state.result) == ("not-found", "failed", "signal")
        assert unit in world.systemd.known_units()
        await world.systemd.reset_failed(unit)
        await world.until(unit, lambda state: state.active_state == "inactive")
        assert unit not in world.systemd.known_units()

    async def test_enable_and_disable(self, world: World) -> None:
        unit = await world.add()
        await world.systemd.enable_unit(unit)
        assert (await world.systemd.refresh(unit)).unit_file_state == "enabled"
        await world.systemd.reload()
        assert world.systemd.cached(unit).unit_file_state == "enabled"
        await world.systemd.disable_unit(unit)
        await world.systemd.reload()
        assert world.systemd.cached(unit).unit_file_state == "disabled"

    async def test_disable_of_what_has_no_file_is_no_error(self, world: World) -> None:
        unit = await world.add()
        await world.systemd.enable_unit(unit)
        (world.folder / unit).unlink()
        await world.systemd.disable_unit(unit)
        await world.systemd.disable_unit("cortex-nobody.service")
        world.write(unit)
        await world.systemd.reload()
        assert world.systemd.cached(unit).unit_file_state == "disabled"

    async def test_unit_without_install_section_cannot_be_enabled(self, world: World) -> None:
        unit = await world.add(install=False)
        with pytest.raises(UnitFailed, match=r"no \[Install\] section"):
            await world.systemd.enable_unit(unit)
        assert world.systemd.cached(unit).unit_file_state == "static"

    async def test_unit_without_file_cannot_be_enabled(self, world: World) -> None:
        with pytest.raises(UnitFailed, match=r"cortex-nobody\.service does not exist"):
            await world.systemd.enable_unit("cortex-nobody.service")

    async def test_reloads_are_shared(self, world: World) -> None:
        unit = await world.add()
        world.write(unit, "server", install=False)
        await asyncio.gather(*(world.systemd.reload() for _ in range(20)))
        assert world.systemd.cached(unit).unit_file_state == "static"


class TestStart:
    async def test_start(self, world: World) -> None:
        unit = await world.add()
        assert await done(await world.systemd.start_unit(unit)) == "done"
        state = world.systemd.cached(unit)
        assert (state.active_state, state.sub_state, state.result) == ("active", "running", "success")
        assert state.running
        assert state.main_pid > 0
        assert len(state.invocation_id) == 32
        assert state.control_group.endswith(unit)
        assert state.state_change > 0
        assert 0 < state.active_enter <= time.monotonic_ns() // 1000
        assert state.exec_main_start > 0
        assert await world.systemd.refresh(unit) == world.systemd.cached(unit)

    async def test_every_step_is_told(self, world: World) -> None:
        unit = await world.add()
        told: list[str] = []
        world.systemd.listen(lambda name, state: told.append(state.active_state) if name == unit else None)
        await done(await world.systemd.start_unit(unit))
        await done(await world.systemd.stop_unit(unit))
        steps = [state for i, state in enumerate(told) if i == 0 or told[i - 1] != state]
        assert [s for s in steps if s not in ("inactive", "deactivating")] == ["activating", "active"]
        assert steps[-1] == "inactive"

    async def test_start_of_a_running_unit_is_done_and_no_new_run(self, world: World) -> None:
        unit = await world.started()
        run = world.systemd.cached(unit).invocation_id
        assert await done(await world.systemd.start_unit(unit)) == "done"
        assert world.systemd.cached(unit).invocation_id == run

    async def test_start_without_file_is_refused(self, world: World) -> None:
        with pytest.raises(UnitFailed, match=r"start cortex-nobody\.service: Unit cortex-nobody\.service not found"):
            await world.systemd.start_unit("cortex-nobody.service")

    async def test_start_that_fails_at_once(self, world: World) -> None:
        unit = await world.add("broken")
        assert await done(await world.systemd.start_unit(unit)) == "failed"
        state = world.systemd.cached(unit)
        assert (state.active_state, state.result, state.main_pid) == ("failed", "exit-code", 0)
        assert (state.exec_main_code, state.exec_main_status) != (0, 0)
        assert state.invocation_id

    async def test_a_new_unit_file_needs_no_reload(self, world: World) -> None:
        unit = await world.add()
        other = unit.replace(".service", "-other.service")
        world.write(other)
        await world.behave(other, "server")
        assert await done(await world.systemd.start_unit(other)) == "done"
        assert world.systemd.cached(other).load_state == "loaded"
        assert other in world.systemd.known_units()

    async def test_starting_unit_is_activating_with_a_job(self, world: World) -> None:
        unit = await world.add("loading")
        job = await world.systemd.start_unit(unit)
        state = await world.until(unit, lambda state: state.sub_state == "start-post")
        assert state.active_state == "activating"
        assert job.path.endswith(f"/{state.job}")
        assert state.running
        await world.finish(unit)
        assert await done(job) == "done"
        await world.until(unit, lambda state: state.job == 0)

    async def test_wait_that_takes_too_long(self, world: World) -> None:
        unit = await world.add("loading")
        job = await world.systemd.start_unit(unit)
        with pytest.raises(JobTimeout, match=rf"start job of {unit} is still waiting after 0\.02 s"):
            await job.wait(0.02)
        await world.finish(unit)
        assert await done(job) == "done"
        assert await done(job) == "done"  # whoever comes late

    async def test_concurrent_starts_share_a_job(self, world: World) -> None:
        unit = await world.add("loading")
        jobs = await asyncio.gather(*(world.systemd.start_unit(unit) for _ in range(5)))
        assert len({job.path for job in jobs}) == 1
        results = asyncio.gather(*(done(job) for job in jobs))
        await world.until(unit, lambda state: state.sub_state == "start-post")
        await world.finish(unit)
        assert await results == ["done"] * 5

    async def test_stop_supersedes_a_start(self, world: World) -> None:
        unit = await world.add("loading")
        start = await world.systemd.start_unit(unit)
        await world.until(unit, lambda state: state.sub_state == "start-post")
        stop = await world.systemd.stop_unit(unit)
        assert await done(start) == "canceled"
        assert await done(stop) == "done"
        assert not world.systemd.cached(unit).running

    async def test_many_units_at_once(self, world: World) -> None:
        units = [await world.add() for _ in range(5)]
        jobs = await asyncio.gather(*map(world.systemd.start_unit, units))
        assert await asyncio.gather(*map(done, jobs)) == ["done"] * 5
        assert all(world.systemd.cached(unit).active_state == "active" for unit in units)
        assert len({world.systemd.cached(unit).invocation_id for unit in units}) == 5


class TestStop:
    async def test_stop(self, world: World) -> None:
        unit = await world.started()
        assert await done(await world.systemd.stop_unit(unit)) == "done"
        state = world.systemd.cached(unit)
        assert (state.active_state, state.sub_state, state.result) == ("inactive", "dead", "success")
        assert (state.running, state.main_pid, state.control_group) == (False, 0, "")

    async def test_the_past_of_a_stopped_unit_stays_known(self, world: World) -> None:
        unit = await world.started()
        run = world.systemd.cached(unit).invocation_id
        await done(await world.systemd.stop_unit(unit))
        await world.systemd.reload()
        await world.systemd.refresh(unit)
        await done(await world.systemd.stop_unit(unit))
        state = world.systemd.cached(unit)
        assert (state.invocation_id, state.exec_main_code, state.exec_main_status) == (run, 2, signal.SIGTERM)
        assert state.state_change > 0

    async def test_stop_of_a_stopped_unit(self, world: World) -> None:
        unit = await world.add()
        assert await done(await world.systemd.stop_unit(unit)) == "done"
        assert world.systemd.cached(unit).active_state == "inactive"

    async def test_stop_that_takes_its_time(self, world: World) -> None:
        unit = await world.started("stubborn")
        stop = await world.systemd.stop_unit(unit)
        await world.until(unit, lambda state: state.active_state == "deactivating")
        await world.finish(unit)
        assert await done(stop) == "done"
        assert world.systemd.cached(unit).active_state == "inactive"

    async def test_stop_of_a_failed_unit_leaves_it_failed(self, world: World) -> None:
        unit = await world.started()
        await world.crash(unit)
        await world.until(unit, lambda state: state.active_state == "failed")
        assert await done(await world.systemd.stop_unit(unit)) == "done"
        assert world.systemd.cached(unit).active_state == "failed"

    async def test_restart_is_a_new_run(self, world: World) -> None:
        unit = await world.started()
        before = world.systemd.cached(unit)
        assert await done(await world.systemd.restart_unit(unit)) == "done"
        after = world.systemd.cached(unit)
        assert after.active_state == "active"
        assert after.invocation_id != before.invocation_id
        assert after.main_pid != before.main_pid

    async def test_restart_of_a_stopped_unit_starts_it(self, world: World) -> None:
        unit = await world.add()
        assert await done(await world.systemd.restart_unit(unit)) == "done"
        assert world.systemd.cached(unit).active_state == "active"


class TestFailure:
    async def test_crash_is_told_without_being_asked_for(self, world: World) -> None:
        unit = await world.started()
        run = world.systemd.cached(unit).invocation_id
        await world.crash(unit)
        state = await world.until(unit, lambda state: not state.running)
        assert (state.active_state, state.result) == ("failed", "signal")
        assert (state.exec_main_code, state.exec_main_status) == (2, signal.SIGKILL)
        assert (state.main_pid, state.control_group, state.invocation_id) == (0, "", run)
        assert state.active_enter <= state.active_exit <= time.monotonic_ns() // 1000

    async def test_reset_failed(self, world: World) -> None:
        unit = await world.started()
        await world.crash(unit)
        await world.until(unit, lambda state: state.active_state == "failed")
        await world.systemd.reset_failed(unit)
        await world.until(unit, lambda state: (state.active_state, state.result) == ("inactive", "success"))

    async def test_reset_failed_of_what_is_not_loaded_is_no_error(self, world: World) -> None:
        await world.systemd.reset_failed(await world.add())
        await world.systemd.reset_failed("cortex-nobody.service")

    async def test_systemd_restarts_what_failed(self, world: World) -> None:
        unit = await world.started("restarting")
        before = world.systemd.cached(unit)
        told: list[UnitState] = []
        world.systemd.listen(lambda name, state: told.append(state) if name == unit else None)
        await world.crash(unit)
        await world.until(unit, lambda state: state.sub_state == "auto-restart")
        assert "signal" in [state.result for state in told]
        pause = [state for state in told if state.sub_state == "auto-restart"]
        assert (pause[0].n_restarts, pause[0].invocation_id) == (before.n_restarts, before.invocation_id), (
            "not counted yet"
        )
        await world.finish(unit)
        again = await world.until(unit, lambda state: state.active_state == "active")
        assert again.n_restarts == before.n_restarts + 1
        assert again.invocation_id != before.invocation_id
        assert (again.result, again.exec_main_code) == ("success", 0)
        await world.systemd.reset_failed(unit)
        state = await world.systemd.refresh(unit)
        assert (state.n_restarts, state.active_state, state.main_pid) == (0, "active", again.main_pid)
        assert (state.invocation_id, state.active_enter) == (again.invocation_id, again.active_enter)

    async def test_crash_of_a_loading_unit_fails_its_start(self, world: World) -> None:
        unit = await world.add("loading")
        job = await world.systemd.start_unit(unit)
        await world.until(unit, lambda state: state.sub_state == "start-post" and state.main_pid > 0)
        await world.systemd.kill_unit(unit, "all", signal.SIGKILL)
        assert await done(job) == "failed"
        state = world.systemd.cached(unit)
        assert (state.active_state, state.result) == ("failed", "signal")


class TestKill:
    async def test_kill_unit(self, world: World) -> None:
        unit = await world.started()
        await world.systemd.kill_unit(unit, "all", signal.SIGKILL)
        state = await world.until(unit, lambda state: not state.running)
        assert (state.active_state, state.result) == ("failed", "signal")

    async def test_sigterm_is_a_clean_end(self, world: World) -> None:
        unit = await world.started()
        await world.systemd.kill_unit(unit, "main", signal.SIGTERM)
        state = await world.until(unit, lambda state: not state.running)
        assert (state.active_state, state.result) == ("inactive", "success")

    async def test_kill_of_what_does_not_exist_is_refused(self, world: World) -> None:
        with pytest.raises(UnitFailed, match=r"Unit cortex-nobody\.service not loaded"):
            await world.systemd.kill_unit("cortex-nobody.service", "all", signal.SIGKILL)

    async def test_kill_run(self, world: World) -> None:
        unit = await world.started()
        run = world.systemd.cached(unit).invocation_id
        assert await world.systemd.kill_run(run, signal.SIGKILL)
        state = await world.until(unit, lambda state: not state.running)
        assert (state.invocation_id, state.result) == (run, "signal")

    async def test_kill_of_a_run_that_is_over(self, world: World) -> None:
        unit = await world.started()
        run = world.systemd.cached(unit).invocation_id
        await world.crash(unit)
        await world.until(unit, lambda state: state.active_state == "failed")
        assert not await world.systemd.kill_run(run, signal.SIGKILL)  # failed, and still loaded
        await world.systemd.reset_failed(unit)
        assert not await world.systemd.kill_run(run, signal.SIGKILL)  # unloaded
        assert not await world.systemd.kill_run("00" * 16, signal.SIGKILL)

    async def test_kill_run_spares_the_next_run(self, world: World) -> None:
        unit = await world.started()
        first = world.systemd.cached(unit).invocation_id
        await done(await world.systemd.restart_unit(unit))
        second = world.systemd.cached(unit)
        assert not await world.systemd.kill_run(first, signal.SIGKILL)
        assert (await world.systemd.refresh(unit)).main_pid == second.main_pid


class TestLimits:
    async def test_properties_are_left_in_drop_ins(self, world: World) -> None:
        unit = await world.started()
        given = dict(properties(ResourceLimits(memory_high=INFINITY, tasks_max=512, cpu=1.5)))
        await world.systemd.set_properties(unit, {limit.bus_property: value for limit, value in given.items()})
        folder = world.runtime / "systemd" / "user.control" / f"{unit}.d"
        left = {path.name: path.read_text() for path in folder.iterdir()}
        assert left == dict(left_by_us(limit, value) for limit, value in given.items())
        paths = (await world.systemd.refresh(unit)).drop_in_paths
        assert sorted(paths) == sorted(str(folder / f"50-{limit.directive}.conf") for limit in LIMITS)
        assert world.systemd.cached(unit).active_state == "active"

    async def test_deleted_drop_ins_are_gone_after_a_reload(self, world: World) -> None:
        unit = await world.started()
        await world.systemd.set_properties(unit, {"TasksMax": 99})
        (path,) = (await world.systemd.refresh(unit)).drop_in_paths
        Path(path).unlink()
        await world.systemd.reload()
        state = await world.systemd.refresh(unit)
        assert (state.drop_in_paths, state.need_daemon_reload, state.active_state) == ((), False, "active")

    async def test_properties_of_what_does_not_exist_are_refused(self, world: World) -> None:
        with pytest.raises(
            UnitFailed, match=r"change TasksMax of cortex-nobody\.service: Unit cortex-nobody\.service not"
        ):
            await world.systemd.set_properties("cortex-nobody.service", {"TasksMax": 99})

    async def test_a_unit_that_rests_is_held_to_nothing(self, world: World) -> None:
        unit = await world.add()
        assert await world.systemd.limits([unit]) == {}


class TestEnd:
    async def test_usage_of_a_unit_that_rests_is_unknown(self, world: World) -> None:
        unit = await world.add()
        assert await world.systemd.usage([unit]) == {unit: UnitUsage()}
        assert await world.systemd.usage([]) == {}

    async def test_waiters_end_when_we_stop_listening(self, world: World) -> None:
        unit = await world.add("loading")
        job = await world.systemd.start_unit(unit)
        waiter = asyncio.create_task(done(job))
        await world.until(unit, lambda state: state.sub_state == "start-post")
        await world.systemd.close()
        with pytest.raises(SystemdUnavailable, match="stopped listening"):
            await waiter
