"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 20.0
_POLL = 0.02


def until(
    condition: Callable[[], T],
    what: str | Callable[[], str] = "the condition",
    deadline: float = DEADLINE,
    *,
    poll: float = _POLL,
) -> T:
    """Poll until `condition()` is true and return it; AssertionError with the last value after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            wanted = what if isinstance(what, str) else what()
            raise AssertionError(f"{wanted} did not come within {deadline:g} s; last: {value!r}")
        time.sleep(poll)


async def aio_until(condition: Callable[[], T], what: str = "the condition", deadline: float = DEADLINE) -> T:
    """The same in an event loop."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come within {deadline:g} s; last: {value!r}"
        await asyncio.sleep(_POLL)
