"""What one run said, and systemd of it: read from the journal, and of a failed run kept in a file of ours, since the
journal forgets, and other models flood it.

Only what journald itself knows of a sender makes a line one of the run (journal.py). Of a process that is gone by the time
it looks, it knows nothing but the number and the connection. What came over a connection that the run's other lines came
over is the run's; where there are none (a server that dies at its first word), what bears its identifier is taken for its
last words, if nothing says that it is another's. Such a line never counts as systemd's.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cortexd import journal, owned
from cortexd.journal import BY_MANAGER, MINE, RESULTS, Record, records, time_of
from cortexd.names import model_name
from cortexd.systemd.protocol import UnitState

LINES = 200
MAX_BYTES = 256 * 1024
KEEP_FILES = 10
"""Of each model."""

_PATIENCE = 5.0  # seconds to wait for the journal, which gets its lines a moment late
_POLL = 0.1

_EXITED, _FAILED = "98e322203f7a4ed290d09fe03c09fe15", "d9b373ed55a64feb8242e02dbe79a49c"
_STOPPING, _STOPPED = "de5b426a63be47a7b6ac3eaac82e2f6f", "9d1aaa27d60140bd96365438aad20286"
"""systemd's message ids (sd-messages.h). A server that ends by itself with status 0 has none."""

_CODES = {"exited": 1, "killed": 2, "dumped": 3}
"""As systemd writes CLD_EXITED, CLD_KILLED and CLD_DUMPED."""

_OWN = ("_SYSTEMD_USER_UNIT", "_SYSTEMD_INVOCATION_ID")
_FIELDS = (
    "MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "_PID", "_STREAM_ID", "UNIT_RESULT", "EXIT_CODE", "EXIT_STATUS",
    *_OWN,
)  # fmt: skip

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_MAX_TEXT = 16 * 1024  # characters of an entry


@dataclass(frozen=True, slots=True)
class RunLine:
    """A line. `time`: microseconds since the epoch; `manager`: systemd said it, not the model's processes; `text` has
    nothing in it that could steer a terminal."""

    time: int
    sender: str
    text: str
    manager: bool = False


@dataclass(frozen=True, slots=True)
class RunLog:
    """The last lines of a run, oldest first. `end`: how it ended, as far as the manager's own lines tell; `stopped`: the
    manager was told to stop it, before it had failed; `lost`: why lines may be missing, empty where none can be."""

    lines: tuple[RunLine, ...] = ()
    end: UnitState | None = None
    stopped: bool = False
    lost: str = ""

    @property
    def text(self) -> bytes:
        """As a file keeps it: time, sender and message of each line, with what was lost said first."""
        head = [f"({self.lost})"] if self.lost else []
        return "".join(f"{line}\n" for line in [*head, *map(_shown, self.lines)]).encode(errors="replace")[-MAX_BYTES:]


async def read(unit: str, run: str, began: int, ended: int = 0) -> RunLog:
    """The log of a run of `unit` as it is in the journal now; `began` and `ended`, where they are known, are microseconds
    since the epoch."""
    manager, own = f"USER_INVOCATION_ID={run}", f"_SYSTEMD_INVOCATION_ID={run}"
    known = await records([own, MINE, "+", manager, *BY_MANAGER], _FIELDS, lines=LINES)
    told = [record for record in known if _is_managers(record)]
    began = began or next(map(time_of, told), 0)
    orphans = await _orphans(unit, run, began, known) if began else []
    last = sorted([*known, *orphans], key=time_of)[-LINES:]
    lines = tuple(line for record in last for line in _lines(record))
    flood = await _flood(ended, last) if ended else None
    return RunLog(
        lines,
        _end(unit, run, began, told),
        _was_stopped(told),
        _lost(unit, flood, told) if flood else "",
    )


async def read_ended(unit: str, run: str, began: int, ended: int) -> RunLog:
    """The same of a run that has just ended, once the manager's own line about that is there, or it is late."""
    deadline = time.monotonic() + _PATIENCE
    matches = [f"USER_INVOCATION_ID={run}", f"MESSAGE_ID={_FAILED}", f"MESSAGE_ID={_STOPPED}", *BY_MANAGER]
    while True:
        told = await records(matches, ["MESSAGE_ID"], lines=1)
        if told or time.monotonic() > deadline:
            return await read(unit, run, began, ended)
        await asyncio.sleep(_POLL)


