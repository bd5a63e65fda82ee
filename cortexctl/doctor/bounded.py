"""Looking without being held: several looks at once, each in a thread that is left behind when its time is over."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cortexctl.doctor.evidence import Unseen

_MAX_OUTPUT = 64 << 10  # bytes of what a program prints


def all_at_once(looks: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """What each look returns; Unseen, with the reason, for one that takes longer than `seconds` or raises.

    Threads that hang (a dead network mount, a bus that is stopped) are daemons: the program ends without them.
    """
    found: dict[str, Any] = {}

    def look(name: str, function: Callable[[], Any]) -> None:
        try:
            found[name] = function()
        except Exception as e:
            found[name] = Unseen(getattr(e, "message", "") or f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=look, args=item, daemon=True) for item in looks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    late = Unseen(f"did not answer within {seconds:g} s")
    return {name: found.get(name, late) for name in looks}


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Exit status (None: it took longer than `seconds` and was killed with all its children) and the beginning of what
    it printed on both streams. Raises OSError where it cannot be run."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )
    assert process.stdout is not None
    end = os.pidfd_open(process.pid)
    try:
        output, ended = _listen(process.stdout.fileno(), end, time.monotonic() + seconds)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet: the number is still its group's
        process.wait()
        process.stdout.close()
        os.close(end)
    return process.returncode if ended else None, output.decode("utf-8", "replace")


def _listen(pipe: int, end: int, deadline: float) -> tuple[bytes, bool]:
    """The beginning of what comes until the process has ended, whoever still holds its pipe, and whether it has."""
    output, watched = b"", [pipe]
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([*watched, end], [], [], left)
        if pipe in ready:
            data = os.read(pipe, 1 << 16)
            output = (output + data)[:_MAX_OUTPUT]
            if not data:
                watched = []
        elif end in ready:
            return output, True
    return output, False
