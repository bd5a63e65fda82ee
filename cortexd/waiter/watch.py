"""The time that a start has: every pause of the wait goes through here, whatever it is that is being waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

from cortexd.waiter.signs import Reading, Sign, Signs

GRACE = 30.0
"""Seconds that systemd gives longer than the waiter does, so that it is the waiter that ends a start, and says why.
The first TimeoutStartSec= of the unit has them, too."""

EXCUSE = 5
"""A server that shows nothing but weak signs has this many times the stall's time."""

TICK = 1.0
"""Seconds between two looks and between two messages, at least."""

_EXTEND = 5.0  # seconds between two extensions, at most


class GaveUp(Exception):
    """The start has failed; str() is the reason."""


class Watch:
    """Raises GaveUp out of a pause when the server has ended, nothing has moved for `stall` seconds, or the start has
    taken `timeout` seconds in all. Says on the way how far it is, and has systemd wait as long as something moves.

    `poll(seconds, fd, events)` pauses and says whether the main process is gone and whether the descriptor is ready
    (none for -1); `send` takes messages of sd_notify(3). All of the outside comes in, so that a test takes no time.
    """

    def __init__(
        self,
        poll: Callable[[float, int, int], tuple[bool, bool]],
        read: Callable[[float], Reading],
        send: Callable[[str], None],
        *,
        timeout: float,
        stall: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poll, self._read, self._send, self._now = poll, read, send, now
        self._timeout, self._stall = timeout, stall
        self._tick = min(TICK, stall / 4)
        self._start = self._looked = self._moved = self._strong = now()
        self._extended = self._said_at = float("-inf")
        self._reading = read(self._start)
        self._signs = Signs(self._reading)
        self._said = ""
        self._doing = self.last = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the wait began."""
        return self._now() - self._start

    def progress(self) -> None:
        """The server was seen to get on."""
        self._moved = self._strong = self._now()

    def doing(self, what: str, last: str = "") -> None:
        """What is being waited for, for people (nothing is said while it is empty); `last` is what a reason has of it,
        where that is less."""
        self._doing, self.last = what, last or what

    def pause(self, seconds: float, fd: int = -1, events: int = 0) -> bool:
        """Wait until the descriptor is ready, then True, or for so long."""
        end, left = self._now() + seconds, seconds
        while True:
            self._check()
            step = max(0.0, min(left, self._tick))
            gone, ready = self._poll(step, fd, events)
            if gone:
                raise GaveUp(f"the server ended while it started ({self.last or 'it never answered'})")
            if ready or step >= left:
                return ready
            left = end - self._now()

    def _check(self) -> None:
        now = self._now()
        if now - self._looked >= self._tick or now - self._moved >= self._stall:
            self._look(now)
        self._tell(now)
        if now - self._start >= self._timeout:
            raise GaveUp(f"not ready after {self._timeout:g} s ({self.last})")
        if now - self._moved >= self._stall:
            spun = now - self._strong >= self._stall * EXCUSE - self._tick
            what = f"but CPU time for {self._stall * EXCUSE:g}" if spun else f"for {self._stall:g}"
            raise GaveUp(f"no sign of progress {what} s ({self.last})")
        if self._moved > max(self._extended, self._start) and now - self._extended >= min(_EXTEND, self._stall / 4):
            self._extended = now
            left = min(self._moved + self._stall, self._start + self._timeout) - now
            self._send(f"EXTEND_TIMEOUT_USEC={round((left + GRACE) * 1e6)}")

    def _look(self, now: float) -> None:
        self._looked, self._reading = now, self._read(now)
        sign = self._signs.judge(self._reading)
        if sign is Sign.PROGRESS:
            self._moved = self._strong = now
        elif sign is Sign.WEAK and now - self._strong < self._stall * (EXCUSE - 1):
            self._moved = now

    def _tell(self, now: float) -> None:
        text = self._doing + self._far(now - self._start)
        if self._doing and text != self._said and now - self._said_at >= self._tick:
            self._said, self._said_at = text, now
            self._send(f"STATUS={text}")

    def _far(self, elapsed: float) -> str:
        """How far it is; by five seconds after the first minute."""
        if elapsed < 1:
            return ""
        seconds = int(elapsed) if elapsed < 60 else int(elapsed) // 5 * 5
        time = f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60} s"
        memory = self._reading.memory / 2**20
        size = f", {memory:.0f} MiB" if memory < 1000 else f", {memory / 1024:.1f} GiB"
        return f" ({time}{size if memory >= 1 else ''})"
