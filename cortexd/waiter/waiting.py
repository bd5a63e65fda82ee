"""The wait itself: asks until the server says that it is ready, and believes nobody else."""

from __future__ import annotations

from collections.abc import Callable

from cortexd.waiter.http import Pause, Server, http_answer
from cortexd.waiter.sockets import Listener, answers_to, listeners
from cortexd.waiter.watch import GaveUp, Watch

FAST_POLL, FAST_FOR, POLL = 0.05, 2.0, 0.1
"""Seconds between probes at first, for how long, and after that."""

PROBE_TIMEOUT = 5.0
"""Seconds that one probe may take in all."""

_MAX_ANSWERS = 4096
"""Different answers that count as progress: a clock in them goes on for ever."""


class Waiter:
    """One wait, until `path` of `server` answers 2xx from within the control group `cgroup` (0: not known)."""

    def __init__(
        self,
        watch: Watch,
        server: Server,
        path: str,
        cgroup: int = 0,
        *,
        ask: Callable[[Server, str, float, Pause], tuple[int, bytes]] = http_answer,
        find: Callable[[int], list[Listener]] = listeners,
    ) -> None:
        self.watch, self.server, self.path, self.cgroup = watch, server, path, cgroup
        self._ask, self._find = ask, find
        self._answers: set[tuple[str, int]] = set()

    def run(self, load: Callable[[], None] | None = None) -> None:
        """Return when the server is ready; GaveUp says why it will not be. `load` is done before it counts as that."""
        while True:
            self._refuse_strangers()
            if self._probe():
                break
            self.watch.pause(FAST_POLL if self.watch.elapsed < FAST_FOR else POLL)
        self._refuse_strangers()
        if load:
            load()
            self._refuse_strangers()
        self.watch.pause(0)  # the server may have died while somebody else answered

    def _refuse_strangers(self) -> None:
        """Give up if another listens where the server should. Where control groups cannot be told, nobody does."""
        if not self.cgroup:
            return
        for sock in answers_to(self.server.address, self._find(self.server.port)):
            if sock.cgroup and sock.cgroup != self.cgroup:
                port = self.server.port
                who = f"a process outside this unit (user {sock.uid}, socket {sock.inode})"
                raise GaveUp(f"port {port} is held by {who}")

    def _probe(self) -> bool:
        """Ask once; True if ready. An answer unlike those before is progress."""
        body = b""
        try:
            status, body = self._ask(self.server, self.path, PROBE_TIMEOUT, self.watch.pause)
            seen = f"{self.path} answers {status}"
            if 200 <= status < 300:
                self.watch.doing("", seen)
                return True
        except OSError as e:
            seen = f"{self.path}: {e.strerror or e}"
        answer = (seen, hash(body))
        if answer not in self._answers and len(self._answers) < _MAX_ANSWERS:
            if self._answers:
                self.watch.progress()
            self._answers.add(answer)
        self.watch.doing(f"Waiting for the server: {seen}", seen)
        return False
