"""HTTP requests to a model's server, bounded in time and bytes; whatever answers is not trusted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import time
from dataclasses import dataclass, field

from cortexd.backends.base import Activity, EngineProbe
from cortexd.health.policy import Outcome, Probe
from cortexd.waiter import answer, http

MAX_BODY = 64 * 1024
"""Bytes; a health endpoint that says more is not one."""


_OURS = frozenset({errno.EAGAIN, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""What connect(2) says for want of our own: ports, buffers, memory. The rest is about the other side, or its socket's path."""

_CHUNK = 65536
_MAX_FRAMING = 65536
"""Bytes around the pieces of a body: one in pieces of a byte each would cost us far more than its server."""

_QUEUE_PAUSE = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class Questions:
    """What a kind of server can be asked, beside the status of its health endpoint."""

    healthy: str = ""
    """A regular expression for all of its answer, as of Backend."""
    engine: EngineProbe | None = None
    activity: Activity | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """One server, as probes find it now."""

    url: str
    """Scheme, address and port."""
    endpoint: str
    questions: Questions = Questions()
    token: str = field(default="", repr=False)
    """The key that it wants to see."""
    stranger: str = ""
    """A sentence where somebody else holds its port: then nothing is asked, and the key stays with us."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; the body only where the status is 2xx."""

    status: int = 0
    body: bytes = b""
    fault: Probe | None = None
    """Why there is none."""


class Prober:
    """Asks. Nothing here raises but when cancelled."""

    async def probe(self, server: Server, timeout: float) -> Probe:
        """Whether the health endpoint says within `timeout` seconds that the server is well."""
        if server.stranger:
            return Probe(outcome=Outcome.STRANGER, reason=server.stranger)
        started = time.monotonic()
        found = await self.ask(server, server.endpoint, timeout)
        fault = found.fault or judge_status(found.status, "the endpoint")
        healthy = server.questions.healthy
        if fault is None and healthy and not re.fullmatch(healthy.encode(), found.body, re.DOTALL):
            fault = Probe(outcome=Outcome.WRONG, reason="the endpoint answers 200, but not what a well server says")
        latency = time.monotonic() - started
        return Probe(
            outcome=fault.outcome if fault else Outcome.OK, reason=fault.reason if fault else "", latency=latency
        )

    async def ask(
        self, server: Server, path: str, timeout: float, *, json: str = "", max_body: int = MAX_BODY
    ) -> Answer:
        """GET a path, or POST `json` to it. Redirects are not followed, and what is compressed stays so."""
        came = answer.Answer()
        try:
            async with asyncio.timeout(timeout):
                return await _exchange(server, path, json.encode(), came, max_body)
        except TimeoutError as e:
            if e.errno:
                return _fault(Outcome.TIMEOUT, f"no connection: {os.strerror(e.errno)}")
            if came.complete_head:
                return _fault(Outcome.UNFINISHED, f"the answer does not end within {timeout:g} s")
            return _fault(Outcome.TIMEOUT, f"no answer within {timeout:g} s")
        except _NoConnection as e:
            if e.ours:
                return _fault(Outcome.UNASKED, f"cortexd could not ask: {e}")
            return _fault(Outcome.REFUSED, f"no connection: {e}")
        except answer.HeadTooLong as e:
            return _fault(Outcome.TOO_LONG, str(e))
        except answer.Malformed as e:
            return _fault(Outcome.BROKEN, str(e))
        except OSError as e:
            return _fault(Outcome.BROKEN, f"the answer is broken: {e.strerror or e}")
        except ValueError as e:
            return _fault(Outcome.BROKEN, f"it cannot be asked: {e}")


class _NoConnection(Exception):
    """What connect(2) or socket(2) says; `ours`: it is about us."""

    def __init__(self, error: OSError, *, ours: bool) -> None:
        super().__init__(os.strerror(error.errno) if error.errno else str(error))
        self.ours = ours


async def _exchange(server: Server, path: str, body: bytes, came: answer.Answer, max_body: int) -> Answer:
    """One request, on a connection of its own: a kept one would hide a server that no longer accepts any. Raises what
    `Prober.ask` has names for."""
    to = http.server_of(server.url)
    method, kind = ("POST", "application/json") if body else ("GET", "")
    request = http.request(to, method, path, kind, len(body), server.token) + body
    loop = asyncio.get_running_loop()
    with await _connected(to) as sock:
        with contextlib.suppress(BrokenPipeError):  # it may have answered nevertheless
            await loop.sock_sendall(sock, request)
        while not (status := came.head()):
            came.add(await loop.sock_recv(sock, _CHUNK))
        if not 200 <= status < 300:
            return Answer(status)
        found, received = bytearray(), 0
        while (piece := came.piece()) != b"":
            if piece is None and received <= len(found) + _MAX_FRAMING:
                data = await loop.sock_recv(sock, _CHUNK)
                received += len(data)
                came.add(data)
                continue
            found += piece or b""
            if piece is None or len(found) > max_body:
                return _fault(Outcome.TOO_LONG, f"the answer is longer than {max_body // 1024} KiB")
        return Answer(status, bytes(found))


async def _connected(to: http.Server) -> socket.socket:
    """A socket that is connected, to be closed by the caller. Raises _NoConnection."""
    try:
        sock = socket.socket(to.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as e:  # no descriptors or memory, or a family that we may not use
        raise _NoConnection(e, ours=True) from None
    try:
        while (number := sock.connect_ex(to.name)) == errno.EAGAIN and to.family == socket.AF_UNIX:  # noqa: ASYNC110
            await asyncio.sleep(_QUEUE_PAUSE)  # its queue is full, and nothing tells when it is not
        if number == errno.EINPROGRESS:
            number = sock.connect_ex(to.name)  # on loopback it is done by now, or refused
        if number == errno.EALREADY:
            await asyncio.get_running_loop().sock_connect(sock, to.name)
        elif number:
            raise OSError(number, os.strerror(number))
    except BaseException as e:
        sock.close()
        if isinstance(e, OSError) and e.errno != errno.ETIMEDOUT:
            raise _NoConnection(e, ours=e.errno in _OURS) from None
        raise
    return sock


def judge_status(status: int, who: str) -> Probe | None:
    """What is wrong with an answer of this status, if anything is."""
    if 200 <= status < 300:
        return None
    outcome = Outcome.HTTP_ERROR
    if status >= 500:
        outcome = Outcome.SERVER_ERROR
    elif 300 <= status < 400:
        outcome = Outcome.REDIRECT
    return Probe(outcome=outcome, reason=f"{who} answers {status}")


def _fault(outcome: Outcome, reason: str) -> Answer:
    return Answer(fault=Probe(outcome=outcome, reason=reason))
