"""The wait itself: asks until the server says that it is ready, and believes nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cortexd.waiter.http import Pause, Server, http_answer
from cortexd.waiter.sockets import Listener, answering
from cortexd.waiter.watch import GaveUp, Watch

FAST_POLL, POLL, SHARE = 0.01, 0.1, 0.02
"""Seconds between probes, at least and at most: in between, this share of the time that has passed, which is what waiting for the
next one can add to it."""

PROBE_TIMEOUT = 5.0
"""Seconds that one probe may take in all."""

REFUSED_FOR = 5.0
"""Seconds in which a server may answer 401 or 403 before that is its last word: one may read its keys when it listens already."""

_MAX_ANSWERS = 4096
"""Different answers that count as progress: a clock in them goes on for ever."""


@dataclass(frozen=True, slots=True)
class Key:
    """What the server's clients have to give."""

    variable: str = ""
    """From which the server reads it; empty where it has none."""
    value: str = field(default="", repr=False)
    """Empty where that is not set."""


class Waiter:
    """One wait, until `path` of `server` answers 2xx from within the control group `cgroup` (0: not known)."""

    def __init__(
        self,
        watch: Watch,
        server: Server,
        path: str,
        cgroup: int = 0,
        key: Key = Key(),
        *,
        ask: Callable[[Server, str, float, Pause, str], tuple[int, bytes]] = http_answer,
        find: Callable[[str, int], list[Listener]] = answering,
    ) -> None:
        self.watch, self.server, self.path, self.cgroup = watch, server, path, cgroup
        self.key = key
        self._ask, self._find = ask, find
        self._refused = float("inf")  # when it began to ask for a key
        self._answers: set[tuple[str, int]] = set()

    def run(self, load: Callable[[], None] | None = None) -> None:
        """Return when the server is ready; GaveUp says why it will not be. `load` is done before it counts as that."""
        while True:
            own = self._refuse_strangers()
            if self._probe(self.key.value if own else ""):
                break
            self.watch.pause(min(max(FAST_POLL, self.watch.elapsed * SHARE), POLL))
        self._refuse_strangers()
        if load:
            load()
            self._refuse_strangers()
        self.watch.pause(0)  # the server may have died while somebody else answered

    def _refuse_strangers(self) -> bool:
        """Give up if another listens where the server should. Where control groups cannot be told, nobody does.
        Returns whether all who listen there are known to be this unit's own."""
        if not self.cgroup:
            return False
        found = self._find(self.server.address, self.server.port)
        for sock in found:
            if sock.cgroup and sock.cgroup != self.cgroup:
                who = f"user {sock.uid}, " + (f"process {sock.pid}" if sock.pid else f"socket {sock.inode}")
                raise GaveUp(f"{self.server.place} is held by a process outside this unit ({who})")
        return bool(found) and all(sock.cgroup for sock in found)

    def _probe(self, key: str) -> bool:
        """Ask once, with the key if there is one; True if ready. An answer unlike those before is progress."""
        body, status = b"", 0
        try:
            status, body = self._ask(self.server, self.path, PROBE_TIMEOUT, self.watch.pause, key)
            seen = f"{self.path} answers {status}"
            if 200 <= status < 300:
                self.watch.doing("", seen)
                return True
        except OSError as e:
            seen = f"{self.path}: {e.strerror or e}"
        self._give_up_if_refused(status, key)
        answer = (seen, hash(body))
        if answer not in self._answers and len(self._answers) < _MAX_ANSWERS:
            if self._answers:
                self.watch.progress()
            self._answers.add(answer)
        self.watch.doing(f"Waiting for the server: {seen}", seen)
        return False

    def _give_up_if_refused(self, status: int, key: str) -> None:
        """A server that wants a key which it does not get will never be ready."""
        if status not in (401, 403):
            self._refused = float("inf")
            return
        self._refused = min(self._refused, self.watch.elapsed)
        if self.watch.elapsed - self._refused < REFUSED_FOR:
            return
        if key:
            raise GaveUp(f"{self.path} refuses the key of {self.key.variable} ({status})")
        why = "its backend names no api_key"
        if self.key.value:
            why = "the kernel does not tell whether it is this unit that would get it"
        elif self.key.variable:
            why = f"{self.key.variable} holds none"
        raise GaveUp(f"{self.path} asks for a key ({status}), and {why}")
