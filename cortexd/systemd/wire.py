"""The words of org.freedesktop.systemd1 that cortexd uses, and how its properties become a UnitState. Pure.

Sources: org.freedesktop.systemd1(5); src/shared/bus-util.c (bus_label_escape) for object paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Any

from cortexd.names import UNIT_PATTERN, from_path_label, path_label

DESTINATION = "org.freedesktop.systemd1"
MANAGER_PATH = "/org/freedesktop/systemd1"
UNIT_PATHS = MANAGER_PATH + "/unit"
MANAGER = DESTINATION + ".Manager"
UNIT = DESTINATION + ".Unit"
SERVICE = DESTINATION + ".Service"
PROPERTIES = "org.freedesktop.DBus.Properties"

ALREADY_SUBSCRIBED = DESTINATION + ".AlreadySubscribed"
NO_SUCH_UNIT = DESTINATION + ".NoSuchUnit"
RUN_IS_OVER = (
    DESTINATION + ".NoUnitForInvocationID",
    DESTINATION + ".NoSuchProcess",
    NO_SUCH_UNIT,
    "org.freedesktop.DBus.Error.UnknownObject",
)
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"

READS = frozenset({"Get", "LoadUnit", "Ref", "GetUnitFileState", "ListUnitsByPatterns", "ListJobs"})
"""Methods that change nothing that a manager which re-executes itself would keep."""

_DBUS_ERROR = "org.freedesktop.DBus.Error."
_SILENCE = (_DBUS_ERROR + "NoReply", _DBUS_ERROR + "Disconnected", DESTINATION + ".ShuttingDown")


def undelivered(error: str) -> bool:
    """Whether an error's name says that the call reached no manager (its activation file runs /bin/false)."""
    names = ("ServiceUnknown", "NameHasNoOwner")
    return error in [_DBUS_ERROR + name for name in names] or error.startswith(_DBUS_ERROR + "Spawn.")


def unanswered(error: str) -> bool:
    """Whether an error's name says that no manager answered, whatever became of the call."""
    return undelivered(error) or error in _SILENCE


FIELDS: dict[str, tuple[str, str]] = {
    "load_state": (UNIT, "LoadState"),
    "active_state": (UNIT, "ActiveState"),
    "sub_state": (UNIT, "SubState"),
    "unit_file_state": (UNIT, "UnitFileState"),
    "fragment_path": (UNIT, "FragmentPath"),
    "drop_in_paths": (UNIT, "DropInPaths"),
    "invocation_id": (UNIT, "InvocationID"),
    "state_change": (UNIT, "StateChangeTimestamp"),
    "active_enter": (UNIT, "ActiveEnterTimestampMonotonic"),
    "active_exit": (UNIT, "ActiveExitTimestampMonotonic"),
    "need_daemon_reload": (UNIT, "NeedDaemonReload"),
    "job": (UNIT, "Job"),
    "result": (SERVICE, "Result"),
    "main_pid": (SERVICE, "MainPID"),
    "control_group": (SERVICE, "ControlGroup"),
    "n_restarts": (SERVICE, "NRestarts"),
    "restart": (SERVICE, "Restart"),
    "exec_main_code": (SERVICE, "ExecMainCode"),
    "exec_main_status": (SERVICE, "ExecMainStatus"),
    "exec_main_start": (SERVICE, "ExecMainStartTimestamp"),
    "status_text": (SERVICE, "StatusText"),
}
"""UnitState's fields and the property that each is read from."""

STATE, RUN = ("active_state", "sub_state"), ("invocation_id", "state_change")
UNTOLD = (
    *STATE, *RUN, "load_state", "unit_file_state", "fragment_path", "drop_in_paths", "need_daemon_reload", "control_group", "result",
    "n_restarts", "restart",
)  # fmt: skip
"""STATE and RUN, which tell whether a signal was missed, and what changes without a signal: properties that the manager's introspection data call constant or never signalled,
and those that ResetFailedUnit sets back."""

_FIELD_OF = {where: field for field, where in FIELDS.items()}


def field_value(field: str, value: Any) -> Any:
    """A property's value as UnitState has it."""
    if field == "invocation_id":
        return bytes(value).hex()
    if field == "job":
        return value[0]  # (id, object path)
    return tuple(value) if field == "drop_in_paths" else value


def changed_fields(interface: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a PropertiesChanged that UnitState has."""
    fields = {_FIELD_OF[interface, name]: value for name, value in changed.items() if (interface, name) in _FIELD_OF}
    return {field: field_value(field, value) for field, value in fields.items()}


_matches = re.compile(translate(UNIT_PATTERN)).match


def is_ours(unit: str) -> bool:
    """Whether a unit is one that cortexd looks at; templates (`x@.service`) are no units."""
    return "@." not in unit and bool(_matches(unit))


def unit_path(unit: str) -> str:
    """The object path of a unit; asking an object there loads the unit."""
    return f"{UNIT_PATHS}/{path_label(unit)}"


def unit_of_path(path: str) -> str:
    """The unit of an object path (the reverse of `unit_path`)."""
    return from_path_label(path.removeprefix(UNIT_PATHS + "/"))
