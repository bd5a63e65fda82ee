"""From an error reply, or from silence, to a sentence that says what to do. Loaded only when something went wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cortexctl.bus import CALL_TIMEOUT, DBUS, PROPERTIES, Bus, Call, DBusError, bus_call
from cortexctl.errors import FAILURE, NO_SUCH_MODEL, CtlError, DaemonError, no_such_model
from cortexd.errors import ERROR_PREFIX
from cortexd.names import BUS_NAME, MANAGER_INTERFACE, MODEL_PREFIX, ROOT_PATH
from cortexd.version import VERSION

UNIT = "cortexd.service"
SYSTEMD = "org.freedesktop.systemd1"
_ONCE_REPAIRED = "once repaired: 'systemctl --user start cortexd'"
"""The bus starts nothing for two minutes after an attempt that failed, and what it said stands until then."""
_SEE = f"see 'systemctl --user status {UNIT}' and 'journalctl --user -u {UNIT}'"

_ABSENT = ("ServiceUnknown", "NameHasNoOwner")
_OTHER_API = (
    "UnknownMethod",
    "UnknownInterface",
    "UnknownObject",
    "UnknownProperty",
    "InvalidArgs",
    "InvalidSignature",
    "PropertyReadOnly",
)
_ENDED = ("NoReply", "Disconnected")
_NOT_STARTED = ("TimedOut", "Timeout")


def explain(bus: Bus, call: Call, error: DBusError) -> CtlError:
    """What an error reply to `call` means."""
    if error.name.startswith(ERROR_PREFIX):
        name = error.name.removeprefix(ERROR_PREFIX)
        return CtlError(name, error.text, NO_SUCH_MODEL if name == "NoSuchModel" else FAILURE)
    if call.destination != BUS_NAME:
        return CtlError(error.name, error.text)
    short = error.name.rpartition(".")[2]
    if short in _ABSENT:
        return _not_activatable(bus)
    if short in _OTHER_API:
        return _other_version(bus) or _vanished(call) or CtlError(error.name, f"{call.member}: {error.text}")
    if short in _ENDED:
        return _ended(call)
    if short in _NOT_STARTED or error.name.startswith((f"{DBUS}.Error.Spawn.", SYSTEMD)):
        return not_starting(bus) or DaemonError("DaemonUnavailable", f"cortexd does not answer ({error.text}); {_SEE}")
    return CtlError(error.name, error.text or f"{call.member} failed: {error.name}")


def _ended(call: Call) -> CtlError:
    """Where a change was asked for, the model is as before or as asked for, whenever cortexd ended; its next start decides."""
    name = _model_of(call)
    look = f"cortexctl events {name}" if name else "cortexctl events"
    return DaemonError(
        "DaemonEnded",
        f"cortexd ended during the call; models go on running, and what was begun is finished or undone when it starts again: "
        f"'{look}' shows which, 'journalctl --user -u {UNIT}' may say why it ended",
    )


def timed_out(bus: Bus, call: Call, seconds: float) -> CtlError:
    """`call` had no answer in time."""
    return not_starting(bus) or DaemonError(
        "Timeout",
        f"cortexd did not answer within {seconds:g} s; 'systemctl --user restart cortexd' starts it anew (models go on "
        f"running); {_SEE}",
    )


UNUSABLE = 78
"""EX_CONFIG: the daemon told systemd what is wrong, in a sentence."""


def not_starting(bus: Bus) -> CtlError | None:
    """Why the daemon that the bus was asked to start does not appear; None where it runs or may still come.

    For two minutes after an attempt that failed the bus makes no other one, it only lets its callers wait: so a unit
    that is inactive a moment after the call stays so.
    """
    if _is_running(bus) or (unit := _unit(bus)) is None:
        return None
    return _stopped() if _is_loaded(unit) and unit.get("ActiveState") == "inactive" else failure(unit)


def _is_loaded(unit: Mapping[str, Any]) -> bool:
    return unit.get("LoadState") not in ("not-found", "masked", "bad-setting", "error")


def failure(unit: Mapping[str, Any]) -> CtlError | None:
    """Why the daemon's unit, of which systemd says this, has failed or cannot be started; None where neither is so."""
    if not _is_loaded(unit):
        return _unit_problem(str(unit["LoadState"]))
    state, sub = unit.get("ActiveState"), unit.get("SubState")
    if state != "failed" and not (state == "activating" and sub == "auto-restart"):
        return None
    status = unit.get("ExecMainStatus")
    reason = f"{unit.get('Result')}, status {status}" if status else str(unit.get("Result"))
    if status == UNUSABLE and unit.get("StatusText"):
        return DaemonError("DaemonUnavailable", f"cortexd does not start: {unit['StatusText']}; {_ONCE_REPAIRED}")
    return DaemonError("DaemonUnavailable", f"cortexd does not start: {UNIT} failed ({reason}); {_SEE}")


