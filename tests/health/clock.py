"""An event loop in which no time is waited for."""

from __future__ import annotations

import asyncio


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time runs as fast as nothing happens."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        selector = self._selector  # type: ignore[attr-defined]
        really = selector.select

        def select(timeout: float | None = None) -> object:
            if timeout:
                self._now += timeout
            return really(0 if timeout is not None else None)

        selector.select = select

    def time(self) -> float:
        return self._now
