"""What is said of the bus, the user's systemd manager, lingering and the daemon. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cortexctl.diagnose import UNUSABLE, failure, version_mismatch
from cortexctl.doctor.evidence import Daemon, Manager, Session, Unseen
from cortexctl.doctor.line import Cure, Fix, Line, error, from_sentence, note, ok, warning
from cortexd.limits import unavailable
from cortexd.names import model_name
from cortexd.version import VERSION

OLDEST_SYSTEMD = 252
"""Debian 12's: what units of ours say was measured from it on."""
NEEDED = ("cpu", "memory", "pids")
_MOST = 5  # lines of one kind
_DEFAULT_IO_WEIGHT = 100
_INSTALL = "'make install' in cortexd's folder completes it; models go on running"


def bus(session: Session) -> Iterator[Line]:
    """The message bus."""
    if session.problem:
        line = from_sentence("bus", session.problem)
        if session.other_bus:
            yield error("bus", line.text, f"your manager's own is unix:path={session.other_bus}: {_UNSET}")
        else:
            yield line
        return
    manager = session.manager
    if session.other_bus and isinstance(manager, Unseen):
        there = f"{session.address} is not the bus of your systemd manager"
        yield error("bus", there, f"its own is unix:path={session.other_bus}: {_UNSET}")
        return
    yield ok("bus", f"the message bus answers at {session.address}")


_UNSET = "unset DBUS_SESSION_BUS_ADDRESS, or log in again without dbus-run-session or dbus-launch"


def manager(session: Session, user: str, uid: int) -> Iterator[Line]:
    """systemd's user manager, and what the system lets it limit."""
    found = session.manager
    if session.problem:
        return  # said of the bus
    if isinstance(found, Unseen):
        yield error(
            "manager",
            f"your systemd manager {found.reason}",
            f"see 'systemctl status user@{uid}.service' and 'systemctl --user status'; it comes with a login "
            f"(not su or sudo), or with 'loginctl enable-linger {user}'",
        )
        return
    number = "".join(c for c in found.version.partition(".")[0].partition(" ")[0] if c.isdecimal())
    if number and int(number) < OLDEST_SYSTEMD:
        yield error(
            "systemd",
            f"systemd {found.version} is older than {OLDEST_SYSTEMD}",
            "upgrade the system (Debian 12, Ubuntu 24.04 and newer have it): older ones ignore parts of the sandbox",
        )
    elif found.state in ("maintenance", "stopping", "offline"):
        yield error(
            "systemd",
            f"your systemd manager is in state {found.state}",
            "see 'systemctl --user list-jobs', or log in anew",
        )
    else:
        yield ok("systemd", f"systemd {found.version}, your manager is {found.state or 'there'}")
    yield from _failed(found)


def _failed(found: Manager) -> Iterator[Line]:
    for unit in found.failed[:_MOST]:
        name = model_name(unit)
        see = f"'cortexctl why {name}' says why" if name else f"see 'systemctl --user status {unit}'"
        yield warning("failed-unit", f"{unit} has failed", see)
    if len(found.failed) > _MOST:
        yield warning("failed-unit", f"{len(found.failed) - _MOST} more have failed", "'cortexctl list' shows them")
    if found.failed_others:
        units = "a unit" if found.failed_others == 1 else f"{found.failed_others} units"
        yield note("failed-unit", f"{units} that cortexd has nothing to do with failed: 'systemctl --user --failed'")


def delegation(session: Session) -> Iterator[Line]:
    """The controllers of control groups that limits need."""
    found = session.manager
    if isinstance(found, Unseen):
        return
    have = found.controllers
    if have is None:
        yield note("controllers", "which limits are enforced is not known: your manager's control group cannot be read")
        return
    missing: dict[str, list[str]] = {}
    for name in NEEDED:
        if name not in have:
            missing.setdefault(unavailable(name, found.everywhere)[1], []).append(name)
    for remedy, names in missing.items():
        text = f"limits of {', '.join(names)} are not enforced: your manager does not have the controllers"
        yield warning("controllers", text, remedy)
    if missing:
        return
    yield ok("controllers", f"limits are enforced for {', '.join(NEEDED)}" + (", io" if "io" in have else ""))
    if "io" not in have:
        why, remedy = unavailable("io", found.everywhere)
        models = (session.daemon and session.daemon.models) or ()
        weighted = [m.name for m in models if m.io_weight not in (None, _DEFAULT_IO_WEIGHT)]
        if weighted:
            yield warning("controllers", f"IOWeight of {_some(weighted)} has no effect: {why}", remedy)
        else:
            yield note("controllers", f"IOWeight would have no effect: {why}", remedy)


