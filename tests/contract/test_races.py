"""What goes wrong between a client and a manager, forced: JobRemoved at every moment, refusals, managers that come and go."""

from __future__ import annotations

import asyncio

import pytest

from cortexd.bus import Bus, Variant
from cortexd.errors import JobTimeout, SystemdUnavailable, UnitFailed
from cortexd.systemd import client, peer
from cortexd.systemd.client import SystemdClient
from cortexd.systemd.wire import DESTINATION, MANAGER, MANAGER_PATH, PROPERTIES, UNIT, unit_path
from tests.support.systemd_worlds import MockWorld, ScriptedWorld, done


class TestJobRemoved:
    @pytest.mark.parametrize("removed", ["before", "after", "twice"])
    async def test_start_and_stop(self, scripted: ScriptedWorld, removed: str) -> None:
        unit = await scripted.add()
        await scripted.script(unit, removed=removed)
        assert await done(await scripted.systemd.start_unit(unit)) == "done"
        assert scripted.systemd.cached(unit).active_state == "active"
        assert await done(await scripted.systemd.stop_unit(unit)) == "done"
        assert scripted.systemd.cached(unit).active_state == "inactive"

    @pytest.mark.parametrize("removed", ["before", "after", "twice"])
    async def test_failure(self, scripted: ScriptedWorld, removed: str) -> None:
        unit = await scripted.add()
        await scripted.script(unit, removed=removed, start="failed")
        assert await done(await scripted.systemd.start_unit(unit)) == "failed"
        assert scripted.systemd.cached(unit).active_state == "failed"

    @pytest.mark.parametrize(("start", "result"), [("done", "done"), ("failed", "failed")])
    async def test_never_takes_the_result_from_the_unit(self, scripted: ScriptedWorld, start: str, result: str) -> None:
        unit = await scripted.add()
        await scripted.script(unit, removed="never", start=start)
        job = await scripted.systemd.start_unit(unit)
        await scripted.until(unit, lambda state: state.active_state in ("active", "failed"))
        assert await job.wait(0.02) == result
        assert await job.wait(0) == result

    async def test_never_at_a_stop(self, scripted: ScriptedWorld) -> None:
        unit = await scripted.started()
        await scripted.script(unit, removed="never")
        job = await scripted.systemd.stop_unit(unit)
        await scripted.until(unit, lambda state: state.active_state == "inactive")
        assert await job.wait(0.02) == "done"

    async def test_never_of_a_start_that_was_superseded(self, scripted: ScriptedWorld) -> None:
        unit = await scripted.add()
        await scripted.script(unit, removed="never", start="hang")
        start = await scripted.systemd.start_unit(unit)
        await scripted.systemd.stop_unit(unit)
        await scripted.until(unit, lambda state: state.active_state == "inactive")
        assert await start.wait(0.02) == "canceled"

    async def test_never_while_the_job_goes_on(self, scripted: ScriptedWorld) -> None:
        unit = await scripted.add()
        await scripted.script(unit, removed="never", start="hang")
        job = await scripted.systemd.start_unit(unit)
        with pytest.raises(JobTimeout):
            await job.wait(0.02)
        await scripted.finish(unit)
        await scripted.until(unit, lambda state: state.active_state == "active")
        assert await job.wait(0.02) == "done"

    async def test_lost_in_a_reload_is_found_by_the_reading_after_it(self, mock: MockWorld) -> None:
        unit = await mock.add()
        await mock.script(unit, removed="never")
        job = await mock.systemd.start_unit(unit)
        await mock.until(unit, lambda state: state.active_state == "active")
        waiter = asyncio.create_task(done(job))
        await mock.manager("Reload")  # somebody else's
        assert await waiter == "done"

    async def test_never_and_no_state_to_be_had(self, mock: MockWorld) -> None:
        unit = await mock.add()
        await mock.script(unit, removed="never")
        job = await mock.systemd.start_unit(unit)
        await mock.until(unit, lambda state: state.active_state == "active")
        await mock.refuse("LoadUnit", "org.freedesktop.DBus.Error.AccessDenied", "not you")
        with pytest.raises(UnitFailed, match="not you"):
            await job.wait(0.02)

    @pytest.mark.parametrize(
        "result", ["done", "canceled", "timeout", "failed", "dependency", "skipped", "invalid", "assert", "unsupported"]
    )
    async def test_every_result_is_passed_on(self, mock: MockWorld, result: str) -> None:
        unit = await mock.add()
        await mock.script(unit, result=result)
        assert await done(await mock.systemd.start_unit(unit)) == result

    async def test_results_of_later_systemds_are_passed_on(self, mock: MockWorld) -> None:
        unit = await mock.add()
        await mock.script(unit, result="frozen", removed="before")
        assert await done(await mock.systemd.start_unit(unit)) == "frozen"

    async def test_a_hundred_jobs_whose_end_comes_first(self, mock: MockWorld) -> None:
        unit = await mock.add()
        await mock.script(unit, removed="before")
        for _ in range(50):
            assert await done(await mock.systemd.start_unit(unit)) == "done"
            assert mock.systemd.cached(unit).active_state == "active"
            assert await done(await mock.systemd.stop_unit(unit)) == "done"
            assert mock.systemd.cached(unit).active_state == "inactive"


