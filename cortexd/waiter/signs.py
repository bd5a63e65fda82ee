"""What shows from inside a model's unit that its server is on its way: read here, judged here, on two readings.

Signs of progress are memory that grows beyond all it had before, and the hint: a file that cortexd touches when it sees
what is hidden in here (bytes read, log lines, GPU memory). CPU time alone is a weak sign, since a deadlocked server spins.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from pathlib import Path

GROWTH = 1 << 20
"""Bytes of new memory that are a sign: less may be a thread's stack or a log's buffer."""

BUSY = 0.1
"""Cores in use that are a weak sign; the waiter itself needs a hundredth."""

_MAX_PROCESSES = 256
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen at one moment; 0 where it cannot be seen."""

    when: float = 0.0
    charged: int = 0
    """Bytes of memory that the control group has, its files' pages in the cache included (memory.current)."""
    reclaimed: int = 0
    """Bytes that were taken from it again: at its limit a server loads on while `charged` stays as it is."""
    resident: int = 0
    """The sum of what its processes map; pages that were in the cache before are charged to nobody anew."""
    cpu: float = 0.0
    """Seconds."""
    hint: int = 0
    """When cortexd last touched the hint."""

    @property
    def memory(self) -> int:
        """For people."""
        return self.charged or self.resident


class Sign(enum.Enum):
    """What a reading says."""

    NONE = enum.auto()
    WEAK = enum.auto()
    PROGRESS = enum.auto()


class Signs:
    """Compares each reading with what was seen before."""

    def __init__(self, first: Reading) -> None:
        self._last = first
        self._peak = [first.charged + first.reclaimed, first.resident]

    def judge(self, new: Reading) -> Sign:
        """Whether `new` shows progress."""
        last, self._last = self._last, new
        grown = False
        for i, value in enumerate((new.charged + new.reclaimed, new.resident)):
            if value >= self._peak[i] + GROWTH:
                self._peak[i], grown = value, True
        if grown or new.hint != last.hint:
            return Sign.PROGRESS
        passed = new.when - last.when
        return Sign.WEAK if passed > 0 and new.cpu - last.cpu >= BUSY * passed else Sign.NONE


def read(when: float, group: Path | None, hint: Path | None) -> Reading:
    """Look at the control group's files and processes (cgroup v2; proc(5)) and at the hint."""
    stat = _fields(group, "memory.stat")
    return Reading(
        when=when,
        charged=_fields(group, "memory.current").get("", 0),
        reclaimed=stat.get("pgsteal", 0) * _PAGE,
        resident=_resident(group),
        cpu=_fields(group, "cpu.stat").get("usage_usec", 0) / 1e6,
        hint=_touched(hint),
    )


def _fields(group: Path | None, name: str) -> dict[str, int]:
    """The numbers of a flat-keyed file, by name; that of a single value by an empty one."""
    if group is None:
        return {}
    try:
        lines = (group / name).read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        key, _, value = line.rpartition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def _resident(group: Path | None) -> int:
    """Of all its processes but this one."""
    if group is None:
        return 0
    total = 0
    try:
        pids = (group / "cgroup.procs").read_text().split()[:_MAX_PROCESSES]
    except OSError:
        return 0
    for pid in pids:
        if pid != str(os.getpid()):
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
            except (OSError, IndexError, ValueError):
                continue
    return total


def _touched(hint: Path | None) -> int:
    try:
        return hint.stat().st_mtime_ns if hint else 0
    except OSError:
        return 0
