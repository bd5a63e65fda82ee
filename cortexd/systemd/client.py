"""A systemd manager over D-Bus, as cortexd needs it (`Systemd` in protocol.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cortexd.bus import Bus, BusError, Signal, Variant
from cortexd.durable import sync_folder
from cortexd.errors import CortexError, SystemdUnavailable, UnitFailed
from cortexd.names import CHECK_PREFIX
from cortexd.systemd import wire
from cortexd.systemd.cgroup import mount_point, read_limits, read_usage
from cortexd.systemd.jobs import Job, JobTable, Kind, result_by_state
from cortexd.systemd.merged import Merged, in_background
from cortexd.systemd.peer import Peer
from cortexd.systemd.protocol import UNKNOWN, Group, UnitLimits, UnitListener, UnitState, UnitUsage
from cortexd.systemd.units import Units

log = logging.getLogger(__name__)

RELOAD_TIMEOUT = 90.0
RELOAD_PAUSE = 0.5
LOST_AFTER = 5.0
"""Seconds after a unit has come to the end of its job in which JobRemoved has to come; it takes milliseconds."""


class SystemdClient:
    """`Systemd` on the manager that `bus` leads to. The bus stays the caller's to close. `before_load` is called with a unit's
    name before systemd is made to read its files, with an empty one before it reads those of all, and may raise a CortexError
    instead; blocking."""

    def __init__(self, bus: Bus, before_load: Callable[[str], None] | None = None) -> None:
        self._peer = Peer(bus, self._on_gone)
        self._units = Units(self._peer, before_load)
        self._jobs = JobTable(self._recheck)
        self._looking: asyncio.TimerHandle | None = None
        self._version = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._resyncs: Merged[bool] = Merged(self._resync)
        self._reloads: Merged[None] = Merged(self._reload)

    # -- life

    async def start(self) -> None:
        """See Systemd."""
        await self._peer.attach(self._on_return)
        manager = f"path='{wire.MANAGER_PATH}'"
        await self._peer.subscribe(wire.MANAGER, "JobRemoved", manager, self._on_job_removed)
        await self._peer.subscribe(wire.MANAGER, "Reloading", manager, self._on_reloading)
        await self._units.subscribe()
        self._units.mirror.listen(self._expect_end)
        await self._meet()

    async def close(self) -> None:
        """See Systemd."""
        self._peer.detach()
        self._units.close()
        self._resyncs.cancel()
        self._reloads.cancel()
        if self._looking:
            self._looking.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._on_gone("cortexd has stopped listening to systemd")

    @property
    def version(self) -> str:
        """See Systemd."""
        return self._version

    async def _meet(self) -> None:
        """Make this manager tell us everything, and read what it has."""
        try:
            self._version = await self._peer.get(wire.MANAGER_PATH, wire.MANAGER, "Version")
            # Without it a manager sends signals only if somebody else wants them.
            await self._peer.call(wire.MANAGER_PATH, wire.MANAGER, "Subscribe")
        except BusError as e:
            if e.name != wire.ALREADY_SUBSCRIBED:  # a re-executed manager knows its subscribers
                raise SystemdUnavailable(f"systemd refused to send signals: {e.message}") from e
        await asyncio.shield(self._resyncs.request(False))

    async def _resync(self, trust_signals: bool) -> None:
        await self._units.read_all(trust_signals=trust_signals)
        await self._end_lost_jobs()

    # -- states

    def listen(self, listener: UnitListener) -> None:
        """See Systemd."""
        self._units.mirror.listen(listener)

    def cached(self, unit: str) -> UnitState:
        """See Systemd."""
        return self._units.mirror.cached(unit)

    def known_units(self) -> Sequence[str]:
        """See Systemd."""
        return self._units.mirror.known()

    async def existing(self, units: Collection[str]) -> set[str]:
        """See Systemd."""
        return await self._units.existing(units)

    async def refresh(self, unit: str) -> UnitState:
        """See Systemd."""
        return await self._units.refresh(unit)

    async def drop_ins(self, unit: str) -> tuple[str, ...]:
        """See Systemd."""
        return await self._units.drop_ins(unit)

    async def usage(self, units: Sequence[str]) -> dict[str, UnitUsage]:
        """See Systemd."""
        groups = self._groups(units)
        found = await asyncio.to_thread(_read_groups, groups)
        hidden = [unit for unit in groups if unit not in found]
        found.update(zip(hidden, await asyncio.gather(*map(self._ask_usage, hidden)), strict=True))
        return {unit: found.get(unit, UnitUsage()) for unit in units}

    async def _ask_usage(self, unit: str) -> UnitUsage:
        async def counter(name: str) -> int:
            try:
                return int(await self._peer.get(wire.unit_path(unit), wire.SERVICE, name))
            except BusError:
                return UNKNOWN

        memory, cpu, tasks = await asyncio.gather(*map(counter, ("MemoryCurrent", "CPUUsageNSec", "TasksCurrent")))
        return UnitUsage(memory=memory, cpu_nsec=cpu, tasks=tasks)

    async def limits(self, units: Sequence[str]) -> dict[str, UnitLimits]:
        """See Systemd."""
        return await asyncio.to_thread(_read_limits, self._groups(units))

    def _groups(self, units: Sequence[str]) -> dict[str, str]:
        return {unit: group for unit in units if (group := self.cached(unit).control_group)}

    async def set_properties(self, unit: str, values: Mapping[str, int]) -> None:
        """See Systemd."""
        typed = [[name, Variant("t", value)] for name, value in values.items()]
        await self._peer.ask(f"change {', '.join(values)} of {unit}", "SetUnitProperties", "sba(sv)", unit, True, typed)

    # -- jobs

    async def start_unit(self, unit: str) -> Job:
        """See Systemd."""
        return await self._queue("start", "StartUnit", unit)

    async def stop_unit(self, unit: str) -> Job:
        """See Systemd."""
        return await self._queue("stop", "StopUnit", unit)

    async def restart_unit(self, unit: str) -> Job:
        """See Systemd."""
        return await self._queue("restart", "RestartUnit", unit)

    async def _queue(self, kind: Kind, member: str, unit: str) -> Job:
        if kind != "stop":  # what is loaded stops as it is
            await self._units.check_loadable(unit)
        (path,) = await self._peer.ask(f"{kind} {unit}", member, "ss", unit, "replace")
        job = self._jobs.queued(path, unit, kind)
        self._expect_end(unit, self.cached(unit))  # it may have come to its end before we knew of it
        return job

    def _on_job_removed(self, signal: Signal) -> None:
        _, path, unit, result = signal.body
        if (wire.is_ours(unit) or unit.startswith(CHECK_PREFIX)) and (job := self._jobs.removed(path, unit)):
            self._spawn(self._end(job, result))

    async def _end(self, job: Job, result: str) -> None:
        """End a job; whoever waited for it then sees a state that is no older."""
        try:
            # Signals of units that were not sent yet are lost in a reload, after which all is read anew.
            lost = self._resyncs.last(True) or self._resyncs.last(False)
            as_told = result == "done" == result_by_state(job.kind, self.cached(job.unit))
            await self._units.settle(job.unit, trust_signals=as_told and not lost)
        except CortexError as e:
            log.warning("could not read %s at the end of its %s job: %s", job.unit, job.kind, e)
        finally:
            job.end(result)

    async def _recheck(self, job: Job) -> None:
        """A waiter's time is over."""
        await self._end_lost_jobs()
        if job not in self._jobs.waiting():
            await job.ended()

    def _expect_end(self, unit: str, state: UnitState) -> None:
        """A unit has come to rest, or to run: if a job of ours is not told to have ended soon, we ask."""
        passing = state.active_state in ("activating", "deactivating", "reloading")
        if self._looking is None and not passing and any(job.unit == unit for job in self._jobs.waiting()):
            self._looking = asyncio.get_running_loop().call_later(
                LOST_AFTER, lambda: self._spawn(self._look_for_lost_jobs())
            )

    async def _look_for_lost_jobs(self) -> None:
        self._looking = None
        try:
            await self._end_lost_jobs()
        except CortexError as e:
            log.warning("could not ask which jobs have ended: %s", e)

    async def _end_lost_jobs(self) -> None:
        """End the jobs that systemd no longer has, and whose JobRemoved did not come (older managers drop some in a reload)."""
        waiting = self._jobs.waiting()
        if not waiting:
            return
        (queued,) = await self._peer.ask("list its jobs", "ListJobs")
        alive = {(path, unit) for _, unit, _, _, path, _ in queued}
        for job in waiting:
            if (job.path, job.unit) not in alive and self._jobs.removed(job.path, job.unit):
                log.warning("systemd ended the %s job of %s without a word", job.kind, job.unit)
                self._spawn(self._end_by_state(job))

    async def _end_by_state(self, job: Job) -> None:
        result: str | CortexError = SystemdUnavailable(f"it is not known how the {job.kind} job of {job.unit} ended")
        try:
            result = result_by_state(job.kind, await self.refresh(job.unit))
        except CortexError as e:
            result = e
        finally:
            job.end(result)

    # -- processes

    async def kill_unit(self, unit: str, whom: str, signal: int) -> None:
        """See Systemd."""
        await self._peer.ask(f"send a signal to {unit}", "KillUnit", "ssi", unit, whom, signal)

    async def kill_run(self, invocation_id: str, signal: int) -> bool:
        """See Systemd."""
        run = bytes.fromhex(invocation_id)
        try:
            (path,) = await self._peer.call(wire.MANAGER_PATH, wire.MANAGER, "GetUnitByInvocationID", "ay", run)
            # A failed unit keeps the ID of the run that is over; plain "all" is content with no process at all.
            await self._peer.call(path, wire.UNIT, "Kill", "si", "all-fail", signal)
        except BusError as e:
            if e.name in wire.RUN_IS_OVER:
                return False
            raise UnitFailed(f"systemd refused to send a signal to run {invocation_id}: {e.message}") from e
        return True

    async def reset_failed(self, unit: str) -> None:
        """See Systemd."""
        await self._peer.ask(f"reset {unit}", "ResetFailedUnit", "s", unit, tolerate=wire.NO_SUCH_UNIT)

    # -- unit files

    async def reload(self) -> None:
        """See Systemd."""
        await asyncio.shield(self._reloads.request(None))

    async def enable_unit(self, unit: str) -> None:
        """See Systemd."""
        await self._units.check_loadable(unit)
        carries, changes = await self._peer.ask(f"enable {unit}", "EnableUnitFiles", "asbb", [unit], False, False)
        if not carries:
            raise UnitFailed(f"{unit} cannot be enabled: its unit file has no [Install] section")
        await asyncio.to_thread(_sync_links, changes)

    async def disable_unit(self, unit: str) -> None:
        """See Systemd."""
        await self._units.check_loadable(unit)
        disable = ("DisableUnitFiles", "asb", [unit], False)
        for changes in await self._peer.ask(f"disable {unit}", *disable, tolerate=wire.NO_SUCH_UNIT):
            await asyncio.to_thread(_sync_links, changes)

    async def _reload(self, _: None) -> None:
        await self._units.check_loadable("")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RELOAD_TIMEOUT
        while True:
            try:
                await self._peer.call(wire.MANAGER_PATH, wire.MANAGER, "Reload", timeout=RELOAD_TIMEOUT)
                break
            except BusError as e:
                # 253 and later can limit the rate of reloads (ReloadLimitBurst= in systemd-system.conf(5)).
                if e.name != wire.LIMITS_EXCEEDED or loop.time() > deadline:
                    raise UnitFailed(f"systemd refused to reload its unit files: {e.message}") from e
                await asyncio.sleep(RELOAD_PAUSE)
        # Reloading(false) came before the reply, so that a reading has begun.
        await asyncio.shield(self._resyncs.last(True) or self._resyncs.request(True))

    def _on_reloading(self, signal: Signal) -> None:
        (under_way,) = signal.body
        if not under_way:
            in_background(self._resyncs.request(True), "could not read the units after a reload")

    # -- the manager's coming and going

    def _on_return(self) -> None:
        self._jobs.forget_removed()
        self._spawn(self._meet_again())

    async def _meet_again(self) -> None:
        try:
            await self._meet()
        except CortexError as e:
            log.warning("could not read the units of the new systemd manager: %s", e)

    def _on_gone(self, reason: str) -> None:
        self._jobs.fail(SystemdUnavailable(reason))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _read_groups(groups: dict[str, str]) -> dict[str, UnitUsage]:
    """The usage of those units whose control group (a path below the root of cgroup2) can be read."""
    root = mount_point(Path("/proc/self/mountinfo").read_text())
    if root is None:
        return {}
    found = {unit: read_usage(root / group.lstrip("/")) for unit, group in groups.items()}
    return {unit: usage for unit, usage in found.items() if usage is not None}


def _read_limits(groups: dict[str, str]) -> dict[str, UnitLimits]:
    root = mount_point(Path("/proc/self/mountinfo").read_text())
    if root is None:
        return dict.fromkeys(groups, UnitLimits())
    around: dict[Path, Group | None] = {}
    found = {unit: read_limits(root, group, around) for unit, group in groups.items()}
    return {unit: limits for unit, limits in found.items() if limits is not None}


def _sync_links(changes: Sequence[Sequence[str]]) -> None:
    """Wait until links that systemd made or removed are on disk, which it does not. `changes`: type, link and destination of each
    (org.freedesktop.systemd1(5)); the folder that a link is in may be new or gone, too. Blocking."""
    for folder in {folder for _, link, _ in changes for folder in Path(link).parents[:2]}:
        with suppress(OSError):
            sync_folder(folder)
