"""A small HTTP/1.1 client, in which every wait can be watched and every answer has its bounds.

The standard library's own gives no say while it blocks; here it is `pause` that waits, and what it raises ends a request.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from cortexd.waiter.answer import Answer

Pause = Callable[[float, int, int], bool]
"""Wait so many seconds at most for events (poll(2)) of a descriptor; whether they came."""

_CHUNK = 65536


def patient(seconds: float, fd: int, events: int) -> bool:
    """The Pause that watches nothing else."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(seconds * 1000))


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go."""

    address: str
    """Of IPv4 or IPv6, or the path of a Unix socket."""
    port: int = 0

    @property
    def host(self) -> str:
        """As the Host: header has it."""
        if self.address.startswith("/"):
            return "localhost"
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def place(self) -> str:
        """What another server may hold, for people."""
        return self.address if self.address.startswith("/") else f"port {self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """Of its socket."""
        if self.address.startswith("/"):
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @property
    def name(self) -> str | tuple[str, int]:
        """As connect(2) has it."""
        return self.address if self.address.startswith("/") else (self.address, self.port)


@functools.lru_cache(maxsize=4096)
def server_of(url: str) -> Server:
    """The server that a URL names: http://ADDRESS:PORT, or unix:PATH. Raises ValueError; a name that is no address is none,
    since looking it up could take any time."""
    if url.startswith("unix:/"):
        return Server(url.removeprefix("unix:"))
    address, _, port = url.removeprefix("http://").rpartition(":")
    server = Server(address.strip("[]"), int(port) if re.fullmatch("[0-9]{1,5}", port) else 0)
    try:
        socket.inet_pton(server.family, server.address)
    except OSError:
        raise ValueError("it is no address of a server") from None
    if not 0 < server.port < 65536:
        raise ValueError("it is no address of a server")
    return server


def request(server: Server, method: str, path: str, kind: str = "", length: int = 0, key: str = "") -> bytes:
    """The head of a request; one with a `kind` (Content-Type) has a body of `length` bytes. `key`: what the server's
    clients have to give. Raises ValueError where a head cannot carry that as it is."""
    head = [f"{method} {path} HTTP/1.1", f"Host: {server.host}", "Connection: close"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    if kind:
        head += [f"Content-Type: {kind}", f"Content-Length: {length}"]
    if not all(line.isascii() and line.isprintable() for line in head) or " " in path:
        raise ValueError("no head of a request can carry that")
    return "\r\n".join([*head, "", ""]).encode()


class Exchange:
    """One request and its answer, to be closed by `with`. Raises OSError, TimeoutError and malformed answers included.

    `timeout` is for the exchange as a whole; without one, `pause` decides how long it may take.
    """

    def __init__(self, server: Server, *, timeout: float | None = None, pause: Pause = patient) -> None:
        self._server, self._pause = server, pause
        self.deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._answer = Answer()
        self._socket = socket.socket(server.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def ask(
        self, method: str, path: str, body: Iterable[bytes] = (), length: int = 0, kind: str = "", key: str = ""
    ) -> int:
        """Send a request, its body in pieces of `length` bytes in all, and return the answer's status code. `key`: what
        its clients have to give, of printable ASCII."""
        refused = self._socket.connect_ex(self._server.name)
        if refused == errno.EINPROGRESS:
            self._wait(select.POLLOUT)
            refused = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused:
            raise OSError(refused, os.strerror(refused))
        kind = kind or ("application/json" if method == "POST" else "")
        start = request(self._server, method, path, kind, length, key)
        try:
            for piece in body:
                self._send(start + piece)
                start = b""
            self._send(start)
        except BrokenPipeError:
            pass  # a server that refuses a body may answer before it has read all of it
        while not (status := self._answer.status()):
            self._receive()
        return status

    def read(self, limit: int) -> bytes:
        """The body, or as much of it as `limit` bytes hold."""
        body = b""
        for piece in self.pieces():
            body += piece
            if len(body) >= limit:
                break
        return body[:limit]

    def lines(self, limit: int) -> Iterator[bytes]:
        """The body line by line, as the lines come; one of more than `limit` bytes is an error."""
        rest = b""
        for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            yield from filter(bytes.strip, lines)
            if len(rest) > limit:
                raise OSError("the answer has a line without end")
        if rest.strip():
            yield rest

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, without its transfer coding."""
        while (piece := self._answer.piece()) != b"":
            if piece is None:
                self._receive()
            else:
                yield piece

    def _receive(self) -> None:
        while True:
            self._wait(select.POLLIN)
            try:
                return self._answer.add(self._socket.recv(_CHUNK))
            except BlockingIOError:
                continue

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(select.POLLOUT)
            try:
                view = view[self._socket.send(view, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue

    def _wait(self, events: int) -> None:
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            if self._pause(min(left, 60), self._socket.fileno(), events):
                return


def http_status(server: Server, path: str, timeout: float, pause: Pause = patient) -> int:
    """The status code of one GET, reading no more than its first line."""
    with Exchange(server, timeout=timeout, pause=pause) as exchange:
        return exchange.ask("GET", path)


def http_answer(server: Server, path: str, timeout: float, pause: Pause = patient, key: str = "") -> tuple[int, bytes]:
    """The same, and how the body of a refusal begins, if that comes within a moment: it may tell how far a server is."""
    with Exchange(server, timeout=timeout, pause=pause) as exchange:
        status = exchange.ask("GET", path, key=key)
        if 200 <= status < 300:
            return status, b""
        exchange.deadline = min(exchange.deadline, time.monotonic() + _BODY_SECONDS)
        try:
            return status, exchange.read(_BODY_BYTES)
        except OSError:
            return status, b""


_BODY_SECONDS, _BODY_BYTES = 0.25, 4096
