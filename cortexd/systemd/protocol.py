"""What cortexd needs of a systemd manager, and the words for it.

Three things satisfy `Systemd`: the real one over D-Bus (`client.py`), the in-memory one (`fake.py`), and the real
one talking to python-dbusmock; one contract suite (`tests/contract/`) holds all three to the same behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

UNKNOWN = 2**64 - 1
"""systemd's "not available" for counters (memory, CPU time, tasks)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitState:
    """One unit as systemd describes it (org.freedesktop.systemd1.Unit and .Service; see org.freedesktop.systemd1(5)).

    Timestamps are microseconds since the epoch but where another clock is named, 0 for never. `fragment_path` and `invocation_id` are empty where there
    is none. A unit that has no file is `load_state="not-found"` and `inactive`. One that has a file and is not loaded is
    taken for "loaded" until it is read, and shows what its last run was like for as long as we have seen it.

    systemd gives a unit its new `invocation_id` a moment before it leaves the state of the run before, so that it may
    be seen with `inactive` or `failed` and a `job`.
    """

    unit: str
    load_state: str = "not-found"
    active_state: str = "inactive"
    sub_state: str = "dead"
    result: str = "success"
    unit_file_state: str = ""
    fragment_path: str = ""
    drop_in_paths: tuple[str, ...] = ()
    invocation_id: str = ""
    main_pid: int = 0
    control_group: str = ""
    n_restarts: int = 0
    restart: str = ""  # Restart= as the manager has it, drop-ins and all; empty until it was read
    exec_main_code: int = 0  # CLD_EXITED 1, CLD_KILLED 2, CLD_DUMPED 3 (sigaction(2))
    exec_main_status: int = 0  # exit status, or signal number
    exec_main_start: int = 0
    status_text: str = ""
    state_change: int = 0
    active_enter: int = 0  # when it last became active, and last ceased to be: microseconds of CLOCK_MONOTONIC
    active_exit: int = 0
    need_daemon_reload: bool = False
    job: int = 0  # the id of the job queued for it; an inactive unit that has one is not at rest, but about to start

    @property
    def running(self) -> bool:
        """Whether processes of this unit may exist: anything but inactive and failed."""
        return self.active_state not in ("inactive", "failed")


@dataclass(frozen=True, slots=True)
class UnitUsage:
    """Counters that are never signalled: bytes, nanoseconds, processes and threads; UNKNOWN where not available."""

    memory: int = UNKNOWN
    cpu_nsec: int = UNKNOWN
    tasks: int = UNKNOWN


@dataclass(frozen=True, slots=True)
class Group:
    """A control group: its name, the controllers that it has, and its limits by file name (memory.max, cpu.max, ...): bytes,
    cores, weights, processes and threads; INFINITY for "max", nothing where the file is not there."""

    name: str
    controllers: frozenset[str] = frozenset()
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnitLimits:
    """What the kernel holds a running unit to: its own control group and those around it, from the inside out, and the
    controllers of the whole hierarchy. No group: this machine has no cgroup v2."""

    groups: tuple[Group, ...] = ()
    controllers: frozenset[str] = frozenset()


class SystemdJob(Protocol):
    """A job of systemd's that was queued."""

    @property
    def path(self) -> str:
        """The job's object path; concurrent requests for the same thing share one."""

    async def wait(self, timeout: float) -> str:
        """systemd's result word: done, canceled, timeout, failed, dependency, skipped, ... (unknown ones pass through).

        Safe whether JobRemoved came before or after the reply that named the job. Where JobRemoved never comes within
        `timeout` seconds, the result is read from the unit's state ("done", "failed") if the job is gone, else
        JobTimeout is raised. Any number of waiters, at any time, also after the end. A vanished manager is
        SystemdUnavailable.
        """


UnitListener = Callable[[str, UnitState], None]
"""Called with the unit's name and its fresh state whenever something about it changed."""


