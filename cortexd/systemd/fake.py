"""A systemd manager in memory, for tests: deterministic, scripted, and held to the real one's behaviour by tests/contract.

It reads real unit files from a folder, so that what is not written, or not reloaded, shows as it would with systemd.
What units do is told beforehand by `behave`, and done to them by `finish` and `crash`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cortexd.errors import SystemdUnavailable, UnitFailed
from cortexd.limits import LIMITS, left_by_us
from cortexd.systemd.fake_units import CLD_KILLED, SIGKILL, Behaviour, FakeUnits, Outcome
from cortexd.systemd.jobs import Job, Kind
from cortexd.systemd.protocol import UnitLimits, UnitListener, UnitState, UnitUsage


class FakeSystemd:
    """`Systemd` (protocol.py) over the unit files in `folder`."""

    def __init__(self, folder: Path, *, version: str = "257.13 (fake)", runtime: Path | None = None) -> None:
        """`runtime` is the user's runtime folder: where `set_properties` leaves drop-ins."""
        self.folder = folder
        self.calls: list[tuple[str, ...]] = []
        """What was asked that changes something: ("StartUnit", unit), ("Reload",), ("Kill", invocation_id, signal) ..."""
        self.usages: dict[str, UnitUsage] = {}
        """What `usage` answers."""
        self.held_to: dict[str, UnitLimits] = {}
        """What `limits` answers."""
        self.in_force: dict[str, dict[str, int]] = {}
        """What `set_properties` set last."""
        self.gone = False
        """While true, every method raises SystemdUnavailable."""
        self._version = version
        self.control = (runtime or folder.parent) / "systemd" / "user.control"
        self._units = FakeUnits(folder, self.control)

    # -- the script

    def behave(self, unit: str, **behaviour: Any) -> None:
        """Say what a unit does from now on; see Behaviour."""
        self._units.unit(unit).behaviour = Behaviour(**behaviour)

    def finish(self, unit: str, outcome: Outcome = "done") -> None:
        """End what a unit hangs in: its job, or the pause before an automatic restart."""
        job = self._units.unit(unit).job
        if job:
            self._units.end(unit, job[0], outcome)
        else:
            assert self.cached(unit).sub_state == "auto-restart", f"{unit} hangs in nothing"
            self._units.run_again(unit)
            self._units.change(unit, active_state="active", sub_state="running")

    def crash(self, unit: str, *, code: int = CLD_KILLED, status: int = SIGKILL, result: str = "") -> None:
        """End the main process by itself; `result` as systemd would have it where it is empty."""
        assert self.cached(unit).main_pid, f"{unit} does not run"
        self._units.crash(unit, code, status, result)

    def change(self, unit: str, **fields: Any) -> None:
        """Set fields of a unit's state as they are, and tell listeners."""
        self._units.change(unit, **fields)

    # -- Systemd

    async def start(self) -> None:
        """See Systemd."""
        self._ask()
        self._units.reload()

    async def close(self) -> None:
        """See Systemd."""
        self._units.jobs.fail(SystemdUnavailable("cortexd has stopped listening to systemd"))
        self._units.listeners.clear()

    @property
    def version(self) -> str:
        """See Systemd."""
        return self._version

    def listen(self, listener: UnitListener) -> None:
        """See Systemd."""
        self._units.listeners.append(listener)

    def cached(self, unit: str) -> UnitState:
        """See Systemd."""
        return self._units.state(unit)

    def known_units(self) -> Sequence[str]:
        """See Systemd."""
        return self._units.known()

    async def existing(self, units: Collection[str]) -> set[str]:
        """See Systemd."""
        self._ask()
        return {*units} & {*self.known_units(), *(path.name for path in self.folder.glob("cortex-*.service"))}

    async def drop_ins(self, unit: str) -> tuple[str, ...]:
        """See Systemd."""
        return (await self.refresh(unit)).drop_in_paths

    async def refresh(self, unit: str) -> UnitState:
        """See Systemd."""
        self._ask()
        self._units.load(unit)
        return self.cached(unit)

    async def usage(self, units: Sequence[str]) -> dict[str, UnitUsage]:
        """See Systemd."""
        self._ask()
        return {unit: self.usages.get(unit, UnitUsage()) for unit in units}

    async def limits(self, units: Sequence[str]) -> dict[str, UnitLimits]:
        """See Systemd."""
        self._ask()
        return {unit: self.held_to[unit] for unit in units if unit in self.held_to}

    async def set_properties(self, unit: str, values: Mapping[str, int]) -> None:
        """See Systemd."""
        self._ask("SetUnitProperties", unit, *values)
        if self.cached(unit).load_state != "loaded":
            raise UnitFailed(f"systemd refused to change {', '.join(values)} of {unit}: Unit {unit} not found.")
        for limit in LIMITS:
            if limit.bus_property in values:
                self._units.drop_in(unit, *left_by_us(limit, values[limit.bus_property]))
        self.in_force.setdefault(unit, {}).update(values)

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
        """See Systemd. SIGKILL and SIGTERM end the run."""
        self._ask("KillUnit", unit, whom, str(signal))
        if unit not in self.known_units():
            raise UnitFailed(f"systemd refused to send a signal to {unit}: Unit {unit} not loaded.")
        self._units.kill(unit, signal)

    async def kill_run(self, invocation_id: str, signal: int) -> bool:
        """See Systemd. SIGKILL and SIGTERM end the run."""
        self._ask("Kill", invocation_id, str(signal))
        for unit in self.known_units():
            if self.cached(unit).invocation_id == invocation_id and self.cached(unit).main_pid:
                self._units.kill(unit, signal)
                return True
        return False

    async def reset_failed(self, unit: str) -> None:
        """See Systemd."""
        self._ask("ResetFailedUnit", unit)
        if self.cached(unit).active_state == "failed":
            self._units.change(unit, active_state="inactive", sub_state="dead", result="success")
        self._units.change(unit, n_restarts=0)

    async def reload(self) -> None:
        """See Systemd."""
        self._ask("Reload")
        self._units.reload()

    async def enable_unit(self, unit: str) -> None:
        """See Systemd."""
        self._ask("EnableUnitFiles", unit)
        path = self.folder / unit
        if not path.exists():
            raise UnitFailed(f"systemd refused to enable {unit}: Unit file {unit} does not exist.")
        if "[Install]" not in path.read_text():
            raise UnitFailed(f"{unit} cannot be enabled: its unit file has no [Install] section")
        self._units.enabled.add(unit)

    async def disable_unit(self, unit: str) -> None:
        """See Systemd."""
        self._ask("DisableUnitFiles", unit)
        self._units.enabled.discard(unit)

    # -- inside

    def _ask(self, *call: str) -> None:
        if self.gone:
            raise SystemdUnavailable("systemd's manager is not on the bus")
        if call:
            self.calls.append(call)

    def _queue(self, kind: Kind, method: str, unit: str) -> Job:
        self._ask(method, unit)
        self._units.load(unit)
        known = self._units.unit(unit)
        if unit not in self.known_units() or (kind != "stop" and known.state.load_state != "loaded"):
            reason = "has a bad unit file setting" if known.text else "not found"
            raise UnitFailed(f"systemd refused to {kind} {unit}: Unit {unit} {reason}.")
        merged = known.job
        path = self._units.begin(kind, unit)
        outcome = known.behaviour.stop if kind == "stop" else known.behaviour.start
        if outcome != "hang" and (merged is None or path != merged[0]):
            if known.behaviour.removed == "before":
                self._units.end(unit, path, outcome)
            else:
                asyncio.get_running_loop().call_soon(self._units.end, unit, path, outcome)
        return self._units.jobs.queued(path, unit, kind)