class TestRefusals:
    async def test_reload_waits_out_a_limit(self, mock: MockWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "RELOAD_PAUSE", 0.01)
        await mock.refuse("Reload", "org.freedesktop.DBus.Error.LimitsExceeded", times=3)
        before = await mock.calls("Reload")
        await mock.systemd.reload()
        assert await mock.calls("Reload") == before + 4

    async def test_reload_that_is_limited_for_ever(self, mock: MockWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "RELOAD_PAUSE", 0.01)
        monkeypatch.setattr(client, "RELOAD_TIMEOUT", 0.05)
        await mock.refuse("Reload", "org.freedesktop.DBus.Error.LimitsExceeded", "too many", times=1000)
        with pytest.raises(UnitFailed, match="refused to reload its unit files: too many"):
            await mock.systemd.reload()

    async def test_reload_that_is_refused(self, mock: MockWorld) -> None:
        await mock.refuse("Reload", "org.freedesktop.DBus.Error.AccessDenied", "not you")
        with pytest.raises(UnitFailed, match="refused to reload its unit files: not you"):
            await mock.systemd.reload()
        await mock.systemd.reload()

    async def test_twenty_requests_are_two_reloads(self, mock: MockWorld) -> None:
        under_way = asyncio.Event()
        await mock.bus.subscribe("type='signal',member='Reloading'", lambda _: under_way.set())
        before = await mock.calls("Reload")
        first = asyncio.create_task(mock.systemd.reload())
        await under_way.wait()
        await asyncio.gather(first, *(mock.systemd.reload() for _ in range(19)))
        assert await mock.calls("Reload") - before == 2

    async def test_refusal_in_systemds_words(self, mock: MockWorld) -> None:
        unit = await mock.add()
        await mock.refuse(
            "StartUnit", "org.freedesktop.systemd1.TransactionIsDestructive", "Transaction is destructive."
        )
        with pytest.raises(UnitFailed, match=f"systemd refused to start {unit}: Transaction is destructive"):
            await mock.systemd.start_unit(unit)

    @pytest.mark.parametrize("error", ["org.freedesktop.DBus.Error.NoReply", "org.freedesktop.systemd1.ShuttingDown"])
    async def test_silence_is_no_refusal(self, mock: MockWorld, error: str) -> None:
        unit = await mock.add()
        await mock.refuse("StartUnit", error)
        with pytest.raises(SystemdUnavailable):
            await mock.systemd.start_unit(unit)


