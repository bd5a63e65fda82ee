"""The decisions of the systemd room, without a bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd.bus import BusError, Signal
from cortexd.errors import SystemdUnavailable
from cortexd.systemd.cgroup import mount_point, read_usage
from cortexd.systemd.jobs import MEMORY, Job, JobTable, Kind, result_by_state
from cortexd.systemd.merged import Merged
from cortexd.systemd.mirror import Mirror
from cortexd.systemd.peer import Peer
from cortexd.systemd.protocol import UNKNOWN, UnitState, UnitUsage
from cortexd.systemd.units import Units
from cortexd.systemd.wire import DESTINATION, FIELDS, MANAGER, SERVICE, UNIT, is_ours, unit_of_path, unit_path

A = "cortex-a.service"


class TestWire:
    @settings(database=None)
    @given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
    def test_path_and_unit_are_each_others_reverse(self, name: str) -> None:
        unit = f"cortex-{name}.service"
        path = unit_path(unit)
        assert unit_of_path(path) == unit
        assert path.removeprefix("/org/freedesktop/systemd1/unit/").replace("_", "").isalnum()

    def test_path_is_the_one_that_systemd_makes(self) -> None:
        assert unit_path("cortex-llama:7b.service") == "/org/freedesktop/systemd1/unit/cortex_2dllama_3a7b_2eservice"

    @pytest.mark.parametrize(
        "unit", ["cortexd.service", "cortex-a.socket", "cortex-@.service", "cortex-@.a.service", "x-cortex-a.service"]
    )
    def test_not_ours(self, unit: str) -> None:
        assert not is_ours(unit)

    def test_every_field_is_read(self) -> None:
        assert {"unit", *FIELDS} == set(UnitState.__slots__)


@pytest.mark.parametrize(
    ("kind", "active_state", "result"),
    [
        ("start", "active", "done"),
        ("start", "reloading", "done"),
        ("start", "failed", "failed"),
        ("start", "activating", "failed"),  # about to be restarted
        ("start", "inactive", "canceled"),
        ("start", "deactivating", "failed"),
        ("restart", "active", "done"),
        ("stop", "inactive", "done"),
        ("stop", "failed", "done"),
        ("stop", "active", "canceled"),
        ("stop", "deactivating", "canceled"),
    ],
)
def test_result_of_a_job_that_ended_without_a_word(kind: Kind, active_state: str, result: str) -> None:
    assert result_by_state(kind, UnitState(unit=A, active_state=active_state)) == result


class TestJobTable:
    @pytest.fixture
    def table(self) -> JobTable:
        async def recheck(job: Job) -> None:
            raise AssertionError("nobody waits for so long")

        return JobTable(recheck)

    async def test_memory_of_removed_jobs_is_bounded(self, table: JobTable) -> None:
        for number in range(MEMORY + 1):
            job = table.removed(f"/job/{number}", A)
            assert job
            job.end("done")
        assert await table.queued(f"/job/{MEMORY}", A, "start").wait(1) == "done"
        forgotten = table.queued("/job/0", A, "start")
        assert table.waiting() == [forgotten]

    async def test_job_told_before_is_no_news(self, table: JobTable) -> None:
        assert table.removed("/job/1", A)
        assert table.removed("/job/1", A) is None

    async def test_a_new_manager_counts_from_one_again(self, table: JobTable) -> None:
        old = table.removed("/job/1", A)
        assert old
        old.end("failed")
        table.forget_removed()
        new = table.queued("/job/1", A, "start")
        assert new is not old
        assert table.removed("/job/1", A) is new

    async def test_failure_ends_all(self, table: JobTable) -> None:
        job = table.queued("/job/1", A, "start")
        table.fail(SystemdUnavailable("gone"))
        with pytest.raises(SystemdUnavailable):
            await job.wait(1)
        assert table.waiting() == []


class TestMerged:
    async def test_requests_share_the_next_run(self) -> None:
        began: list[str] = []
        gate = asyncio.Event()

        async def action(key: str) -> None:
            began.append(key)
            await gate.wait()

        merged = Merged(action)
        first = merged.request("a")
        await asyncio.sleep(0)
        second, third, other = merged.request("a"), merged.request("a"), merged.request("b")
        await asyncio.sleep(0)
        assert (began, second is third, second is first) == (["a", "b"], True, False)
        assert merged.last("a") is second
        gate.set()
        await asyncio.gather(first, second, third, other)
        assert began == ["a", "b", "a"]
        assert merged.last("a") is None

    async def test_failure_is_its_requesters_alone(self) -> None:
        results = iter([ValueError("once"), None])

        async def action(_: None) -> None:
            if error := next(results):
                raise error

        merged: Merged[None] = Merged(action)
        with pytest.raises(ValueError, match="once"):
            await merged.request(None)
        await merged.request(None)


class StubBus:
    """A bus whose manager has just left it: the first call is told so by the bus, after the bus told that the name lost its owner."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls: list[str] = []
        self.owner_changed: Callable[[Signal], None] | None = None

    async def subscribe(self, rule: str, handler: Callable[[Signal], None]) -> None:
        self.owner_changed = handler

    def own(self, owner: str) -> None:
        assert self.owner_changed
        dbus = "org.freedesktop.DBus"
        self.owner_changed(Signal(dbus, "/", dbus, "NameOwnerChanged", [DESTINATION, "", owner]))

    async def call(self, destination: str, path: str, interface: str, member: str, *_: Any, **__: Any) -> list[Any]:
        self.calls.append(member)
        if member == "GetNameOwner":
            return [":1.1"]
        if len(self.calls) == 2:
            self.own("")
            raise BusError("org.freedesktop.DBus.Error.Spawn.ChildExited", "Process exited with status 1")
        return ["answer"]