class Systemd(Protocol):
    """A systemd manager (a user's), reduced to what cortexd asks of it.

    Every method raises SystemdUnavailable when the manager does not answer within a bound, and UnitFailed with
    systemd's own words when it refuses.
    """

    async def start(self) -> None:
        """Subscribe, register the permanent JobRemoved handler (before any job can be queued), read the units."""

    async def close(self) -> None:
        """Stop listening; units are left as they are."""

    @property
    def version(self) -> str:
        """systemd's version as the manager tells it ("252.39-1~deb12u2")."""

    def listen(self, listener: UnitListener) -> None:
        """Register a listener for units that match names.UNIT_PATTERN; called from the event loop, must not raise."""

    def cached(self, unit: str) -> UnitState:
        """The state as last signalled, without a round trip. Kept true by signals; re-read after Reloading(false), a
        re-executed manager, and at the end of every job, before the job's waiters resume."""

    def known_units(self) -> Sequence[str]:
        """Names of units matching names.UNIT_PATTERN that the manager has loaded or has a unit file of."""

    async def existing(self, units: Collection[str]) -> set[str]:
        """Those of these names that the manager has loaded, as far as it has told, or that have a file in a folder where it looks
        for such: looked at now, whether it has read them or not. One that somebody has just looked for in vain may be among
        them."""

    async def refresh(self, unit: str) -> UnitState:
        """Read the unit afresh (loading it if need be) and tell listeners if it changed."""

    async def drop_ins(self, unit: str) -> tuple[str, ...]:
        """The paths of the unit's drop-ins as systemd has them, asked for afresh; a tenth of what `refresh` costs."""

    async def usage(self, units: Sequence[str]) -> dict[str, UnitUsage]:
        """Memory, CPU time and tasks of running units, read in bulk: from the control groups' files where they can be
        read, else from the manager."""

    async def limits(self, units: Sequence[str]) -> dict[str, UnitLimits]:
        """What running units are held to, from the control groups' files; without those whose group cannot be read."""

    async def set_properties(self, unit: str, values: Mapping[str, int]) -> None:
        """Change properties of type `t` (org.freedesktop.systemd1(5)) of a unit at once, all or none. systemd leaves a
        drop-in for each in systemd/user.control of the runtime folder, which outranks the unit file until it is deleted and
        the files are reloaded."""

    async def start_unit(self, unit: str) -> SystemdJob: ...

    async def stop_unit(self, unit: str) -> SystemdJob: ...

    async def restart_unit(self, unit: str) -> SystemdJob: ...

    async def kill_unit(self, unit: str, whom: str, signal: int) -> None:
        """Send a signal (number) to the unit's processes: `whom` is main, control or all."""

    async def kill_run(self, invocation_id: str, signal: int) -> bool:
        """Send a signal to all processes of exactly this run (GetUnitByInvocationID); False if that run is over."""

    async def reset_failed(self, unit: str) -> None:
        """Clear `failed`, the start-limit counter and NRestarts, of which systemd tells nobody until the unit is read again;
        a unit that is not loaded is no error. What runs goes on (measured on 252)."""

    async def reload(self) -> None:
        """daemon-reload, one at a time; requests that arrive while one runs share the next one."""

    async def enable_unit(self, unit: str) -> None:
        """Enable the unit file (for boot), of which systemd hears at its next reload. UnitFailed if it carries no install
        information."""

    async def disable_unit(self, unit: str) -> None:
        """Undo enable_unit; a unit without a file is no error."""


class Logind(Protocol):
    """What cortexd asks of org.freedesktop.login1, on the system bus."""

    async def listen(self, resumed: Callable[[], None]) -> None:
        """Call `resumed` from the event loop whenever the machine has slept; where logind cannot be heard, never."""

    def close(self) -> None:
        """Stop listening."""

    async def linger(self) -> bool | None:
        """Whether the user lingers; None where logind does not answer."""

    async def set_linger(self, enable: bool) -> None:
        """Make the user linger or not; raises UnitFailed with the remedy where it is refused."""
