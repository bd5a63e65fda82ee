"""A systemd manager in memory, for tests: deterministic, scripted, and held to the real one's behaviour by tests/contract.

It reads real unit files from a folder, so that what is not written, or not reloaded, shows as it would with systemd.
Units run without processes; what they do is told beforehand by `behave`, and done to them by `finish` and `crash`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from cortexd.errors import SystemdUnavailable, UnitFailed
from cortexd.systemd.jobs import Job, JobTable, Kind, result_by_state
from cortexd.systemd.protocol import UnitListener, UnitState, UnitUsage
from cortexd.systemd.wire import MANAGER_PATH, is_ours

SIGKILL, SIGTERM = 9, 15
CLD_EXITED, CLD_KILLED = 1, 2

Outcome = Literal["done", "failed", "hang"]


@dataclass(slots=True)
class Behaviour:
    """What a unit does: whether its jobs end well, badly, or when `finish` says so; when JobRemoved comes, as seen from
    the reply that names the job; whether systemd restarts it when it fails."""

    start: Outcome = "done"
    stop: Outcome = "done"
    removed: Literal["after", "before", "never", "twice"] = "after"
    restart: bool = False


@dataclass(slots=True)
class _Unit:
    state: UnitState
    text: str = ""
    behaviour: Behaviour = field(default_factory=Behaviour)
    job: tuple[str, Kind] | None = None


class FakeSystemd:
    """`Systemd` (protocol.py) over the unit files in `folder`."""

    def __init__(self, folder: Path, *, version: str = "257.13 (fake)") -> None:
        self.folder = folder
        self.calls: list[tuple[str, ...]] = []
        """What was asked that changes something: ("StartUnit", unit), ("Reload",), ("Kill", invocation_id, signal) ..."""
        self.usages: dict[str, UnitUsage] = {}
        """What `usage` answers."""
        self.gone = False
        """While true, every method raises SystemdUnavailable."""
        self._version = version
        self._units: dict[str, _Unit] = {}
        self._listeners: list[UnitListener] = []
        self._jobs = JobTable(self._recheck)
        self._numbers = count(1)
        self._enabled: set[str] = set()

    # -- the script

    def behave(self, unit: str, **behaviour: Any) -> None:
        """Say what a unit does from now on; see Behaviour."""
        self._unit(unit).behaviour = Behaviour(**behaviour)

    def finish(self, unit: str, outcome: Outcome = "done") -> None:
        """End what a unit hangs in: its job, or the pause before an automatic restart."""
        job = self._unit(unit).job
        if job:
            self._end(unit, job, outcome)
        else:
            assert self.cached(unit).sub_state == "auto-restart", f"{unit} hangs in nothing"
            self._run(unit)
            self._change(unit, active_state="active", sub_state="running")

    def crash(self, unit: str, *, code: int = CLD_KILLED, status: int = SIGKILL, result: str = "") -> None:
        """End the main process by itself."""
        known = self._unit(unit)
        assert known.state.main_pid, f"{unit} does not run"
        # A server that ends well before it is ready has failed all the same.
        clean = known.job is None and (code, status) in ((CLD_EXITED, 0), (CLD_KILLED, SIGTERM))
        word = result or ("success" if clean else "exit-code" if code == CLD_EXITED else "signal")
        self._dead(unit, "inactive" if clean else "failed", exec_main_code=code, exec_main_status=status, result=word)
        if known.job:
            self._tell(unit, known.job, "failed")
        if known.behaviour.restart and not clean:
            restarts = known.state.n_restarts + 1
            self._change(unit, active_state="activating", sub_state="auto-restart", n_restarts=restarts)

    # -- Systemd

    async def start(self) -> None:
        """See Systemd."""
        self._present()
        self._load_files()

    async def close(self) -> None:
        """See Systemd."""
        self._jobs.fail(SystemdUnavailable("cortexd has stopped listening to systemd"))
        self._listeners.clear()

    @property
    def version(self) -> str:
        """See Systemd."""
        return self._version

    def listen(self, listener: UnitListener) -> None:
        """See Systemd."""
        self._listeners.append(listener)

    def cached(self, unit: str) -> UnitState:
        """See Systemd."""
        return self._units[unit].state if unit in self._units else UnitState(unit=unit)

    def known_units(self) -> Sequence[str]:
        """See Systemd."""
        states = [known.state for known in self._units.values()]
        return sorted(state.unit for state in states if state.load_state != "not-found" or state.running)

    async def refresh(self, unit: str) -> UnitState:
        """See Systemd."""
        self._present()
        self._load(unit)
        return self.cached(unit)

    async def usage(self, units: Sequence[str]) -> dict[str, UnitUsage]:
        """See Systemd."""
        self._present()
        return {unit: self.usages.get(unit, UnitUsage()) for unit in units}

    async def start_unit(self, unit: str) -> Job:
        """See Systemd."""
        return self._queue("start", "StartUnit", unit)

    async def stop_unit(self, unit: str) -> Job:
        """See Systemd."""
        return self._queue("stop", "StopUnit", unit)

    async def restart_unit(self, unit: str) -> Job:
        """See Systemd."""
        return self._queue("restart", "RestartUnit", unit)

    async def kill_unit(self, unit: str, whom: str, signal: int) -> None:
        """See Systemd. SIGKILL and SIGTERM end the unit."""
        self._present("KillUnit", unit, whom, str(signal))
        if unit not in self.known_units():
            raise UnitFailed(f"systemd refused to send a signal to {unit}: Unit {unit} not loaded.")
        self._kill(unit, signal)

    async def kill_run(self, invocation_id: str, signal: int) -> bool:
        """See Systemd. SIGKILL and SIGTERM end the unit."""
        self._present("Kill", invocation_id, str(signal))
        for unit, known in self._units.items():
            if known.state.invocation_id == invocation_id and known.state.main_pid:
                self._kill(unit, signal)
                return True
        return False

    async def reset_failed(self, unit: str) -> None:
        """See Systemd."""
        self._present("ResetFailedUnit", unit)
        if self.cached(unit).active_state == "failed":
            self._change(unit, active_state="inactive", sub_state="dead", result="success")

    async def reload(self) -> None:
        """See Systemd."""
        self._present("Reload")
        for known in self._units.values():
            known.text = ""
        self._load_files()

    async def enable_unit(self, unit: str) -> None:
        """See Systemd."""
        self._present("EnableUnitFiles", unit)
        path = self.folder / unit
        if not path.exists():
            raise UnitFailed(f"systemd refused to enable {unit}: Unit file {unit} does not exist.")
        if "[Install]" not in path.read_text():
            raise UnitFailed(f"{unit} cannot be enabled: its unit file has no [Install] section")
        self._enabled.add(unit)
        await self.reload()

    async def disable_unit(self, unit: str) -> None:
        """See Systemd."""
        self._present("DisableUnitFiles", unit)
        self._enabled.discard(unit)
        await self.reload()

    # -- inside

    def _present(self, *call: str) -> None:
        if self.gone:
            raise SystemdUnavailable("systemd's manager is not on the bus")
        if call:
            self.calls.append(call)

    def _unit(self, unit: str) -> _Unit:
        return self._units.setdefault(unit, _Unit(UnitState(unit=unit)))

    def _change(self, unit: str, **fields: Any) -> None:
        known = self._unit(unit)
        if fields.get("active_state", known.state.active_state) != known.state.active_state:
            fields["state_change"] = next(self._numbers) * 1_000_000
        before, known.state = known.state, replace(known.state, **fields)
        if known.state != before and is_ours(unit):
            for listener in self._listeners:
                listener(unit, known.state)

    def _load_files(self) -> None:
        for unit in sorted({*self._units, *(path.name for path in self.folder.glob("*.service"))}):
            self._load(unit)

    def _load(self, unit: str) -> None:
        known, path = self._unit(unit), self.folder / unit
        text = path.read_text() if path.exists() else ""
        if known.text:  # loaded before: only a reload takes what the file says now
            self._change(unit, need_daemon_reload=text != known.text)
            return
        known.text = text
        wanted = "enabled" if unit in self._enabled else "disabled" if "[Install]" in text else "static"
        good = re.search("^ExecStart=", text, re.MULTILINE)
        self._change(
            unit,
            load_state="loaded" if good else "bad-setting" if text else "not-found",
            fragment_path=str(path) if text else "",
            drop_in_paths=tuple(sorted(map(str, self.folder.glob(f"{unit}.d/*.conf")))),
            unit_file_state=wanted if text else "",
            need_daemon_reload=False,
        )

    def _queue(self, kind: Kind, method: str, unit: str) -> Job:
        self._present(method, unit)
        self._load(unit)
        known = self._unit(unit)
        if unit not in self.known_units() or (kind != "stop" and known.state.load_state != "loaded"):
            reason = "has a bad unit file setting" if known.text else "not found"
            raise UnitFailed(f"systemd refused to {kind} {unit}: Unit {unit} {reason}.")
        if known.job and (known.job[1] == "stop") == (kind == "stop"):
            return self._jobs.queued(known.job[0], unit, kind)  # merged
        if known.job:
            self._tell(unit, known.job, "canceled")  # superseded
        number = next(self._numbers)
        known.job = job = (f"{MANAGER_PATH}/job/{number}", kind)
        self._change(unit, job=number)
        if kind == "stop" and known.state.running:
            self._change(unit, active_state="deactivating", sub_state="stop-sigterm")
        elif kind == "restart" or (kind == "start" and known.state.active_state != "active"):
            self._run(unit)
        outcome = known.behaviour.stop if kind == "stop" else known.behaviour.start
        if outcome != "hang" and known.behaviour.removed == "before":
            self._end(unit, job, outcome)
        elif outcome != "hang":
            asyncio.get_running_loop().call_soon(self._end, unit, job, outcome)
        return self._jobs.queued(job[0], unit, kind)

    def _run(self, unit: str) -> None:
        number = next(self._numbers)
        self._change(
            unit,
            active_state="activating",
            sub_state="start-post",
            result="success",
            invocation_id=f"{number:032x}",
            main_pid=1000 + number,
            control_group=f"/fake/{unit}",
            exec_main_code=0,
            exec_main_status=0,
            exec_main_start=number * 1_000_000,
        )

    def _dead(self, unit: str, state: Literal["inactive", "failed"], **fields: Any) -> None:
        sub_state = "dead" if state == "inactive" else "failed"
        self._change(unit, active_state=state, sub_state=sub_state, main_pid=0, control_group="", **fields)

    def _end(self, unit: str, job: tuple[str, Kind], outcome: Outcome) -> None:
        state = self.cached(unit)
        if self._unit(unit).job != job:
            return  # superseded
        if job[1] != "stop" and outcome == "done":
            self._change(unit, active_state="active", sub_state="running")
        elif job[1] != "stop":
            self.crash(unit, code=CLD_EXITED, status=1)
            return  # told by it
        elif state.running and outcome == "done":
            killed = {"exec_main_code": CLD_KILLED, "exec_main_status": SIGTERM} if state.main_pid else {}
            self._dead(unit, "inactive", **killed)
        elif state.running:
            self._dead(unit, "failed", result="timeout", exec_main_code=CLD_KILLED, exec_main_status=SIGKILL)
        self._tell(unit, job, "done")

    def _tell(self, unit: str, job: tuple[str, Kind], result: str) -> None:
        known = self._unit(unit)
        known.job = None
        self._change(unit, job=0)
        for _ in range({"never": 0, "twice": 2}.get(known.behaviour.removed, 1)):
            if removed := self._jobs.removed(job[0], unit):
                removed.end(result)

    def _kill(self, unit: str, signal: int) -> None:
        if self.cached(unit).main_pid and signal in (SIGKILL, SIGTERM):
            self.crash(unit, status=signal)

    async def _recheck(self, job: Job) -> None:
        known = self._unit(job.unit)
        if (known.job is None or known.job[0] != job.path) and self._jobs.removed(job.path, job.unit):
            job.end(result_by_state(job.kind, known.state))