def save(logs: Path, model: str, run: str, ended: int, text: bytes) -> None:
    """Write a run's log to `logs`/model/TIME-RUN.log, in the place of what was saved of it before; the oldest go. `ended`:
    microseconds since the epoch. Blocking; raises OSError."""
    when = time.strftime("%Y%m%dT%H%M%S", time.localtime(ended / 1e6))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with owned.opened(logs, model, make=True) as folder:
        before = next((name for name in _names(folder) if name.endswith(f"-{run}.log")), "")
        with os.fdopen(os.open(before or f"{when}-{run}.log", flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(text)
        for old in sorted(name for name in _names(folder) if name.endswith(".log"))[:-KEEP_FILES]:
            os.unlink(old, dir_fd=folder)


def forget(logs: Path, model: str) -> None:
    """Remove a model's logs. Blocking; what is no folder of ours stays."""
    with suppress(OSError):
        with owned.opened(logs, model) as folder:
            for name in _names(folder):
                os.unlink(name, dir_fd=folder)
        (logs / model).rmdir()


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


async def _orphans(unit: str, run: str, began: int, known: Sequence[Record]) -> list[Record]:
    """The lines of processes of the run that were gone when journald looked who they were."""
    streams = {str(record["_STREAM_ID"]) for record in known if "_STREAM_ID" in record and not _is_managers(record)}
    words = [f"_STREAM_ID={stream}" for stream in sorted(streams)[:LINES]]
    words = words or [f"SYSLOG_IDENTIFIER={unit.removesuffix('.service')}", "_TRANSPORT=stdout"]
    # What systemd's process for the server says before it is the server: why it cannot become it.
    step = ["+", f"USER_INVOCATION_ID={run}", MINE]
    found = await records([*words, MINE, *step], _FIELDS, lines=LINES, since=began)
    return [record for record in found if not any(field in record for field in _OWN)]


def _is_managers(record: Record) -> bool:
    return record.get("_SYSTEMD_USER_UNIT") == "init.scope"


def _lines(record: Record) -> list[RunLine]:
    identifier = _text(record, "SYSLOG_IDENTIFIER")
    pid = _text(record, "_PID")
    sender = f"{identifier}[{pid}]" if pid else identifier
    # Until it runs the program, the process that systemd forked is called "(program)".
    manager = _is_managers(record) or identifier.startswith("(")
    message = _SEQUENCE.sub("", _text(record, "MESSAGE")).splitlines()
    clean = ("".join(c if c.isprintable() else " " for c in line).rstrip() for line in message)
    return [RunLine(time_of(record), sender, line, manager) for line in clean if line]


def _text(record: Record, field: str) -> str:
    value = record.get(field)
    if isinstance(value, list):  # bytes that are no text, or several values
        try:
            value = bytes(value[:_MAX_TEXT]).decode(errors="replace")
        except (TypeError, ValueError):
            value = value[-1]
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _was_stopped(told: Sequence[Record]) -> bool:
    ids = [record.get("MESSAGE_ID") for record in told]
    return _STOPPING in ids and _FAILED not in ids[: ids.index(_STOPPING)]  # else it was in the pause after it


def _end(unit: str, run: str, began: int, told: Sequence[Record]) -> UnitState | None:
    """What systemd would say of the unit after that run."""
    over = [record for record in told if record.get("MESSAGE_ID") in (_FAILED, _STOPPED)]
    if not over:
        return None
    result = _text(over[-1], "UNIT_RESULT")
    state = UnitState(
        unit=unit, active_state="inactive", invocation_id=run, exec_main_start=began, state_change=time_of(over[-1])
    )
    if over[-1].get("MESSAGE_ID") == _FAILED:
        known = result if result in RESULTS else "exit-code"
        state = replace(state, active_state="failed", sub_state="failed", result=known)
    for record in told:
        code, status = _CODES.get(_text(record, "EXIT_CODE")), _text(record, "EXIT_STATUS")
        main = record.get("MESSAGE_ID") == _EXITED and ": Main process " in _text(record, "MESSAGE")
        if main and code and status.isascii() and status.isdigit():
            state = replace(state, exec_main_code=code, exec_main_status=int(status[:3]))
    return state


async def _flood(ended: int, known: Sequence[Record]) -> journal.Flood | None:
    """Whether lines of the run may be missing at its end. Its own have the level that their like have; where none is there,
    they may have been of any."""
    levels = {str(record.get("PRIORITY")) for record in known if not _is_managers(record)}
    for level, priorities in journal.POOLS.items():
        concerns = level == "info" or not levels or not levels.isdisjoint(priorities)  # systemd's are notices and info
        if concerns and (flood := await journal.flood(ended, level)):
            return flood
    return None


def _lost(unit: str, flood: journal.Flood, told: Sequence[Record]) -> str:
    """That journald took no more lines at that time, or may have, whose lines they were, and what helps."""
    # systemd says how a process ended as a notice, of a bad exit status, and that a unit failed as a warning.
    messages = {record.get("MESSAGE_ID") for record in told}
    sure = flood.level == "info" and _FAILED in messages and _EXITED not in messages
    who = "it" if flood.unit == unit else flood.unit.removesuffix(".service") or "something"
    name = model_name(flood.unit)
    aside = f", or 'cortexctl set {name} log_level=debug'" if name and who != "it" and flood.level == "info" else ""
    return (
        f"the journal {'dropped lines' if sure else 'may have dropped lines'} at its end: it takes only so many in 30 s from "
        f"all of your services together, and {who} wrote {flood.most} of the {flood.lines} that it took; have {who} say less{aside}, "
        "or an administrator raise LogRateLimitBurst= of user@.service"
    )


def _shown(line: RunLine) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(line.time / 1e6))
    return f"{when} {line.sender}: {line.text}"
