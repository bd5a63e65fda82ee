"""The last lines of a run, kept in a file of ours when it fails: the journal forgets, and other models flood it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
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
    text = await _last_lines(invocation_id, f"SYSLOG_IDENTIFIER=cortex-{model}", began)
    if not text:
        return None
    return await asyncio.to_thread(_write, folder / model, invocation_id, text[-MAX_BYTES:])


async def _last_lines(invocation_id: str, identifier: str, began: int) -> bytes:
    """The run's lines, once the manager's own about its end are among them. The journal does not know the run of a line
    whose process is gone by then, only its identifier, so what came under that one since the run began counts, too."""
    run, manager = f"_SYSTEMD_INVOCATION_ID={invocation_id}", f"USER_INVOCATION_ID={invocation_id}"
    deadline = time.monotonic() + _DEADLINE
    while True:
        told = await _journalctl("UNIT_RESULT", manager)
        if told or time.monotonic() > deadline:
            others = ["+", identifier, f"_UID={os.getuid()}"] if began else []
            return await _journalctl("", f"--since=@{began / 1e6:.6f}", run, "+", manager, *others)
        await asyncio.sleep(_POLL)


async def _journalctl(field: str, *matches: str) -> bytes:
    form = ["--output=cat", f"--output-fields={field}"] if field else ["--output=short-iso"]
    try:
        process = await asyncio.create_subprocess_exec(
            "journalctl", "--quiet", "--no-pager", f"--lines={LINES}", *form, *matches,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as e:
        log.warning("the log of a failed run is not saved: journalctl cannot be run: %s", e)
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
