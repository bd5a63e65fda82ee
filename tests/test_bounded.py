"""Threads that look at files: how many there may be, and what one that cannot be had costs."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cortexd import bounded
from cortexd.bounded import on_local_disk


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


def test_what_is_on_a_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = tmp_path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    told = ""
    monkeypatch.setattr(Path, "read_text", lambda self: told)
    for kind, expected in (("ext4", True), ("nfs4", False), ("fuse.sshfs", False)):
        told = f"1 0 {device} / {tmp_path} rw - {kind} where rw\n2 0 0:999 / /other rw shared:1 - nfs4 where rw\n"
        assert on_local_disk(tmp_path) is expected, kind
    told = "2 0 0:999 / /other rw shared:1 - ext4 where rw\n"  # one that cannot be told
    assert not on_local_disk(tmp_path)
    assert not on_local_disk(tmp_path / "missing")
