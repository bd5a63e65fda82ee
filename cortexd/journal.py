"""The last lines of a run, kept in a file of ours when it fails: the journal forgets, and other models flood it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cortexd import bounded

log = logging.getLogger(__name__)

LINES = 200
MAX_BYTES = 256 * 1024
KEEP_FILES = 10
"""Of each model."""

_DEADLINE = 5.0  # seconds to wait for the journal, which gets its lines a moment late
_POLL = 0.1
_MAX_READ = 16 * 1024 * 1024
"""Bytes: more than so many lines of the manager's, or 200 of a server's."""


async def save_run(folder: Path, model: str, invocation_id: str, began: int) -> Path | None:
    """Write the run's last lines, the manager's own included, to `folder`/model/TIME-RUN.log; None if there are none."""
    text = await _last_lines(model, invocation_id, began)
    if not text:
        return None
    return await asyncio.to_thread(_write, folder / model, invocation_id, text[-MAX_BYTES:])


async def _last_lines(model: str, invocation_id: str, began: int) -> bytes:
    """The run's lines, once the manager's own about its end are among them."""
    deadline = time.monotonic() + _DEADLINE
    while True:
        told = await _journalctl("UNIT_RESULT", f"USER_INVOCATION_ID={invocation_id}")
        if told or time.monotonic() > deadline:
            return await read_run(model, invocation_id, began)
        await asyncio.sleep(_POLL)


async def read_run(model: str, invocation_id: str, began: int) -> bytes:
    """A run's last lines as they are in the journal now. It does not know the run of a line whose process is gone by
    then, only its identifier, so what came under that one since the run began counts, too."""
    run, manager = f"_SYSTEMD_INVOCATION_ID={invocation_id}", f"USER_INVOCATION_ID={invocation_id}"
    others = ["+", f"SYSLOG_IDENTIFIER=cortex-{model}", f"_UID={os.getuid()}"] if began else []
    matches = [run, "+", manager, *others]
    # Together with --since, journalctl 252 counts --lines from there on: what is wanted are the last ones, so where they
    # begin is asked for first, newest first.
    since = f"--since=@{began / 1e6:.6f}"
    form = ["--output=json", "--output-fields=PRIORITY", "--reverse", f"--lines={LINES}"]
    newest = (await _run([*form, since, *matches])).splitlines()
    if not newest:
        return b""
    try:
        since = f"--since=@{int(json.loads(newest[-1])['__REALTIME_TIMESTAMP']) / 1e6:.6f}"
    except (KeyError, TypeError, ValueError) as e:
        log.warning("the journal's answer is not understood: %s", e)
    return await _run(["--output=short-iso", since, *matches])


class What(StrEnum):
    """What the user's manager says of a run. It says nothing of one that ended well."""

    BEGAN = "began"
    READY = "ready"
    FAILED = "failed"
    AGAIN = "again"
    """The run is over and systemd starts the next one by itself."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One word of the user's manager about a run. `time`: microseconds since the epoch; `result`: systemd's, where it
    failed."""

    unit: str
    run: str
    time: int
    what: What
    result: str = ""


_MESSAGES = {
    "7d4958e842da4a758f6c1cdc7b36dcc5": What.BEGAN,
    "39f53479d3a045ac8e11786248231fbf": What.READY,
    "d9b373ed55a64feb8242e02dbe79a49c": What.FAILED,
    "5eb03494b6584870a536b337290809b3": What.AGAIN,
}
"""systemd's message ids (sd-messages.h)."""

_RESULTS = frozenset(
    (
        "exit-code", "signal", "core-dump", "timeout", "oom-kill", "protocol", "resources", "watchdog", "start-limit-hit",
        "exec-condition",
    )
)  # fmt: skip
"""systemd's results of a run that failed (systemd.service(5))."""

_BY_MANAGER = "_SYSTEMD_USER_UNIT=init.scope"
"""The user's manager is in a control group of its own, which journald tells by itself: a model can send every other field
that systemd's lines have."""

_MAX_ENTRIES = 20_000


async def runs(since: int) -> list[Entry]:
    """What the manager has said of runs since then (microseconds since the epoch), oldest first, of all units."""
    matches = [*(f"MESSAGE_ID={number}" for number in _MESSAGES), f"_UID={os.getuid()}", _BY_MANAGER]
    fields = "USER_UNIT,USER_INVOCATION_ID,MESSAGE_ID,UNIT_RESULT"
    form = ["--output=json", f"--output-fields={fields}", f"--lines={_MAX_ENTRIES}"]
    text = await _run([*form, f"--since=@{since / 1e6:.6f}", *matches])
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            what = _MESSAGES[entry["MESSAGE_ID"]]
            unit, run = str(entry["USER_UNIT"]), str(entry["USER_INVOCATION_ID"])
            result = str(entry.get("UNIT_RESULT", ""))
            result = result if result in _RESULTS else ""
            found.append(Entry(unit, run, int(entry["__REALTIME_TIMESTAMP"]), what, result))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return found


async def _journalctl(field: str, *matches: str) -> bytes:
    form = ["--output=cat", f"--output-fields={field}"] if field else ["--output=short-iso"]
    return await _run([f"--lines={LINES}", *form, *matches])


async def _run(arguments: Sequence[str]) -> bytes:
    command = ("journalctl", "--quiet", "--no-pager", *arguments)
    try:
        return await bounded.printed(*command, seconds=_DEADLINE, limit=_MAX_READ)
    except TimeoutError:
        log.warning("the journal cannot be read: journalctl did not end within %g s", _DEADLINE)
    except OSError as e:
        log.warning("the journal cannot be read: journalctl cannot be run: %s", e)
    return b""


def _write(folder: Path, invocation_id: str, text: bytes) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{invocation_id}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    for old in sorted(folder.glob("*.log"))[:-KEEP_FILES]:
        old.unlink(missing_ok=True)
    return path
