"""The units' states as systemd told them last. No I/O: the client feeds it signals and what it has read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from cortexd.systemd.protocol import UnitListener, UnitState
from cortexd.systemd.wire import UNIT, changed_fields, is_ours


@dataclass(slots=True, eq=False)  # two of the same content are two
class Watch:
    """What signals and listings told while something was being read; it is newer than what was read."""

    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    file_states: dict[str, str] = field(default_factory=dict)


class Mirror:
    """States by unit, listeners, and the rules by which signals and readings become states."""

    def __init__(self) -> None:
        self._states: dict[str, UnitState] = {}
        self._loaded: set[str] = set()
        self._file_states: dict[str, str] = {}
        self._service: dict[str, dict[str, Any]] = {}
        self._watches: list[Watch] = []
        self._listeners: list[UnitListener] = []

    def listen(self, listener: UnitListener) -> None:
        """Call `listener` with every state that differs from the one before."""
        self._listeners.append(listener)

    def cached(self, unit: str) -> UnitState:
        """The last state; that of a unit that does not exist where nothing is known."""
        return self._states.get(unit) or UnitState(unit=unit)

    def known(self) -> list[str]:
        """Units that systemd has loaded or has a file of, sorted."""
        return sorted(self._states)

    def loaded_units(self) -> list[str]:
        """Units that systemd has in memory, as far as told."""
        return sorted(self._loaded)

    def is_loaded(self, unit: str) -> bool:
        """Whether systemd has the unit in memory, as far as told."""
        return unit in self._loaded

    def is_told(self, unit: str) -> bool:
        """Whether anything is known of the unit's state."""
        return unit in self._states

    def file_state(self, unit: str) -> str | None:
        """The unit file's state as listed last; None if it was not listed."""
        return self._file_states.get(unit)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Collect what signals tell while the caller reads."""
        watch = Watch()
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    # -- signals

    def changed(self, unit: str, interface: str, properties: Mapping[str, Any]) -> bool:
        """PropertiesChanged. True if a run has begun, of which more is to be read than signals tell.

        systemd sends the type's own properties first and the unit's after them, so that both can be taken as one change
        (src/core/dbus-unit.c, send_changed_signal), and both before the JobRemoved of a job that is done.
        """
        self._loaded.add(unit)
        fields = changed_fields(interface, properties)
        for watch in self._watches:
            watch.told.setdefault(unit, {}).update(fields)
        if interface != UNIT:
            self._service.setdefault(unit, {}).update(fields)
            return False
        # What runs was loaded from something, even if we have not read what.
        before = self._states.get(unit) or UnitState(unit=unit, load_state="loaded")
        state = _with_past(replace(before, **self._service.pop(unit, {}), **fields), before)
        if unit not in self._states and not state.invocation_id:
            return False  # somebody looked at a unit that does not exist
        if not state.running:
            state = replace(state, control_group="")  # removed with its last process, without a signal
        self._publish(state)
        return state.invocation_id not in ("", before.invocation_id)

    def loaded(self, unit: str) -> None:
        """UnitNew."""
        self._loaded.add(unit)

    def unloaded(self, unit: str) -> None:
        """UnitRemoved: it has ended, and what it was last remains worth knowing."""
        self._loaded.discard(unit)
        self._service.pop(unit, None)

    # -- readings

    def read(self, unit: str, fields: Mapping[str, Any], watch: Watch) -> None:
        """Some or all of a unit's properties were read."""
        before = self.cached(unit)
        newer = dict(watch.told.get(unit, {}))
        if unit in watch.file_states:
            newer["unit_file_state"] = watch.file_states[unit]
        self._publish(_with_past(replace(before, **{**fields, **newer}), before))

    def listed(self, units: Mapping[str, tuple[str, str]], files: Mapping[str, str], watch: Watch) -> set[str]:
        """The manager listed its loaded units (load and active state by name), and unit files (state by path).

        A unit that is not loaded is inactive. A unit that signals told about in the meantime is as they told. Returns the loaded units of
        which there is more to know: those that are not at rest, or not as they were known to be.
        """
        told = watch.told.keys()
        self._loaded = {unit for unit in units if is_ours(unit)} | (told & self._loaded)
        by_name = {path.rpartition("/")[2]: (path, state) for path, state in files.items()}
        self._file_states = {unit: state for unit, (_, state) in by_name.items()}
        for other in self._watches:
            other.file_states.update(self._file_states)
        for unit, (path, file_state) in by_name.items():
            if unit not in self._loaded and is_ours(unit):
                before, now = self.cached(unit), _without_process(path, file_state)
                if _without_past(before) != now:  # most are as they were
                    self._publish(replace(before, **dict(zip(_WITHOUT_PAST, now, strict=True))))
            elif unit in self._states:  # else it is read for the first time, and all of it told at once
                self._publish(replace(self._states[unit], unit_file_state=file_state))
        for unit in self._states.keys() - self._loaded - by_name.keys() - told:
            self._publish(UnitState(unit=unit))
        as_known = {unit for unit in self._loaded if self._at_rest_as(unit, units.get(unit))}
        return self._loaded - as_known

    def _at_rest_as(self, unit: str, listed: tuple[str, str] | None) -> bool:
        state = self.cached(unit)
        return not state.running and listed == (state.load_state, state.active_state)

    def _publish(self, state: UnitState) -> None:
        exists = state.load_state != "not-found" or state.active_state != "inactive"
        if not exists:
            state = UnitState(unit=state.unit)
        if state == self.cached(state.unit):
            return
        if exists:
            self._states[state.unit] = state
        else:
            del self._states[state.unit]
        for listener in self._listeners:
            listener(state.unit, state)


def _with_past(state: UnitState, before: UnitState) -> UnitState:
    """A unit that was unloaded and loaded again has no run to tell of; what we saw of its last one stays."""
    if state.invocation_id or not before.invocation_id:
        return state
    past = (
        "invocation_id", "state_change", "active_enter", "active_exit", "exec_main_code", "exec_main_status",
        "exec_main_start", "status_text",
    )  # fmt: skip
    return replace(state, **{field: getattr(before, field) for field in past})


_WITHOUT_PAST = (
    "load_state", "active_state", "sub_state", "unit_file_state", "fragment_path", "main_pid", "control_group",
    "need_daemon_reload",
)  # fmt: skip
_without_past = attrgetter(*_WITHOUT_PAST)


def _without_process(path: str, file_state: str) -> tuple[Any, ...]:
    """_WITHOUT_PAST of a unit that has a file and is not loaded: its past stays, for what it is worth, but it does not run."""
    load_state = "masked" if file_state.startswith("masked") else "loaded"
    return load_state, "inactive", "dead", file_state, path, 0, "", False