class TestManager:
    async def test_none_on_the_bus(self, private_bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peer, "ABSENCE", 0.05)
        bus = await Bus.connect(private_bus)
        with pytest.raises(SystemdUnavailable, match="manager is not on the bus"):
            await SystemdClient(bus).start()
        bus.close()

    async def test_that_comes_after_us(self, mock: MockWorld) -> None:
        """A session's bus is there a moment before its manager is on it."""
        await mock.kill_manager()
        early = SystemdClient(mock.bus)
        start = asyncio.create_task(early.start())
        await mock.run_manager()
        await start
        assert early.version == "252.39 (mock)"
        await early.close()

    async def test_that_goes_for_good(self, mock: MockWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peer, "ABSENCE", 0.05)
        unit = await mock.add("loading")
        job = await mock.systemd.start_unit(unit)
        waiter = asyncio.create_task(done(job))
        await mock.kill_manager()
        with pytest.raises(SystemdUnavailable, match="left the bus"):
            await waiter
        with pytest.raises(SystemdUnavailable, match="not on the bus"):
            await mock.systemd.start_unit(unit)

    async def test_that_returns(self, mock: MockWorld) -> None:
        """Another manager counts its jobs from 1 again, knows nothing of our subscription, and has other units."""
        kept = await mock.add()
        first = await mock.systemd.start_unit(kept)
        assert await done(first) == "done"
        gone = await mock.started()
        await mock.kill_manager()
        (mock.folder / gone).unlink()
        call = asyncio.create_task(mock.systemd.refresh(kept))  # waits for the manager
        await mock.run_manager()
        assert (await call).active_state == "inactive"
        await mock.until(gone, lambda state: state.load_state == "not-found")
        await mock.script(kept, start="hang")
        second = await mock.systemd.start_unit(kept)
        assert second.path == first.path
        with pytest.raises(JobTimeout):
            await second.wait(0.02)
        await mock.finish(kept)
        assert await done(second) == "done"
        await mock.crash(kept)
        await mock.until(kept, lambda state: state.active_state == "failed")

    async def test_that_knows_its_subscribers(self, mock: MockWorld) -> None:
        second = SystemdClient(mock.bus)
        await second.start()
        assert second.version == mock.systemd.version
        await second.close()

    async def test_end_of_the_bus(self, mock: MockWorld) -> None:
        unit = await mock.add("loading")
        waiter = asyncio.create_task(done(await mock.systemd.start_unit(unit)))
        await mock.until(unit, lambda state: state.sub_state == "start-post")
        mock.bus.close()
        with pytest.raises(SystemdUnavailable, match="connection to the bus has ended"):
            await waiter
        with pytest.raises(SystemdUnavailable):
            await mock.systemd.refresh(unit)


class TestOthers:
    async def test_signals_of_others_do_not_count(self, mock: MockWorld) -> None:
        """Anybody on the bus can send signals that look like systemd's."""
        unit = await mock.add("loading")
        job = await mock.systemd.start_unit(unit)
        before = await mock.until(unit, lambda state: state.sub_state == "start-post" and bool(state.control_group))
        forger = await Bus.connect(mock.address)
        arrived = asyncio.Event()
        # Without this subscription of the same connection the bus would not even deliver them.
        await mock.bus.subscribe("type='signal',member='Forged'", lambda _: arrived.set())
        await mock.bus.subscribe(f"type='signal',sender='{forger.unique_name}'", lambda _: None)
        forger.emit(
            unit_path(unit),
            PROPERTIES,
            "PropertiesChanged",
            "sa{sv}as",
            [UNIT, {"ActiveState": Variant("s", "failed")}, []],
        )
        forger.emit(MANAGER_PATH, MANAGER, "JobRemoved", "uoss", [before.job, job.path, unit, "failed"])
        forger.emit(
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "NameOwnerChanged",
            "sss",
            [DESTINATION, ":1.0", forger.unique_name],
        )
        forger.emit("/forged", "org.example.Forged", "Forged", "", [])
        await arrived.wait()
        assert mock.systemd.cached(unit) == before
        with pytest.raises(JobTimeout):
            await job.wait(0.02)
        await mock.finish(unit)
        assert await done(job) == "done"
        await mock.until(unit, lambda state: state.active_state == "active")
        forger.close()
