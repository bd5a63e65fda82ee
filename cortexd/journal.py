"""Asking the journal, by journalctl: what the user's manager said of runs, and whether lines were lost.

Any process may send a line with any field whose name does not begin with "_", a message id or another unit's name among
them. Those that begin with it are journald's own, of what the kernel says of the sender (systemd.journal-fields(7)): by
these alone is decided who said a line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cortexd import bounded

log = logging.getLogger(__name__)

_DEADLINE = 5.0  # seconds
_MAX_READ = 16 * 1024 * 1024
"""Bytes: more than so many lines of the manager's, or 200 of a server's."""

MINE = f"_UID={os.getuid()}"
BY_MANAGER = (MINE, "_SYSTEMD_USER_UNIT=init.scope")
"""The user's manager is in a control group of its own."""

Record = Mapping[str, Any]
"""A line of the journal: a field's value is text, or a list of bytes where it is none (journalctl(1), --output=json)."""


async def records(
    matches: Sequence[str], fields: Sequence[str], *, lines: int, since: int = 0, until: int = 0
) -> list[Record]:
    """The last lines that match, oldest first; between two times, in microseconds since the epoch. None where the journal
    cannot be read or does not answer in time, which is logged."""
    form = ["--output=json", "--all", f"--output-fields={','.join(fields)}", "--reverse", f"--lines={lines}"]
    found = []
    for line in (await _run([*form, *_between(since, until), *matches])).splitlines():
        try:
            record = json.loads(line)
            int(record["__REALTIME_TIMESTAMP"])
        except (KeyError, TypeError, ValueError):
            continue  # cut off, or none
        found.append(record)
    found.reverse()
    return sorted(found, key=time_of)  # two journal files may be read side by side


def time_of(record: Record) -> int:
    """When journald got it: microseconds since the epoch."""
    return int(record["__REALTIME_TIMESTAMP"])


class What(StrEnum):
    """What the user's manager says of a run. It says nothing of one that ended by itself and well."""

    BEGAN = "began"
    READY = "ready"
    FAILED = "failed"
    AGAIN = "again"
    """The run is over and systemd starts the next one by itself."""
    STOPPING = "stopping"
    """The manager was told to stop it, or to start it anew."""
    STOPPED = "stopped"
    """The manager was told to stop it, and has."""
    LIMIT = "limit"
    """Nothing that it says: it has said FAILED a second time, since its own limit of starts keeps it from starting the next one
    (measured on 252)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One word of the user's manager about a run. `time`: microseconds since the epoch; `monotonic`: microseconds of
    CLOCK_MONOTONIC; `result`: systemd's, where it failed; `restarts`: its count, with AGAIN, the start that comes among them."""

    unit: str
    run: str
    time: int
    what: What
    result: str = ""
    monotonic: int = 0
    restarts: int = 0


_MESSAGES = {
    "7d4958e842da4a758f6c1cdc7b36dcc5": What.BEGAN,
    "39f53479d3a045ac8e11786248231fbf": What.READY,
    "d9b373ed55a64feb8242e02dbe79a49c": What.FAILED,
    "5eb03494b6584870a536b337290809b3": What.AGAIN,
    "de5b426a63be47a7b6ac3eaac82e2f6f": What.STOPPING,
    "9d1aaa27d60140bd96365438aad20286": What.STOPPED,
}
"""systemd's message ids (sd-messages.h)."""

RESULTS = frozenset(
    (
        "exit-code", "signal", "core-dump", "timeout", "oom-kill", "protocol", "resources", "watchdog", "start-limit-hit",
        "exec-condition",
    )
)  # fmt: skip
"""systemd's results of a run that failed (systemd.service(5))."""

_MAX_ENTRIES = 20_000