class TestPeer:
    async def test_call_that_reached_no_manager_is_made_again_when_there_is_one(self) -> None:
        bus, returned = StubBus(), list[bool]()
        peer = Peer(bus, pytest.fail)  # type: ignore[arg-type]
        await peer.attach(lambda: returned.append(True))
        call = asyncio.create_task(peer.call("/", MANAGER, "ListJobs"))
        await asyncio.sleep(0)
        assert not call.done()
        bus.own(":1.2")
        assert await call == ["answer"]
        assert bus.calls == ["GetNameOwner", "ListJobs", "ListJobs"]
        assert returned == [True]
        peer.detach()


async def test_unit_that_was_unloaded_is_not_loaded_to_be_read() -> None:
    bus = StubBus()
    peer = Peer(bus, pytest.fail)  # type: ignore[arg-type]
    await Units(peer).settle(A)
    assert bus.calls == []


class TestMirror:
    def running(self, mirror: Mirror, run: str = "aa") -> None:
        mirror.changed(A, SERVICE, {"MainPID": 7, "Result": "success"})
        mirror.changed(
            A,
            UNIT,
            {"ActiveState": "active", "SubState": "running", "InvocationID": bytes.fromhex(run), "Job": [0, "/"]},
        )

    def test_a_services_change_is_told_with_its_units(self) -> None:
        mirror, told = Mirror(), list[UnitState]()
        mirror.listen(lambda _, state: told.append(state))
        self.running(mirror)
        assert [(s.active_state, s.main_pid) for s in told] == [("active", 7)]
        mirror.changed(A, SERVICE, {"Result": "oom-kill", "MainPID": 0})
        assert len(told) == 1
        mirror.changed(A, UNIT, {"ActiveState": "failed"})
        assert [(s.active_state, s.result, s.main_pid) for s in told[1:]] == [("failed", "oom-kill", 0)]

    def test_a_new_run_is_worth_a_reading(self) -> None:
        mirror = Mirror()
        run = {"ActiveState": "activating", "InvocationID": b"\xaa"}
        assert mirror.changed(A, UNIT, run)
        assert not mirror.changed(A, UNIT, run)
        assert mirror.changed(A, UNIT, run | {"InvocationID": b"\xbb"})

    def test_a_look_at_what_does_not_exist_is_no_unit(self) -> None:
        mirror = Mirror()
        mirror.listen(lambda unit, state: pytest.fail("told"))
        assert not mirror.changed(A, UNIT, {"ActiveState": "inactive", "InvocationID": b""})
        with mirror.watch() as watch:
            mirror.read(A, {"load_state": "not-found"}, watch)
        assert mirror.known() == []

    def test_signals_are_newer_than_what_was_read_meanwhile(self) -> None:
        mirror = Mirror()
        with mirror.watch() as watch:
            self.running(mirror)
            mirror.read(A, {"load_state": "loaded", "active_state": "activating", "control_group": "/x"}, watch)
        state = mirror.cached(A)
        assert (state.active_state, state.load_state, state.control_group) == ("active", "loaded", "/x")

    def test_signals_are_newer_than_what_was_listed_meanwhile(self) -> None:
        mirror = Mirror()
        with mirror.watch() as watch:
            self.running(mirror)
            mirror.listed({}, {f"/etc/{A}": "enabled"}, watch)
        assert mirror.cached(A).active_state == "active"
        assert mirror.is_loaded(A)

    def test_listings_are_newer_than_what_was_read_meanwhile(self) -> None:
        """A reading may have asked for the state of a file before it was enabled, and end after the listing that says so."""
        mirror = Mirror()
        self.running(mirror)
        with mirror.watch() as reading:
            with mirror.watch() as listing:
                mirror.listed({A: ("loaded", "active")}, {f"/etc/{A}": "enabled"}, listing)
            mirror.read(A, {"load_state": "loaded", "unit_file_state": "disabled"}, reading)
        assert mirror.cached(A).unit_file_state == "enabled"

    def test_unit_that_is_listed_no_more_is_gone(self) -> None:
        mirror, told = Mirror(), list[UnitState]()
        self.running(mirror)
        mirror.listen(lambda _, state: told.append(state))
        with mirror.watch() as watch:
            mirror.listed({}, {}, watch)
        assert told == [UnitState(unit=A)]
        assert mirror.known() == []

    def test_only_what_runs_or_changed_needs_a_full_reading(self) -> None:
        mirror = Mirror()
        self.running(mirror)
        units = {
            A: ("loaded", "active"),
            "cortex-b.service": ("loaded", "inactive"),
            "ssh.service": ("loaded", "active"),
        }
        with mirror.watch() as watch:
            assert mirror.listed(units, {}, watch) == {A, "cortex-b.service"}  # b was never read
            mirror.read("cortex-b.service", {"load_state": "loaded"}, watch)
        with mirror.watch() as watch:
            assert mirror.listed(units, {}, watch) == {A}
        with mirror.watch() as watch:
            assert "cortex-b.service" in mirror.listed({"cortex-b.service": ("loaded", "failed")}, {}, watch)

    def test_past_survives_being_unloaded_and_loaded_again(self) -> None:
        mirror = Mirror()
        self.running(mirror)
        mirror.changed(A, UNIT, {"ActiveState": "inactive", "StateChangeTimestamp": 5})
        mirror.unloaded(A)
        assert not mirror.is_loaded(A)
        with mirror.watch() as watch:
            mirror.read(A, {"load_state": "loaded", "invocation_id": "", "state_change": 0}, watch)
        assert (mirror.cached(A).invocation_id, mirror.cached(A).state_change) == ("aa", 5)


class TestControlGroup:
    def test_mount_point(self) -> None:
        mountinfo = (
            "21 27 0:20 / /proc rw,nosuid - proc proc rw\n"
            "28 27 0:25 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
        )
        assert mount_point(mountinfo) == Path("/sys/fs/cgroup/unified")
        assert mount_point(mountinfo + "30 27 0:25 / /my\\040groups rw - cgroup2 none rw\n") == Path("/my groups")
        assert mount_point("21 27 0:20 / /proc rw - proc proc rw\n") is None
        assert mount_point("") is None

    def test_counters(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\n")
        (tmp_path / "memory.current").write_text("4096\n")
        (tmp_path / "pids.current").write_text("3\n")
        assert read_usage(tmp_path) == UnitUsage(memory=4096, cpu_nsec=1_500_000, tasks=3)

    def test_controllers_that_are_off(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.stat").write_text("")
        assert read_usage(tmp_path) == UnitUsage(memory=UNKNOWN, cpu_nsec=UNKNOWN, tasks=UNKNOWN)

    def test_group_that_cannot_be_read(self, tmp_path: Path) -> None:
        assert read_usage(tmp_path / "gone") is None