def linger(lingers: bool | Unseen, user: str) -> Iterator[Line]:
    """Whether services live without a login."""
    if isinstance(lingers, Unseen):
        yield note("linger", f"whether your services run without a login is not known: {lingers.reason}")
    elif lingers:
        yield ok("linger", "your services run without a login (linger)")
    else:
        yield warning(
            "linger",
            "linger is off: models end when you log out, and none start at boot",
            f"loginctl enable-linger {user}",
            Fix(Cure.LINGER, f"Let the services of {user} run without a login, from boot on?"),
        )


def daemon(session: Session) -> Iterator[Line]:
    """cortexd itself: running, installed, of our version, and content."""
    found = session.daemon
    if found is None:
        return  # said of the bus
    if not found.running:
        yield from _absent(found)
        return
    if found.version is None:
        yield error(
            "daemon",
            "cortexd is on the bus, but does not answer",
            "see 'journalctl --user -u cortexd.service'; 'systemctl --user restart cortexd' starts it anew "
            "(models go on running)",
            Fix(Cure.RESTART, "Restart cortexd? Models go on running."),
        )
    elif found.version != VERSION:
        line = from_sentence("daemon", version_mismatch(found.version).message)
        fix = Fix(Cure.RESTART, "Restart cortexd, so that it is of this version? Models go on running.")
        yield warning("daemon", line.text, line.remedy, fix)
    else:
        yield ok("daemon", f"cortexd {found.version} runs" + _count(found))
    yield from _installed(found)
    for text in found.warnings[:_MOST]:
        line = from_sentence("daemon-warning", text)
        yield warning("daemon-warning", line.text, line.remedy)
    if len(found.warnings) > _MOST:
        yield warning("daemon-warning", f"{len(found.warnings) - _MOST} more warnings of cortexd's", "see its journal")
    if warned := [model.name for model in found.models or () if model.warned]:
        yield note("model-warning", f"there are warnings about {_some(warned)}: 'cortexctl status NAME'")


def _absent(found: Daemon) -> Iterator[Line]:
    unit = found.unit
    start = Fix(Cure.START, "Start cortexd?")
    if unit and (reason := failure(unit)) is not None:
        broken = unit.get("ExecMainStatus") == UNUSABLE
        can_start = unit.get("LoadState") == "loaded" and not broken
        line = from_sentence("daemon", reason.message)
        remedy = line.remedy or "repair that, then 'systemctl --user start cortexd'"
        yield error("daemon", line.text, remedy, start if can_start else None)
    elif unit and unit.get("ActiveState") in ("activating", "deactivating", "reloading"):
        yield note("daemon", f"cortexd is {unit['ActiveState']}: ask again in a moment")
    elif found.activatable:
        yield note("daemon", "cortexd does not run; the next command of cortexctl's starts it")
    elif unit:
        yield error("daemon", "cortexd does not run, and the bus has no activation file for it", _INSTALL, start)
    else:
        yield from_sentence("daemon", "cortexd does not run and is not installed; 'make install' installs it")


def _installed(found: Daemon) -> Iterator[Line]:
    """What `make install` makes, of a daemon that runs all the same."""
    unit = found.unit or {}
    load, state = unit.get("LoadState"), unit.get("UnitFileState")
    if not found.activatable:
        yield warning("install", "the bus has no activation file for cortexd: it is not started on demand", _INSTALL)
    elif load == "not-found":
        yield warning("install", "cortexd runs by hand: systemd has no cortexd.service to repair it with", _INSTALL)
    if load == "masked":
        yield warning(
            "install", "cortexd.service is masked", "'systemctl --user unmask cortexd.service' allows it again"
        )
    elif state == "disabled":
        yield note(
            "install",
            "cortexd is not started at login: until a command starts it, nobody watches the models' health",
            "systemctl --user enable cortexd.service",
        )


def _count(found: Daemon) -> str:
    if found.models is None:
        return ""
    return f", {len(found.models)} model{'' if len(found.models) == 1 else 's'} registered"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST])
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} more"