async def runs(since: int) -> list[Entry]:
    """What the manager has said of runs since then (microseconds since the epoch), oldest first, of all units."""
    matches = [*(f"MESSAGE_ID={number}" for number in _MESSAGES), *BY_MANAGER]
    fields = ("USER_UNIT", "USER_INVOCATION_ID", "MESSAGE_ID", "UNIT_RESULT", "JOB_TYPE", "N_RESTARTS")
    found = []
    for record in await records(matches, fields, lines=_MAX_ENTRIES, since=since):
        try:
            what = _MESSAGES[record["MESSAGE_ID"]]
            unit, run = str(record["USER_UNIT"]), str(record["USER_INVOCATION_ID"])
            monotonic, restarts = int(record.get("__MONOTONIC_TIMESTAMP", 0)), int(record.get("N_RESTARTS", 0))
        except (KeyError, TypeError, ValueError):
            continue
        if what is What.STOPPED and record.get("JOB_TYPE") != "stop":
            continue  # a restart says so, too, between two runs
        result = str(record.get("UNIT_RESULT", ""))
        result = result if result in RESULTS else ""
        found.append(Entry(unit, run, time_of(record), what, result, monotonic, restarts))
    return found


_UP = ("MESSAGE_ID=39f53479d3a045ac8e11786248231fbf", "USER_UNIT=basic.target")
"""The manager's word that it begins to start services, ours among them."""
_SOCKET = "/run/systemd/journal/socket"

_WINDOW = 30_000_000  # microseconds
_BURST = 10_000
"""journald's limit of lines in that time, which it holds all of a user's services to together (journald.conf(5),
RateLimitBurst=): at least so many, up to six times as many on a large disk. What comes above it is dropped. That it was,
journald says in the system's journal alone, which most users may not read."""

POOLS = {"info": ("5", "6"), "debug": ("7",)}
"""Levels that are held to that limit together, and apart from all others (src/journal/journald-rate-limit.c, priority_map), by
the one that a server's lines have (the setting log_level)."""


@dataclass(frozen=True, slots=True)
class Flood:
    """So many lines of the user's services that journald may have dropped some of that level (of POOLS); `most` of them wrote
    `unit`."""

    lines: int
    unit: str
    most: int
    level: str = "info"


async def flood(until: int, level: str = "info") -> Flood | None:
    """Whether journald may have dropped lines of the user's services just then (microseconds since the epoch)."""
    service = f"_SYSTEMD_UNIT=user@{os.getuid()}.service"
    form = ["--output=cat", "--output-fields=_SYSTEMD_USER_UNIT", *_between(until - _WINDOW, until)]
    text = await _run([*form, service, MINE, *(f"PRIORITY={number}" for number in POOLS[level])])
    units = Counter(text.decode(errors="replace").splitlines())
    if units.total() < _BURST:
        return None
    ((unit, most),) = units.most_common(1)
    return Flood(units.total(), unit, most, level)


def tell(unit: str, run: str, message: str) -> None:
    """Say something about a run where its log is read: `logs` and journalctl's --user-unit= show it among its lines. A
    warning, of which a flood of lines of no importance leaves room. Never waits."""
    fields = {
        "MESSAGE": message, "PRIORITY": "4", "SYSLOG_IDENTIFIER": "cortexd", "USER_UNIT": unit, "USER_INVOCATION_ID": run,
    }  # fmt: skip
    data = "".join(f"{name}={value}\n" for name, value in fields.items()).encode()
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
    ):
        sender.sendto(data, _SOCKET)


async def manager_started(since: int) -> bool:
    """Whether the journal knows that the user's manager started since then: with a login or a boot."""
    return bool(await records([*_UP, *BY_MANAGER], ["MESSAGE_ID"], lines=1, since=since))


def _between(since: int, until: int) -> list[str]:
    return [
        *([f"--since=@{since / 1e6:.6f}"] if since else []),
        *([f"--until=@{until / 1e6:.6f}"] if until else []),
    ]


async def _run(arguments: Sequence[str]) -> bytes:
    command = ("journalctl", "--quiet", "--no-pager", *arguments)
    try:
        return await bounded.printed(*command, seconds=_DEADLINE, limit=_MAX_READ)
    except TimeoutError:
        log.warning("the journal cannot be read: journalctl did not end within %g s", _DEADLINE)
    except OSError as e:
        log.warning("the journal cannot be read: journalctl cannot be run: %s", e)
    return b""
