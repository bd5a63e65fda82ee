"""A small HTTP/1.1 client, in which every wait can be watched and every answer has its bounds.

The standard library's own gives no say while it blocks; here it is `pause` that waits, and what it raises ends a request.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

Pause = Callable[[float, int, int], bool]
"""Wait so many seconds at most for events (poll(2)) of a descriptor; whether they came."""

_MAX_HEAD = 65536
_MAX_STATUS_LINE = 4096
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
    port: int

    @property
    def host(self) -> str:
        """As the Host: header has it."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Exchange:
    """One request and its answer, to be closed by `with`. Raises OSError, TimeoutError and malformed answers included.

    `timeout` is for the exchange as a whole; without one, `pause` decides how long it may take.
    """

    def __init__(self, server: Server, *, timeout: float | None = None, pause: Pause = patient) -> None:
        self._server, self._pause = server, pause
        self.deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._data, self._ended = b"", False
        self._headers: dict[bytes, bytes] | None = None
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def ask(
        self, method: str, path: str, body: Iterable[bytes] = (), length: int = 0, kind: str = "", key: str = ""
    ) -> int:
        """Send a request, its body in pieces of `length` bytes in all, and return the answer's status code. `key`: what
        its clients have to give, of printable ASCII."""
        refused = self._socket.connect_ex((self._server.address, self._server.port))
        if refused == errno.EINPROGRESS:
            self._wait(select.POLLOUT)
            refused = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused:
            raise OSError(refused, os.strerror(refused))
        head = [f"{method} {path} HTTP/1.1", f"Host: {self._server.host}", "Connection: close"]
        if key:
            head.append(f"Authorization: Bearer {key}")
        if method == "POST":
            head += [f"Content-Type: {kind or 'application/json'}", f"Content-Length: {length}"]
        start = "\r\n".join([*head, "", ""]).encode()
        try:
            for piece in body:
                self._send(start + piece)
                start = b""
            self._send(start)
        except BrokenPipeError:
            pass  # a server that refuses a body may answer before it has read all of it
        line = self._line(_MAX_STATUS_LINE)
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not re.fullmatch(rb"\d{3}", words[1]):
            raise OSError("the answer is no HTTP")
        return int(words[1])

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
        headers = self._head()
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            while size := self._size():
                yield from self._exactly(size)
                self._line(2)
        elif b"content-length" in headers:
            yield from self._exactly(_number(headers[b"content-length"], 10))
        else:
            while self._data or self._fill():
                yield self._take(len(self._data))

    def _size(self) -> int:
        return _number(self._line(1024).partition(b";")[0], 16)

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._data and not self._fill():
                raise OSError("the answer ends too early")
            piece = self._take(min(size, len(self._data)))
            size -= len(piece)
            yield piece

    def _head(self) -> dict[bytes, bytes]:
        if self._headers is None:
            headers, room = {}, _MAX_HEAD
            while line := self._line(room).strip():
                room -= len(line)
                name, _, value = line.partition(b":")
                headers[name.strip().lower()] = value.strip()
            self._headers = headers
        return self._headers

    def _line(self, limit: int) -> bytes:
        """Up to the next line's end, or to the answer's. OSError where it is longer than `limit` bytes."""
        while b"\n" not in self._data and len(self._data) < limit and self._fill():
            pass
        end = self._data.find(b"\n") + 1 or len(self._data)
        if end > limit:
            raise OSError("the answer is no HTTP")
        return self._take(end)

    def _take(self, count: int) -> bytes:
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def _fill(self) -> bool:
        """Receive more; False at the end."""
        while not self._ended:
            self._wait(select.POLLIN)
            try:
                received = self._socket.recv(_CHUNK)
            except BlockingIOError:
                continue
            self._ended = not received
            self._data += received
            return bool(received)
        return False

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


def _number(text: bytes, base: int) -> int:
    """A length of the protocol. More digits than these are an attack."""
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text.strip()):
        raise OSError("the answer is no HTTP")
    try:
        return int(text, base)
    except ValueError:
        raise OSError("the answer is no HTTP") from None


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
