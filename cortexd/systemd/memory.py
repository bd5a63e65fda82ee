"""What the kernel counted about the memory of runs: limits reached, processes killed for memory.

A run's control group and its memory.events are gone when it ends, sometimes before systemd has told of its end. So the
file of each running model is kept open, and read whenever the kernel says that it changed: it wakes those who poll the
file for EPOLLPRI (cgroup-v2 of the kernel's admin-guide; kernfs_generic_poll() in fs/kernfs/file.c).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_EVENTS, _PEAK = "memory.events", "memory.peak"
_MAX_BYTES = 4096
_KEEP = 1024
"""Runs whose last counters are remembered."""


@dataclass(frozen=True, slots=True)
class MemoryEvents:
    """The counters of memory.events, and the most bytes that were in use at once (0 where the kernel does not say)."""

    reached_limit: int = 0
    """How often memory was asked for beyond the limit, in vain ("oom")."""
    killed: int = 0
    """Processes killed by any OOM killer, this limit's or the machine's ("oom_kill")."""
    throttled: int = 0
    """How often it was slowed down above MemoryHigh ("high")."""
    peak: int = 0


def parse_events(text: str, peak: str = "") -> MemoryEvents:
    """From the text of memory.events and memory.peak; what is not there, or is no number, counts as 0."""
    values = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        values[key] = _number(value)
    return MemoryEvents(values.get("oom", 0), values.get("oom_kill", 0), values.get("high", 0), _number(peak))


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


@dataclass(slots=True)
class _Open:
    run: str
    events: int
    peak: int | None


class MemoryWatch:
    """Watches the control groups of runs, each known by its InvocationID. Use within one event loop."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}  # by the descriptor of memory.events
        self._by_run: dict[str, int] = {}
        self._seen: dict[str, MemoryEvents] = {}
        self._epoll: select.epoll | None = None

    def watch(self, run: str, group: Path) -> None:
        """Watch a run's control group, once; one without a memory controller, or that is gone, is let be."""
        if not run or run in self._by_run:
            return
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            events = os.open(group / _EVENTS, flags)
        except OSError:
            return
        peak = None
        with contextlib.suppress(OSError):  # since Linux 5.19
            peak = os.open(group / _PEAK, flags)
        self._open[events] = _Open(run, events, peak)
        self._by_run[run] = events
        self._read(events)
        try:
            self._poll().register(events, select.EPOLLPRI)
        except OSError as e:  # an ordinary file: no kernel wakes anybody for it
            log.debug("memory.events of run %s cannot be polled: %s", run, e)

    def seen(self, run: str) -> MemoryEvents | None:
        """The last counters that could be read of a run; None where none ever could."""
        if (events := self._by_run.get(run)) is not None:
            self._read(events)
        return self._seen.get(run)

    def forget(self, run: str) -> None:
        """Stop watching a run, which is over; what was seen of it stays known for a while."""
        events = self._by_run.pop(run, None)
        if events is None:
            return
        self._read(events)
        watched = self._open.pop(events)
        if self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(events)
        os.close(events)
        if watched.peak is not None:
            os.close(watched.peak)

    @property
    def runs(self) -> list[str]:
        """The runs that are watched."""
        return list(self._by_run)

    def close(self) -> None:
        """Stop watching all."""
        for run in self.runs:
            self.forget(run)
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _poll(self) -> select.epoll:
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_change)
        return self._epoll

    def _on_change(self) -> None:
        assert self._epoll is not None
        for events, _ in self._epoll.poll(0):
            if events in self._open and not self._read(events):
                self.forget(self._open[events].run)  # its control group is gone

    def _read(self, events: int) -> bool:
        """Read the counters; False if they are gone. Reading is what tells the kernel that this change is known."""
        watched = self._open[events]
        try:
            text = os.pread(events, _MAX_BYTES, 0).decode("ascii", "replace")
        except OSError:
            return False
        peak = ""
        if watched.peak is not None:
            with contextlib.suppress(OSError):
                peak = os.pread(watched.peak, _MAX_BYTES, 0).decode("ascii", "replace")
        self._seen.pop(watched.run, None)
        self._seen[watched.run] = parse_events(text, peak)
        while len(self._seen) > _KEEP:
            del self._seen[next(iter(self._seen))]
        return True
