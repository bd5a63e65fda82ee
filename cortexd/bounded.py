"""Looking at files and running programs without being held by them: a file system may never answer, nor a program end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
Began = Callable[[asyncio.subprocess.Process], None]

_DRAIN_SECONDS = 1.0
_MAX_THREADS = 32
_running = threading.Semaphore(_MAX_THREADS)


def unwaiting(path: str, flags: int) -> int:
    """An opener for open(), which then closes also what it refuses (a folder): a FIFO would let us wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def unlinked(path: str, flags: int) -> int:
    """The same, for what may not be a link."""
    return unwaiting(path, flags | os.O_NOFOLLOW)


_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs", "overlay"})
"""File systems of this machine's own disks and memory, by the kernel's names."""


def on_local_disk(path: Path) -> bool:
    """Whether it is certain that no other machine and no other process is asked for a file there (mountinfo in proc(5)); blocking."""
    try:
        device = path.stat().st_dev
        mounts = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return False
    numbers = f"{os.major(device)}:{os.minor(device)}"
    kinds = {fields[fields.index("-") + 1] for fields in mounts if fields[2] == numbers}
    return bool(kinds) and kinds <= _LOCAL


async def in_thread(seconds: float, function: Callable[[], _T]) -> _T:
    """What `function` returns or raises, or TimeoutError after `seconds`, or at once where too many hang already.

    The thread is one of its own that nobody waits for: those of the event loop's pool are few, and joined at the end.
    """
    if not _running.acquire(blocking=False):
        raise TimeoutError
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def settle(value: _T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)  # type: ignore[arg-type]
        else:
            result.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as e:
            error = e
        finally:
            _running.release()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, value, error)

    try:
        threading.Thread(target=work, name="diagnosis", daemon=True).start()
    except RuntimeError:  # no more threads: TasksMax=
        _running.release()
        raise TimeoutError from None
    async with asyncio.timeout(seconds):
        return await result


async def output(*command: str, seconds: float, limit: int, began: Began | None = None) -> bytes:
    """The first `limit` bytes of what a program prints; nothing if it cannot be run, or takes longer than `seconds`."""
    try:
        return await printed(*command, seconds=seconds, limit=limit, began=began)
    except (OSError, TimeoutError):
        return b""


async def printed(*command: str, seconds: float, limit: int, began: Began | None = None) -> bytes:
    """The first `limit` bytes of what a program prints. Raises OSError if it cannot be run, and TimeoutError if it takes
    longer than `seconds`: then it is killed, which may not end it at once. `began` is called with its process."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    if began:
        began(process)
    try:
        async with asyncio.timeout(seconds):
            found = b""
            while len(found) < limit and (more := await process.stdout.read(limit - len(found))):
                found += more
            if len(found) < limit:
                # It ends by itself: a signal now would take its exit status away from the event loop.
                await process.wait()
            return found
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # Its end is not seen before its output is read to the end; who has inherited that may keep it open.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    while await process.stdout.read(65536):
                        pass
                    await process.wait()
