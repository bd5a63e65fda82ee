"""The one way to know what a sandbox lets through: a unit with the same sandbox that tries it.

The unit is a runtime one (systemd.unit(5)) of a name that no model's has, made for one look and removed after it; what
a daemon that was killed left there is removed by the next one.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cortexd.bounded import in_thread
from cortexd.errors import CortexError
from cortexd.names import CHECK_PREFIX, SLICE
from cortexd.registered import Model
from cortexd.scope import Scope
from cortexd.systemd.protocol import Systemd, UnitState
from cortexd.units import files, quoting
from cortexd.units.render import Tools, sandbox_lines

_SECONDS = 10.0
_FILE_SECONDS = 5.0
_numbers = itertools.count(1)

SET_UP = {217: "USER", 218: "CAPABILITIES", 226: "NAMESPACE", 228: "SECCOMP"}
"""Of systemd's own exit statuses (systemd.exec(5)), those of a sandbox that cannot be made."""
_STATUSES = {203: "EXEC", **SET_UP, 243: "CREDENTIALS"}


@dataclass(frozen=True, slots=True)
class Look:
    """What a unit of ours is made of."""

    about: str
    """For its description."""
    lines: Sequence[str]
    """Of [Service]: the sandbox, and nothing else."""
    script: Path
    """What it runs: standard library only; it says what it found as the unit's status (`inside.tell`)."""
    words: Sequence[str]
    """The script's arguments."""


def sandbox_of(model: Model, script: Path, scope: Scope, tools: Tools) -> list[str]:
    """The lines that make the model's sandbox, for a unit that runs `script`. What would have to be made first is left
    out. Blocking: looks at folders."""
    own = tuple(p for p in model.spec.hardening.read_write_paths if Path(p).is_dir())
    spec = replace(
        model.spec,
        name="check",  # the same for models that differ in their names alone
        hardening=replace(model.spec.hardening, read_write_paths=own),
        health=replace(model.spec.health, endpoint="/"),  # so that the sandbox lets our interpreter through
    )
    plan = replace(model.plan, writes=tuple(p for p in model.plan.writes if p.is_dir()))
    return sandbox_lines(spec, plan, scope, replace(tools, waiter=str(script)))


class Trials:
    """Makes such units, and ends them."""

    def __init__(self, scope: Scope, tools: Tools, systemd: Systemd) -> None:
        self._tools, self._systemd = tools, systemd
        self._folder = scope.runtime / "systemd" / "user" if scope.runtime else None

    async def clean_up(self) -> None:
        """Remove what a daemon that was killed left."""
        folder = self._folder
        if folder is None:
            return
        with suppress(OSError, TimeoutError):
            for path in await in_thread(_FILE_SECONDS, lambda: list(folder.glob(f"{CHECK_PREFIX}*.service"))):
                with suppress(CortexError):
                    await self._end(path.name)
            await in_thread(_FILE_SECONDS, lambda: _remove(folder, CHECK_PREFIX + "*"))

    async def run(self, name: str, make: Callable[[], Look]) -> UnitState:
        """Run one to its end, and return the unit as it was then. `make` may block. Raises OSError where its files cannot be
        written, TimeoutError, CortexError."""
        folder = self._folder
        if folder is None:
            raise OSError("there is no runtime folder (XDG_RUNTIME_DIR)")
        unit = f"{CHECK_PREFIX}{name}-{os.getpid()}-{next(_numbers)}.service"
        begun = ended = False
        try:
            await in_thread(_FILE_SECONDS, lambda: self._write(folder / unit, make()))
            begun = True
            job = await self._systemd.start_unit(unit)
            try:
                await job.wait(_SECONDS + 5)
                return await self._systemd.refresh(unit)
            finally:
                await self._end(unit)
                ended = True
        finally:
            if ended or not begun:  # else it is for the next daemon to end, which knows it by its file
                with suppress(OSError, TimeoutError, CortexError):
                    await in_thread(_FILE_SECONDS, lambda: _remove(folder, unit))
                    await self._systemd.refresh(unit)  # nothing is remembered of it

    def _write(self, path: Path, look: Look) -> None:
        tools, ours = self._tools, "NOTIFY_SOCKET=${NOTIFY_SOCKET}"
        command = [tools.env, "-i", ours, tools.python, "-I", "-S", str(look.script), *look.words]
        line = " ".join(word if word == ours else quoting.expanded_word(word) for word in command)
        last = _LAST.format(about=look.about, line=line, seconds=quoting.seconds(_SECONDS))
        files.write(path, f"[Service]\nSlice={SLICE}\nExecStart=/bin/true\n")
        Path(f"{path}.d").mkdir(mode=0o700)
        (Path(f"{path}.d") / "zz.conf").write_text(last + "\n".join([*look.lines, ""]))

    async def _end(self, unit: str) -> None:
        stopping = await self._systemd.stop_unit(unit)
        await stopping.wait(_SECONDS)
        await self._systemd.reset_failed(unit)


# A drop-in for all services, which the user or the machine may have, comes before it.
_LAST = """[Unit]
Description={about}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecCondition=
ExecStartPre=
ExecStart=
ExecStart={line}
ExecStartPost=
ExecStop=
ExecStopPost=
EnvironmentFile=
WatchdogSec=0
Restart=no
TimeoutStartSec={seconds}
TimeoutStopSec=5
NotifyAccess=main
SyslogIdentifier=cortexd-check
"""


def failure(state: UnitState) -> str:
    """Why a look said nothing. Pure."""
    if state.exec_main_status in _STATUSES:
        return f"systemd cannot set it up (status {state.exec_main_status}/{_STATUSES[state.exec_main_status]})"
    return f"the look from inside ended with {state.result or 'nothing'} (status {state.exec_main_status})"


def _remove(folder: Path, pattern: str) -> None:
    for path in (*folder.glob(pattern), *folder.glob(f"{pattern}.d")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
