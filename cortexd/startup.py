"""Looks at servers that start, and tells the waiter in their unit what its namespace hides from it: bytes read and written,
new lines in the log, GPU memory. A model's hint, a file that the waiter watches, is touched as long as something moves.

Nothing depends on it while cortexd is dead: the waiter has signs of its own (cortexd/waiter/signs.py). No state is kept but
the last look, so that a restarted daemon goes on after two looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cortexd import bounded, gpus
from cortexd.names import hint_folder
from cortexd.systemd.cgroup import mount_point
from cortexd.systemd.protocol import UnitState
from cortexd.units.render import HINT_FILE

log = logging.getLogger(__name__)

PERIOD = 3.0
"""Seconds from one look at a starting model's processes to the next."""

SLOW_PERIOD = 9.0
"""The same for its log and the GPU: each is a program to run."""

_LOOKS, _HURRY = 4, 0.5  # looks within a stall, of which two see a change; seconds between two looks at least
_GROWTH = 1 << 20  # bytes; the answers to the waiter's own questions are less
_DEADLINE = 5.0
_MAX_OUTPUT = 1 << 18
_MAX_PROCESSES = 256
_COMMANDS = 4  # at a time


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of one run at a look."""

    copied: int = 0
    """Bytes that went through read(2) and write(2) and their like: from the page cache, too."""
    stored: int = 0
    """Bytes that came from disks and went there: pages of mapped files, too."""
    line: bytes = b""
    """The last line of its log."""
    gpu: int = 0
    """Bytes."""


def compare(mark: Sample, new: Sample) -> tuple[bool, Sample]:
    """Whether the run got on since `mark`, and what the next sample is to be compared with.

    Less than a sign's worth adds up from look to look. Sums fall when a process of the run ends, and begin anew there.
    """
    moved, marks = new.line != mark.line, {}
    for name in ("copied", "stored", "gpu"):
        before, now = getattr(mark, name), getattr(new, name)
        grown = now >= before + _GROWTH
        moved |= grown
        # What is freed and taken again is no progress; what ended is not coming back.
        marks[name] = now if grown or (now < before and name != "gpu") else before
    return moved, replace(new, **marks)


class Startups:
    """One per daemon. `cached` is Systemd.cached."""

    def __init__(self, runtime: Path | None, cached: Callable[[str], UnitState]) -> None:
        self._runtime, self._cached = runtime, cached
        self._marks: dict[str, tuple[str, Sample | None]] = {}
        self._units: dict[str, tuple[str, float]] = {}
        """Names of units, and how long they may stall, in seconds."""
        self._commands = asyncio.Semaphore(_COMMANDS)
        self._task: asyncio.Task[None] | None = None

    def follow(self, model: str, unit: UnitState, stall: float) -> None:
        """Take note of a model's unit: it is looked at while its waiter waits, and no longer. `stall`: after so many seconds
        without a sign of progress that gives up."""
        if self._runtime is None or unit.sub_state != "start-post":
            self.forget(model)
            return
        if self._marks.get(model, ("", None))[0] != unit.invocation_id:
            self._marks[model] = (unit.invocation_id, None)
        self._units[model] = (unit.unit, stall)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def forget(self, model: str) -> None:
        """It starts no longer."""
        self._units.pop(model, None)
        if self._marks.pop(model, None):
            with contextlib.suppress(OSError):
                self._hint(model).unlink()

    async def close(self) -> None:
        """Stop looking; hints that were given stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _hint(self, model: str) -> Path:
        assert self._runtime is not None  # or nothing is followed
        return self._runtime / hint_folder(model) / HINT_FILE

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        last = float("-inf")
        while self._units:
            began, shortest = loop.time(), min(stall for _, stall in self._units.values())
            slow = began - last >= pause(shortest, SLOW_PERIOD)
            held = await gpus.memory() if slow else {}
            await asyncio.gather(*(self._look(model, held, slow) for model in [*self._units]))
            last = began if slow else last
            await asyncio.sleep(pause(shortest, PERIOD))

    async def _look(self, model: str, held: Mapping[int, int], slow: bool) -> None:
        run, mark = self._marks.get(model, ("", None))
        if not run:
            return
        unit = self._cached(self._units[model][0])
        sample, pids = await asyncio.to_thread(read_processes, unit.control_group)
        if slow:
            gpu, line = sum(held.get(pid, 0) for pid in pids), await self._last_line(run)
            sample = replace(sample, gpu=gpu, line=line)
        elif mark:
            sample = replace(sample, gpu=mark.gpu, line=mark.line)
        if self._marks.get(model, ("", None))[0] != run:
            return  # over, or another run by now
        moved, mark = compare(mark, sample) if mark else (False, sample)
        self._marks[model] = (run, mark)
        if moved:
            try:
                touch(self._hint(model))
            except OSError as e:
                log.debug("%s: no hint to its waiter: %s", model, e)  # its unit has none, or is just over

    async def _last_line(self, run: str) -> bytes:
        """The run's last line, without its time: one that is said again and again is no progress."""
        return await self._output(
            "journalctl", "--quiet", "--no-pager", "--lines=1", "--output=cat", f"_SYSTEMD_INVOCATION_ID={run}"
        )

    async def _output(self, *command: str) -> bytes:
        async with self._commands:
            return await bounded.output(*command, seconds=_DEADLINE, limit=_MAX_OUTPUT)


def pause(stall: float, usual: float) -> float:
    """Seconds from one look to the next, where the most impatient waiter gives up after `stall` without progress."""
    return max(min(usual, stall / _LOOKS), _HURRY)


def processes(control_group: str) -> list[int]:
    """The numbers of the processes of a control group (a path below cgroup2's root)."""
    try:
        root = mount_point(Path("/proc/self/mountinfo").read_text())
        group = root / control_group.lstrip("/") if root and control_group.strip("/") else None
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()][:_MAX_PROCESSES] if group else []
    except (OSError, ValueError):
        return []


def read_processes(control_group: str) -> tuple[Sample, list[int]]:
    """What the processes of a control group have read and written (proc(5)), and their numbers."""
    pids = processes(control_group)
    sums = dict.fromkeys(("rchar", "wchar", "read_bytes", "write_bytes"), 0)
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/io").read_text().splitlines():
                name, _, value = line.partition(": ")
                if name in sums:
                    sums[name] += int(value)
    copied, stored = sums["rchar"] + sums["wchar"], sums["read_bytes"] + sums["write_bytes"]
    return Sample(copied=copied, stored=stored), pids


def touch(file: Path) -> None:
    """Make it, or change its time; OSError where its folder is not there, or something else is in its place."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)
