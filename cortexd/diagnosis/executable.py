"""Whether a server's program runs at all: asked for its version, in a process group of its own, bounded in time and bytes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAX_OUTPUT = 16 << 10  # bytes of standard error that are kept
_KEPT = ("HOME", "USER", "LANG", "LC_ALL", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
"""What a model's unit has from its manager, and programs need to run."""
_MAX_REMEMBERED = 256
_NOT_EXECUTABLE = 126  # a shell's word for it


@dataclass(frozen=True, slots=True)
class Version:
    """How a program answered. `status` as subprocess has it: negative for a signal; None: not within the bound."""

    status: int | None
    said: str = ""
    """The first line of its standard error."""


class Versions:
    """Asks programs, and remembers what runs: nothing is asked twice of a file that is the same, in the same environment."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Version] = {}
        self._asking = threading.Lock()
        """One at a time: models often share a program, and several of them would take longer than one."""

    def ask(
        self, argv: Sequence[str], environment: Mapping[str, str], seconds: float, *, patient: bool = False
    ) -> Version:
        """Run it and see how it ends; blocking. What once took too long is asked again only by a `patient` caller, and
        what did not run always: the fault may lie elsewhere and be mended. Raises OSError where it is not there."""
        file = Path(argv[0]).stat()
        key = (*argv, *sorted(environment.items()), file.st_mtime_ns, file.st_size, file.st_ino)
        known = self._known.get(key)
        if known is not None and (known.status == 0 or not patient):
            return known
        deadline = time.monotonic() + seconds
        if not self._asking.acquire(timeout=seconds):
            return Version(None)
        try:
            known = self._known.get(key)
            if known is None or (known.status is None and patient):
                known = _ask(argv, environment, deadline)
                if known.status in (0, None):
                    if len(self._known) >= _MAX_REMEMBERED:
                        self._known.clear()
                    self._known[key] = known
            return known
        finally:
            self._asking.release()


def surroundings(plan: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The environment to ask in: the unit's own variables over those of the manager's that programs need to run."""
    return {name: own[name] for name in _KEPT if name in own} | dict(plan)


def _ask(argv: Sequence[str], environment: Mapping[str, str], deadline: float) -> Version:
    try:
        process = subprocess.Popen(
            argv,
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as e:  # no program of this machine, or none at all; systemd would not run it either
        return Version(_NOT_EXECUTABLE, e.strerror or "")
    assert process.stderr is not None
    try:
        output, ended = _listen(process, process.stderr.fileno(), deadline)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so that the number is still its group's
        process.wait()
        process.stderr.close()
    return Version(process.returncode, _first_line(output)) if ended else Version(None)


def _listen(process: subprocess.Popen[bytes], pipe: int, deadline: float) -> tuple[bytes, bool]:
    """The beginning of what it says until it has ended, and whether it has; the rest is read, so that it never waits for us."""
    os.set_blocking(pipe, False)
    kept = b""
    end = os.pidfd_open(process.pid)
    watched = select.poll()  # select() knows no descriptor above 1023
    for descriptor in (pipe, end):
        watched.register(descriptor, select.POLLIN)
    try:
        while (left := deadline - time.monotonic()) > 0:
            ready = {descriptor for descriptor, _ in watched.poll(left * 1000)}
            if pipe in ready:
                with suppress(BlockingIOError):
                    data = os.read(pipe, _MAX_OUTPUT)
                    kept = (kept + data)[:_MAX_OUTPUT]
                    if not data:
                        watched.unregister(pipe)
            elif end in ready:
                return kept, True
        return kept, False
    finally:
        os.close(end)


def _first_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in lines if line.strip()), "")
