"""Who holds GPU memory: from NVIDIA's program, and /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortexd import gpus
from cortexd.gpus import Holder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A stray of ours, a model of ours, and one that has gone."""
    for pid, comm, unit in (
        (11, "python3", "session.scope"),
        (12, "llama-server", "cortex-a.service"),
        (14, "x", "cortexd.service"),
    ):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "comm").write_text(f"{comm}\n")
        (folder / "cgroup").write_text(f"0::/user.slice/user-1.slice/user@1.service/cortex.slice/{unit}\n")
    return tmp_path


def test_a_leftover_is_named_and_a_model_is_not(proc: Path) -> None:
    held = {11: 5 << 30, 12: 20 << 30, 13: 1 << 30, 14: 6 << 30}
    assert gpus.strays(held, proc) == [Holder(14, "x", 6 << 30), Holder(11, "python3", 5 << 30)]


def test_what_belongs_to_others_is_not_ours_to_end(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1)
    assert gpus.strays({11: 5 << 30}, proc) == []


async def test_nvidias_program_is_asked_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert await gpus.memory() == {}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '11, 512'; echo '11, 512'; echo '12, [N/A]'\n")
    program.chmod(0o755)
    assert await gpus.memory() == {11: 1 << 30}
    monkeypatch.setattr(gpus, "_SECONDS", 0.1)
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    assert await gpus.memory() == {}
