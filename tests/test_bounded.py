"""Threads that look at files: how many there may be, and what one that cannot be had costs."""

from __future__ import annotations

import threading

import pytest

from cortexd import bounded


async def test_a_thread_that_cannot_be_had_costs_no_permit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when TasksMax= is reached: all of them are there again when it is over."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(bounded._MAX_THREADS + 1):
            with pytest.raises(TimeoutError):
                await bounded.in_thread(5, lambda: 1)
    assert await bounded.in_thread(5, lambda: 1) == 1
