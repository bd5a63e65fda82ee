"""What `--fix` does. Every fix raises CtlError where it cannot be done, and leaves nothing half done that matters."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cortexctl.bus import Bus, Call
from cortexctl.diagnose import SYSTEMD, UNIT
from cortexctl.doctor.line import Cure, Fix
from cortexctl.doctor.look_files import places
from cortexctl.doctor.look_session import LOGIND, LOGIND_PATH, system_bus, user_name
from cortexctl.errors import CtlError
from cortexd.units.files import name_aside
from cortexd.units.loadable import free

_SECONDS = 90.0
"""For an answer: a person may be asked for a password, and a daemon may take its time."""


def apply(fix: Fix, *, interactive: bool) -> None:
    """Do it. `interactive`: an agent may ask the person for a password."""
    cures: dict[Cure, Callable[[], None]] = {
        Cure.LINGER: lambda: _linger(interactive),
        Cure.CLOSE: lambda: _close(fix.arguments),
        Cure.ASIDE: lambda: _put_aside([*map(Path, fix.arguments)]),
        Cure.START: lambda: _unit_job("StartUnit"),
        Cure.RESTART: lambda: _unit_job("RestartUnit"),
    }
    cures[fix.cure]()


def _linger(interactive: bool) -> None:
    body = (os.getuid(), True, interactive)
    try:
        bus = Bus(autostart=False, where=system_bus(os.environ))
        bus.call(Call(LOGIND_PATH, f"{LOGIND}.Manager", "SetUserLinger", "ubb", body, LOGIND), _SECONDS)
    except CtlError as e:
        remedy = f"'sudo loginctl enable-linger {user_name()}' does"
        raise CtlError(e.name, f"logind did not let your services linger: {e.message}; {remedy}") from None


def _close(paths: Sequence[str]) -> None:
    """Touches only what is the user's own and a regular file or a folder: what lies there now need not be what was looked
    at."""
    data = places(os.environ).data
    failed = []
    for path in map(Path, paths):
        try:
            with _opened(path, data) as descriptor:
                status = os.fstat(descriptor)
                if status.st_uid == os.getuid() and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~0o077)
        except OSError as e:
            failed.append(f"{path}: {e.strerror}")
    if failed:
        more = f" and {len(failed) - 1} more" if failed[1:] else ""
        raise CtlError("FixFailed", f"cannot take the rights of others away: {failed[0]}{more}")


@contextmanager
def _opened(path: Path, data: Path) -> Iterator[int]:
    """A descriptor of it. `data` may be a link, and so may what leads there or to a unit; nothing below it, nor `path`."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    start = data if path.is_relative_to(data) else path.parent
    descriptor = os.open(start, flags)
    try:
        for part in path.relative_to(start).parts:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _put_aside(paths: Sequence[Path]) -> None:
    """All of them, before systemd goes on and comes upon the next. It passes over a name that ends otherwise."""
    kept = []
    try:
        for path in paths:
            kept.append(name_aside(path, time.time()))
            path.rename(kept[-1])
    except OSError as e:
        raise CtlError("FixFailed", f"{e.filename} cannot be renamed: {e.strerror}") from None
    finally:
        for path in kept:
            free(path)


def _unit_job(method: str) -> None:
    bus = Bus(autostart=False)
    bus.watch(f"sender='{SYSTEMD}',interface='{SYSTEMD}.Manager',member='JobRemoved'")

    def manager(member: str, signature: str = "", *body: str) -> Call:
        return Call("/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", member, signature, body, SYSTEMD)

    bus.try_call(manager("Subscribe"))
    bus.try_call(manager("ResetFailedUnit", "s", UNIT))
    (job,) = bus.call(manager(method, "ss", UNIT, "replace"), _SECONDS)
    while (signal := bus.next_signal(_SECONDS)) is not None:
        if signal.member == "JobRemoved" and signal.body[1] == job:
            if signal.body[3] == "done":
                return
            break
    raise CtlError("FixFailed", f"{UNIT} did not start; see 'journalctl --user -u {UNIT}'")
