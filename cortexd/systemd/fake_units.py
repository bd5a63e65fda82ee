"""The units of the in-memory manager: what becomes of them when a job, a crash or a reload happens. No processes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from cortexd.systemd.jobs import Job, JobTable, Kind, result_by_state
from cortexd.systemd.protocol import UnitListener, UnitState
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
class FakeUnit:
    """One unit; `text` is its file's as last loaded."""

    state: UnitState
    text: str = ""
    behaviour: Behaviour = field(default_factory=Behaviour)
    job: tuple[str, Kind] | None = None


class FakeUnits:
    """All units of one manager, which reads its unit files from `folder`, and drop-ins from there and from `control`."""

    def __init__(self, folder: Path, control: Path) -> None:
        self.folder, self.control = folder, control
        self.units: dict[str, FakeUnit] = {}
        self.listeners: list[UnitListener] = []
        self.jobs = JobTable(self._recheck)
        self.enabled: set[str] = set()
        self._numbers = count(1)

    def unit(self, unit: str) -> FakeUnit:
        """The unit, which need not have a file."""
        return self.units.setdefault(unit, FakeUnit(UnitState(unit=unit)))

    def state(self, unit: str) -> UnitState:
        """Its state."""
        return self.units[unit].state if unit in self.units else UnitState(unit=unit)

    def known(self) -> list[str]:
        """Units that have a file, or have not come to rest without one."""
        return sorted(
            unit
            for unit, known in self.units.items()
            if is_ours(unit) and (known.state.load_state != "not-found" or known.state.active_state != "inactive")
        )

    # -- files

    def reload(self) -> None:
        """Take what the files say now."""
        for known in self.units.values():
            known.text = ""
        for unit in sorted({*self.units, *(path.name for path in self.folder.glob("*.service"))}):
            self.load(unit)

    def load(self, unit: str) -> None:
        """Read the unit's file if that was not done before."""
        known, path = self.unit(unit), self.folder / unit
        text = path.read_text() if path.exists() else ""
        wanted = "enabled" if unit in self.enabled else "disabled" if "[Install]" in text else "static"
        if known.text:
            self.change(unit, need_daemon_reload=text != known.text, unit_file_state=wanted if text else "")
            return
        known.text = text
        good = re.search("^ExecStart=", text, re.MULTILINE)
        self.change(
            unit,
            load_state="loaded" if good else "bad-setting" if text else "not-found",
            fragment_path=str(path) if text else "",
            drop_in_paths=self._drop_ins(unit),
            restart=self._restart(unit, text) if text or known.state.running else "",
            unit_file_state=wanted if text else "",
            need_daemon_reload=False,
        )

    def _drop_ins(self, unit: str) -> tuple[str, ...]:
        found = [path for folder in (self.folder, self.control) for path in folder.glob(f"{unit}.d/*.conf")]
        return tuple(map(str, sorted(found, key=lambda path: path.name)))

    def _restart(self, unit: str, text: str) -> str:
        texts = [text, *(Path(path).read_text(errors="replace") for path in self._drop_ins(unit))]
        told: list[str] = re.findall("^Restart=(.+)$", "\n".join(texts), re.MULTILINE)
        return told[-1] if told else "no"

    def drop_in(self, unit: str, name: str, text: str) -> None:
        """Leave a drop-in, as SetUnitProperties does."""
        path = self.control / f"{unit}.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.change(unit, drop_in_paths=self._drop_ins(unit), need_daemon_reload=True)

    # -- runs

    def change(self, unit: str, **fields: Any) -> None:
        """Change the state, and tell."""
        known = self.unit(unit)
        if fields.get("active_state", known.state.active_state) != known.state.active_state:
            fields["state_change"] = next(self._numbers) * 1_000_000
            now = time.monotonic_ns() // 1000
            fields |= {"active_enter": now} if fields["active_state"] == "active" else {}
            fields |= {"active_exit": now} if known.state.active_state == "active" else {}
        before, known.state = known.state, replace(known.state, **fields)
        if known.state != before and is_ours(unit):
            for listener in self.listeners:
                listener(unit, known.state)

    def run(self, unit: str) -> None:
        """Begin a run."""
        number = next(self._numbers)
        self.change(
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

    def run_again(self, unit: str) -> None:
        """Begin the run after the pause of an automatic restart: only now it is counted, in the pause it was not (252)."""
        self.change(unit, n_restarts=self.state(unit).n_restarts + 1)
        self.run(unit)

    def crash(self, unit: str, code: int, status: int, result: str) -> None:
        """End the main process by itself; `result` as systemd would have it where it is empty."""
        known = self.unit(unit)
        # A server that ends well before it is ready has failed all the same.
        clean = known.job is None and (code, status) in ((CLD_EXITED, 0), (CLD_KILLED, SIGTERM))
        word = result or ("success" if clean else "exit-code" if code == CLD_EXITED else "signal")
        self._dead(unit, "inactive" if clean else "failed", exec_main_code=code, exec_main_status=status, result=word)
        if known.job:
            self._remove(unit, known.job, "failed")
        if known.behaviour.restart and not clean:
            self.change(unit, active_state="activating", sub_state="auto-restart")

    def kill(self, unit: str, signal: int) -> None:
        """SIGKILL and SIGTERM end a run."""
        if self.state(unit).main_pid and signal in (SIGKILL, SIGTERM):
            self.crash(unit, CLD_KILLED, signal, "")

    def _dead(self, unit: str, state: Literal["inactive", "failed"], **fields: Any) -> None:
        sub_state = "dead" if state == "inactive" else "failed"
        self.change(unit, active_state=state, sub_state=sub_state, main_pid=0, control_group="", **fields)

    # -- jobs

    def begin(self, kind: Kind, unit: str) -> str:
        """Queue a job, merged with one of its kind or in place of one of the other; returns its path."""
        known = self.unit(unit)
        if known.job and (known.job[1] == "stop") == (kind == "stop"):
            return known.job[0]
        if known.job:
            self._remove(unit, known.job, "canceled")
        number = next(self._numbers)
        known.job = (f"{MANAGER_PATH}/job/{number}", kind)
        self.change(unit, job=number)
        if kind == "stop" and known.state.running:
            self.change(unit, active_state="deactivating", sub_state="stop-sigterm")
        elif kind == "restart" or (kind == "start" and known.state.active_state != "active"):
            self.run(unit)
        return known.job[0]

    def end(self, unit: str, path: str, outcome: Outcome) -> None:
        """End a job, unless another has taken its place."""
        known = self.unit(unit)
        if known.job is None or known.job[0] != path:
            return
        if known.job[1] != "stop" and outcome == "done":
            self.change(unit, active_state="active", sub_state="running")
        elif known.job[1] != "stop":
            self.crash(unit, CLD_EXITED, 1, "")
            return  # removed by it
        elif known.state.running and outcome == "done":
            killed = {"exec_main_code": CLD_KILLED, "exec_main_status": SIGTERM} if known.state.main_pid else {}
            self._dead(unit, "inactive", **killed)
        elif known.state.running:
            self._dead(unit, "failed", result="timeout", exec_main_code=CLD_KILLED, exec_main_status=SIGKILL)
        self._remove(unit, known.job, "done")

    def _remove(self, unit: str, job: tuple[str, Kind], result: str) -> None:
        known = self.unit(unit)
        known.job = None
        self.change(unit, job=0)
        for _ in range({"never": 0, "twice": 2}.get(known.behaviour.removed, 1)):
            if removed := self.jobs.removed(job[0], unit):
                removed.end(result)

    async def _recheck(self, job: Job) -> None:
        known = self.unit(job.unit)
        if (known.job is None or known.job[0] != job.path) and self.jobs.removed(job.path, job.unit):
            job.end(result_by_state(job.kind, known.state))
