"""One HTTP probe, bounded in time and bytes; whatever answers is not trusted."""

from __future__ import annotations

import asyncio
import os
import time

import aiohttp

from cortexd.health.policy import Outcome, Probe

_MAX_BODY = 64 * 1024  # bytes; a health endpoint that says more is not one


class Prober:
    """Probes with one shared session; `close` it at the end."""

    def __init__(self, concurrent: int = 64) -> None:
        # A kept connection would hide a server that no longer accepts. The bound is ours, since the time that a probe
        # spends in the connector's queue behind hung servers would count as its own.
        self._slots = asyncio.Semaphore(concurrent)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    async def probe(self, url: str, timeout: float) -> Probe:
        """GET `url` within `timeout` seconds; redirects are not followed. Never raises but when cancelled."""
        async with self._slots:
            started = time.monotonic()
            outcome, reason = await self._ask(url, timeout)
            return Probe(outcome=outcome, reason=reason, latency=time.monotonic() - started)

    async def _ask(self, url: str, timeout: float) -> tuple[Outcome, str]:
        try:
            limits = aiohttp.ClientTimeout(total=timeout)
            async with self._session.get(url, timeout=limits, allow_redirects=False) as answer:
                if not 200 <= answer.status < 300:
                    return Outcome.HTTP_ERROR, f"the endpoint answers {answer.status}"
                size = 0
                async for chunk in answer.content.iter_any():
                    size += len(chunk)
                    if size > _MAX_BODY:
                        return Outcome.BROKEN, f"the answer is longer than {_MAX_BODY // 1024} KiB"
                return Outcome.OK, ""
        except TimeoutError:
            return Outcome.TIMEOUT, f"no answer within {timeout:g} s"
        except aiohttp.ClientConnectorError as e:
            # asyncio's own text is "Connect call failed" with the address.
            errno = e.errno or 0
            return Outcome.REFUSED, f"no connection: {os.strerror(errno) if errno > 0 else e.os_error}"
        except aiohttp.ClientError as e:
            return Outcome.BROKEN, f"the answer is broken: {type(e).__name__}"
