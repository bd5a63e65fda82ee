"""Servers of a few lines, each as bad as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cortexd.health.probe import Questions, Server

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(talk: Talk, questions: Questions = Questions()) -> AsyncIterator[Server]:  # noqa: B008 - frozen
    """A server on a port of its own, as probes find it."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield Server(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", "/health", questions)
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        await listener.wait_closed()


def says(answer: bytes, *, then_wait: bool = False) -> Talk:
    """A server that reads the request, says this, and closes (or does not)."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if then_wait:
            await asyncio.Event().wait()

    return talk
