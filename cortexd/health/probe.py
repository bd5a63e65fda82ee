"""HTTP requests to a model's server, bounded in time and bytes; whatever answers is not trusted."""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass, field

import aiohttp

from cortexd.backends.base import Activity, EngineProbe
from cortexd.health.policy import Outcome, Probe

MAX_BODY = 64 * 1024
"""Bytes; a health endpoint that says more is not one."""


_REFUSED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH})
"""What the other side of a connection says (connect(2)); the rest is about us: no descriptors, ports, buffers, memory."""


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
    """Asks with one shared session; `close` it at the end. Nothing here raises but when cancelled."""

    def __init__(self) -> None:
        # A kept connection would hide a server that no longer accepts.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    async def probe(self, server: Server, timeout: float) -> Probe:
        """Whether the health endpoint says within `timeout` seconds that the server is well."""
        if server.stranger:
            return Probe(outcome=Outcome.STRANGER, reason=server.stranger)
        started = time.monotonic()
        answer = await self.ask(server, server.endpoint, timeout)
        fault = answer.fault or judge_status(answer.status, "the endpoint")
        healthy = server.questions.healthy
        if fault is None and healthy and not re.fullmatch(healthy.encode(), answer.body, re.DOTALL):
            fault = Probe(outcome=Outcome.WRONG, reason="the endpoint answers 200, but not what a well server says")
        latency = time.monotonic() - started
        return Probe(
            outcome=fault.outcome if fault else Outcome.OK, reason=fault.reason if fault else "", latency=latency
        )

    async def ask(
        self, server: Server, path: str, timeout: float, *, json: str = "", max_body: int = MAX_BODY
    ) -> Answer:
        """GET a path, or POST `json` to it. Redirects are not followed, and what is compressed stays so."""
        limits = aiohttp.ClientTimeout(total=timeout)
        headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
        if json:
            headers["Content-Type"] = "application/json"
        answering = False
        try:
            async with self._session.request(
                "POST" if json else "GET", server.url + path,
                data=json.encode() if json else None, headers=headers, timeout=limits, allow_redirects=False,
            ) as answer:  # fmt: skip
                if not 200 <= answer.status < 300:
                    return Answer(answer.status)
                answering, body = True, bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > max_body:
                        return _fault(Outcome.TOO_LONG, f"the answer is longer than {max_body // 1024} KiB")
                return Answer(answer.status, bytes(body))
        except TimeoutError:
            if answering:
                return _fault(Outcome.UNFINISHED, f"the answer does not end within {timeout:g} s")
            return _fault(Outcome.TIMEOUT, f"no answer within {timeout:g} s")
        except aiohttp.ClientConnectorError as e:
            # asyncio's own text is "Connect call failed" with the address.
            number = e.errno or 0
            said = os.strerror(number) if number > 0 else str(e.os_error)
            if number in _REFUSED:
                return _fault(Outcome.REFUSED, f"no connection: {said}")
            if number == errno.ETIMEDOUT:
                return _fault(Outcome.TIMEOUT, f"no connection: {said}")
            return _fault(Outcome.UNASKED, f"cortexd could not ask: {said}")
        except (aiohttp.ClientError, ValueError) as e:
            # The only way in which aiohttp tells its LineTooLong from other nonsense.
            if isinstance(e, aiohttp.ClientResponseError) and e.message.startswith("Got more than"):
                return _fault(Outcome.TOO_LONG, "the answer's headers are too long")
            return _fault(Outcome.BROKEN, f"the answer is broken: {type(e).__name__}")


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
