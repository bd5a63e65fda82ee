"""The last lines of a run, kept in a file of ours when it fails: the journal forgets, and other models flood it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

LINES = 200
MAX_BYTES = 256 * 1024
KEEP_FILES = 10
"""Of each model."""

_DEADLINE = 5.0  # seconds to wait for the journal, which gets its lines a moment late
_POLL = 0.1


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


@dataclass(frozen=True, slots=True)
class End:
    """A run's end as the user's manager told it. `time`: microseconds since the epoch."""

    unit: str
    run: str
    time: int
    message: str


_END_MESSAGES = ("7ad2d189f7e94e70a38c781354912448", "d9b373ed55a64feb8242e02dbe79a49c")
"""systemd's message ids of a unit that ended well or failed (sd-messages.h)."""

_MAX_ENDS = 10_000


async def ends(since: int) -> list[End]:
    """How runs ended since then (microseconds since the epoch), oldest first, of all units that the journal tells of."""
    matches = [*(f"MESSAGE_ID={number}" for number in _END_MESSAGES), f"_UID={os.getuid()}"]
    fields = "USER_UNIT,USER_INVOCATION_ID,MESSAGE,UNIT_RESULT"
    form = ["--output=json", f"--output-fields={fields}", f"--lines={_MAX_ENDS}"]
    text = await _run([*form, f"--since=@{since / 1e6:.6f}", *matches])
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            unit, run = str(entry["USER_UNIT"]), str(entry["USER_INVOCATION_ID"])
            result = (
                f"it ended with the result {entry['UNIT_RESULT']!r}" if "UNIT_RESULT" in entry else "it ended by itself"
            )
            found.append(End(unit, run, int(entry["__REALTIME_TIMESTAMP"]), result))
        except (KeyError, TypeError, ValueError):
            continue
    return found


async def _journalctl(field: str, *matches: str) -> bytes:
    form = ["--output=cat", f"--output-fields={field}"] if field else ["--output=short-iso"]
    return await _run([f"--lines={LINES}", *form, *matches])


async def _run(arguments: Sequence[str]) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            "journalctl", "--quiet", "--no-pager", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as e:
        log.warning("the journal cannot be read: journalctl cannot be run: %s", e)
        return b""
    try:
        async with asyncio.timeout(_DEADLINE):
            return (await process.communicate())[0]
    except TimeoutError:
        return b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _write(folder: Path, invocation_id: str, text: bytes) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{invocation_id}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    for old in sorted(folder.glob("*.log"))[:-KEEP_FILES]:
        old.unlink(missing_ok=True)
    return path
