"""Looks at the user's bus, manager and daemon, and at logind. Nothing is started by it, and no answer waited for long."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from cortexctl.bus import PROPERTIES, Bus, Call, address, bus_call
from cortexctl.context import manager_call
from cortexctl.diagnose import SYSTEMD, UNIT
from cortexctl.doctor.evidence import Daemon, Listed, Manager, Model, Session, Unseen
from cortexctl.errors import CtlError
from cortexd.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH, SLICE
from cortexd.systemd.cgroup import mount_point

_SECONDS = 1.5
"""For one answer; who does not give it is asked nothing more."""
_POLL = 0.05
_OURS = ["cortex-*.service", "cortexd*.service", SLICE]
_MANAGER_PATH = "/org/freedesktop/systemd1"

LOGIND = "org.freedesktop.login1"
LOGIND_PATH = "/org/freedesktop/login1"
LINGERING = Path("/var/lib/systemd/linger")


def user_name() -> str:
    """The calling user's, or the number where the user database has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def system_bus(environ: Mapping[str, str]) -> str:
    """Where logind is found (dbus-daemon(1))."""
    return environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"


def session(search_path: str) -> Session:
    """The user's bus, and who is on it."""
    where = address(os.environ)
    try:
        bus = Bus(autostart=False)
    except CtlError as e:
        return Session(address=where, problem=e.message, other_bus=_other_bus(where))
    with closing(bus):
        names = _names(bus)
        (activatable,) = bus.try_call(bus_call("ListActivatableNames"), _SECONDS) or ([],)
        manager = _manager(bus) if SYSTEMD in names else Unseen("is not on this bus")
        unit = _unit(bus) if isinstance(manager, Manager) else None
        daemon = _daemon(bus, BUS_NAME in names, BUS_NAME in activatable, unit, search_path)
    return Session(address=where, other_bus=_other_bus(where), manager=manager, daemon=daemon)


def _names(bus: Bus) -> list[str]:
    """Who is on it. A manager comes to its bus, which may have begun with our connection, a moment after that."""
    deadline = time.monotonic() + _SECONDS
    while True:
        (names,) = bus.try_call(bus_call("ListNames"), _SECONDS) or ([],)
        if SYSTEMD in names or not names or time.monotonic() > deadline:
            return [*names]
        time.sleep(_POLL)


def _other_bus(where: str) -> str:
    """The socket on which the user's manager has its bus, where it is there and is not `where`."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    own = f"{runtime}/bus"
    return own if f"path={own}" not in where.replace("%2f", "/") and Path(own).is_socket() else ""


def _manager(bus: Bus) -> Manager | Unseen:
    found = _properties(bus, SYSTEMD, _MANAGER_PATH, f"{SYSTEMD}.Manager")
    if not found:
        return Unseen(f"does not answer within {_SECONDS:g} s")
    listed = Call(_MANAGER_PATH, f"{SYSTEMD}.Manager", "ListUnitsByPatterns", "asas", (["failed"], _OURS), SYSTEMD)
    (units,) = bus.try_call(listed, _SECONDS) or ([],)
    failed = tuple(unit[0] for unit in units)
    return Manager(
        version=str(found.get("Version", "")),
        state=str(found.get("SystemState", "")),
        failed=failed,
        failed_others=max(int(found.get("NFailedUnits", 0)) - len(failed), 0),
        controllers=_controllers(str(found.get("ControlGroup", ""))),
        everywhere=_controllers("") or frozenset(),
    )


def _controllers(group: str) -> frozenset[str] | None:
    try:
        root = mount_point(Path("/proc/self/mountinfo").read_text())
        if root is None:
            return None
        return frozenset((root / group.lstrip("/") / "cgroup.controllers").read_text().split())
    except OSError:
        return None


def _unit(bus: Bus) -> dict[str, str | int] | None:
    """What systemd says of the daemon's unit."""
    loaded = bus.try_call(Call(_MANAGER_PATH, f"{SYSTEMD}.Manager", "LoadUnit", "s", (UNIT,), SYSTEMD), _SECONDS)
    if not loaded:
        return None
    found: dict[str, Any] = {}
    for interface in ("Unit", "Service"):
        found |= _properties(bus, SYSTEMD, loaded[0], f"{SYSTEMD}.{interface}")
    return {key: value for key, value in found.items() if isinstance(value, str | int)}


def _daemon(
    bus: Bus, running: bool, activatable: bool, unit: Mapping[str, str | int] | None, search_path: str
) -> Daemon:
    known = Daemon(running=running, activatable=activatable, unit=unit)
    if not running:
        return known
    found = _properties(bus, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE)
    if not found:
        return known
    models = bus.try_call(manager_call("ListModels", "asa{sv}", [], {"settings": ("b", True)}), _SECONDS)
    backends = bus.try_call(manager_call("ListBackends", "a{sv}", {"search_path": ("s", search_path)}), _SECONDS)
    return Daemon(
        running=True,
        activatable=activatable,
        unit=unit,
        version=str(found.get("Version", "")),
        warnings=tuple(map(str, found.get("Warnings", ()))),
        models=tuple(map(_model, models[0])) if models else None,
        backends=tuple(map(_listed, backends[0])) if backends else None,
    )


def _model(info: Mapping[str, Any]) -> Model:
    settings = info.get("Settings", {})
    return Model(
        name=info["Name"],
        host=str(settings.get("host", "")),
        port=int(settings.get("port", 0)),
        io_weight=settings.get("IOWeight"),
        warned=bool(info.get("Warnings")),
    )


def _listed(row: Mapping[str, Any]) -> Listed:
    return Listed(name=row["Name"], executable=row.get("Executable", ""), problem=row.get("Problem", ""))


def _properties(bus: Bus, destination: str, path: str, interface: str) -> dict[str, Any]:
    """All of an interface's; empty where there is no answer."""
    reply = bus.try_call(Call(path, PROPERTIES, "GetAll", "s", (interface,), destination), _SECONDS)
    return dict(reply[0]) if reply else {}


def lingers(user: str, marks: Path = LINGERING) -> bool | Unseen:
    """Whether the user's services run without a login: as logind says, else by the mark that it keeps on disk."""
    try:
        bus = Bus(autostart=False, where=system_bus(os.environ))
    except CtlError:
        return _marked(user, marks, "there is no system bus")
    with closing(bus):
        users = bus.try_call(Call(LOGIND_PATH, f"{LOGIND}.Manager", "ListUsers", "", (), LOGIND), _SECONDS)
        if users is None:
            return _marked(user, marks, "logind does not answer")
        # It has an object for every user that lingers or is logged in.
        path = next((path for uid, _, path in users[0] if uid == os.getuid()), None)
        if path is None:
            return False
        reply = bus.try_call(Call(path, PROPERTIES, "Get", "ss", (f"{LOGIND}.User", "Linger"), LOGIND), _SECONDS)
        return bool(reply[0]) if reply else _marked(user, marks, "logind does not answer")


def _marked(user: str, marks: Path, reason: str) -> bool | Unseen:
    try:
        return (marks / user).exists() if marks.is_dir() else Unseen(reason)
    except OSError:
        return Unseen(reason)
