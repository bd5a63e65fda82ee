"""The one way to know what a sandbox lets a server see and write: a unit with the same sandbox that tries it.

The unit is a runtime one (systemd.unit(5)) of a name that no model's has, made for one look and removed after it; what
a daemon that was killed left there is removed by the next one.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cortexd.bounded import in_thread
from cortexd.diagnosis import inside
from cortexd.errors import CortexError
from cortexd.names import CHECK_PREFIX, SLICE
from cortexd.registered import Model
from cortexd.scope import Scope
from cortexd.systemd.protocol import Systemd, UnitState
from cortexd.units import files, quoting
from cortexd.units.render import Tools, sandbox_lines

_SECONDS = 10.0
_FILE_SECONDS = 5.0
_MAX_READ = 500  # paths; a line of a unit file may be 1 MiB long
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Denied:
    """What the sandbox did not let through."""

    path: Path
    errno: int
    write: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """How the look from inside ended. `failure`: why there was none; empty where all was tried."""

    denied: tuple[Denied, ...] = ()
    failure: str = ""


class Sandboxes:
    """Tries what models' sandboxes let through."""

    def __init__(self, scope: Scope, tools: Tools, systemd: Systemd) -> None:
        self._scope, self._tools, self._systemd = scope, tools, systemd
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

    async def attempt(self, model: Model, reads: Sequence[Path]) -> Trial:
        """Try to run the server's program, to read `reads` and to write the folders that are there."""
        folder = self._folder
        if folder is None:
            return Trial(failure="there is no runtime folder (XDG_RUNTIME_DIR)")
        unit = f"{CHECK_PREFIX}{model.name}-{os.getpid()}-{next(_numbers)}.service"
        state = await self._systemd.refresh(model.unit)
        try:
            paths = await in_thread(_FILE_SECONDS, lambda: self._write(folder / unit, model, reads, state))
            return _read(await self._run(unit), paths)
        except (OSError, TimeoutError, CortexError) as e:
            return Trial(failure=str(e) or "its files cannot be written in time")
        finally:
            with suppress(OSError, TimeoutError, CortexError):
                await in_thread(_FILE_SECONDS, lambda: _remove(folder, unit))
                await self._systemd.refresh(unit)  # nothing is remembered of it

    def _write(self, path: Path, model: Model, reads: Sequence[Path], state: UnitState) -> list[tuple[Path, bool]]:
        """Write the unit; blocking. Returns what it tries: path, and whether to write it."""
        plan, spec = model.plan, model.spec
        there = [p for p in map(str, plan.writes) if Path(p).is_dir()]
        own = tuple(p for p in spec.hardening.read_write_paths if Path(p).is_dir())
        spec = replace(
            spec,
            hardening=replace(spec.hardening, read_write_paths=own),
            health=replace(spec.health, endpoint="/"),  # so that the sandbox lets our interpreter through
        )
        plan = replace(plan, writes=tuple(map(Path, there)))
        tools = replace(self._tools, waiter=str(Path(inside.__file__).resolve()))
        known = [p for p in reads if _encodable(p)][:_MAX_READ]
        tried = [(Path(plan.argv[0]), False), *((p, False) for p in known), *((Path(p), True) for p in (*there, *own))]
        command = [tools.env, "-i", "NOTIFY_SOCKET=${NOTIFY_SOCKET}", tools.python, "-I", "-S", tools.waiter]
        command += ["--run", plan.argv[0]]
        for p, write in tried[1:]:
            command += ["--write" if write else "--read", str(p)]
        ours = "NOTIFY_SOCKET=${NOTIFY_SOCKET}"
        line = " ".join(word if word == ours else quoting.expanded_word(word) for word in command)
        lines = sandbox_lines(spec, plan, self._scope, tools)
        files.write(path, "\n".join(["[Service]", f"Slice={SLICE}", *lines, "ExecStart=/bin/true", ""]))
        drop_ins = Path(f"{path}.d")
        drop_ins.mkdir(mode=0o700)
        for number, drop_in in enumerate(state.drop_in_paths):
            (drop_ins / f"{number:03}.conf").symlink_to(drop_in)
        (drop_ins / "zz.conf").write_text(_LAST.format(name=model.name, line=line, seconds=quoting.seconds(_SECONDS)))
        return tried

    async def _run(self, unit: str) -> UnitState:
        job = await self._systemd.start_unit(unit)
        try:
            await job.wait(_SECONDS + 5)
            return await self._systemd.refresh(unit)
        finally:
            await self._end(unit)

    async def _end(self, unit: str) -> None:
        stopping = await self._systemd.stop_unit(unit)
        await stopping.wait(_SECONDS)
        await self._systemd.reset_failed(unit)


# What a drop-in of the user's may have said of the server is not for this unit.
_LAST = """[Unit]
Description=What the sandbox of model {name} lets through

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


def _read(state: UnitState, tried: Sequence[tuple[Path, bool]]) -> Trial:
    """What the unit's end and its status say. Pure."""
    said = state.status_text
    if state.active_state != "active" or not re.fullmatch(r"ok|\d+:\d+( \d+:\d+)*", said):
        return Trial(failure=_failure(state))
    pairs = [tuple(map(int, word.split(":"))) for word in said.split()] if said != "ok" else []
    return Trial(tuple(Denied(tried[n][0], errno, tried[n][1]) for n, errno in pairs if n < len(tried)))


def _failure(state: UnitState) -> str:
    if state.exec_main_status in _STATUSES:
        return f"systemd cannot set it up (status {state.exec_main_status}/{_STATUSES[state.exec_main_status]})"
    return f"the look from inside ended with {state.result or 'nothing'} (status {state.exec_main_status})"


_STATUSES = {203: "EXEC", 217: "USER", 218: "CAPABILITIES", 226: "NAMESPACE", 243: "CREDENTIALS"}
"""Of systemd's own exit statuses (systemd.exec(5)), those of a sandbox that cannot be made."""


def _encodable(path: Path) -> bool:
    try:
        return str(path).encode() is not None and "\0" not in str(path)
    except UnicodeEncodeError:
        return False


def _remove(folder: Path, pattern: str) -> None:
    for path in (*folder.glob(pattern), *folder.glob(f"{pattern}.d")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