def _not_activatable(bus: Bus) -> CtlError:
    unit = _unit(bus)
    load = unit.get("LoadState") if unit else "not-found"
    return _stopped() if load == "loaded" else _unit_problem(str(load))


def _stopped() -> CtlError:
    return DaemonError(
        "DaemonUnavailable",
        f"cortexd is not running and the bus does not start it; 'systemctl --user start {UNIT}' does",
    )


def _unit_problem(load: str) -> CtlError:
    if load == "masked":
        return DaemonError("DaemonUnavailable", f"{UNIT} is masked; 'systemctl --user unmask {UNIT}' allows it again")
    if load == "not-found":
        return DaemonError(
            "NotInstalled", "cortexd is not installed for this user and not running; 'make install' installs it"
        )
    return DaemonError("DaemonUnavailable", f"{UNIT} cannot be loaded ({load}); {_SEE}")


def _other_version(bus: Bus) -> CtlError | None:
    reply = bus.try_call(Call(ROOT_PATH, PROPERTIES, "Get", "ss", (MANAGER_INTERFACE, "Version")))
    running = reply[0] if reply else "of unknown version"
    return None if running == VERSION else version_mismatch(running)


def version_mismatch(running: str) -> CtlError:
    """The daemon that runs is not of our version."""
    return DaemonError(
        "VersionMismatch",
        f"this is cortexctl {VERSION}, but the cortexd that runs is {running}; "
        "'systemctl --user restart cortexd' makes them one (models go on running)",
    )


def _vanished(call: Call) -> CtlError | None:
    return no_such_model(_model_of(call)) if call.path.startswith(MODEL_PREFIX) else None


def _model_of(call: Call) -> str:
    """The model that a call is about; empty where it is about none, or about several."""
    if call.path.startswith(MODEL_PREFIX):
        label = call.path.removeprefix(MODEL_PREFIX)
        return re.sub("_([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), label)
    return call.body[0] if call.body and isinstance(call.body[0], str) else ""


def _is_running(bus: Bus) -> bool:
    reply = bus.try_call(bus_call("NameHasOwner", "s", BUS_NAME))
    return bool(reply and reply[0])


def _unit(bus: Bus) -> dict[str, Any] | None:
    """What systemd says of the daemon's unit; None where no manager answers."""
    manager = Call("/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", "LoadUnit", "s", (UNIT,), SYSTEMD)
    loaded = bus.try_call(manager, CALL_TIMEOUT / 3)
    if not loaded:
        return None
    found: dict[str, Any] = {}
    for interface, names in (
        ("Unit", ("LoadState", "ActiveState", "SubState")),
        ("Service", ("Result", "ExecMainStatus", "StatusText")),
    ):
        for name in names:
            reply = bus.try_call(Call(loaded[0], PROPERTIES, "Get", "ss", (f"{SYSTEMD}.{interface}", name), SYSTEMD))
            found[name] = reply[0] if reply else ""
    return found
