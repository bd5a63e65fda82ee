"""Who asks: for the audit log. On a user's bus every sender is the same user, so the process is what tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cortexd.bus import DBUS, DBUS_PATH, Bus, BusError, BusGone, BusTimeout, Call
from cortexd.errors import InvalidArgs
from cortexd.registration import Caller


def options_of(options: Mapping[str, Any], **known: type) -> dict[str, Any]:
    """The options given, checked against the `known` names and types. Raises InvalidArgs."""
    for name, value in options.items():
        kind = known.get(name)
        if kind is None:
            raise InvalidArgs(f"unknown option {name!r}; known are: {', '.join(known) or 'none'}")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidArgs(f"option {name!r} has the type {type(value).__name__}, not {kind.__name__}")
    return dict(options)


async def caller_of(bus: Bus, call: Call, options: Mapping[str, Any] | None = None) -> Caller:
    """The caller of a method: process and program, and what it says of its surroundings."""
    options = options or {}
    actor = call.sender
    try:
        (pid,) = await bus.call(DBUS, DBUS_PATH, DBUS, "GetConnectionUnixProcessID", "s", [call.sender])
        actor = _program(pid)
    except (BusError, BusTimeout, BusGone, OSError):
        pass  # it has left already; its name on the bus is what remains
    return Caller(actor, options.get("search_path", ""), options.get("working_directory", ""))


def _program(pid: int) -> str:
    name = Path(f"/proc/{pid}/comm").read_bytes().decode("utf-8", "replace").strip()  # may be any bytes
    return f"{name}[{pid}]"
