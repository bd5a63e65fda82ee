"""A whole manager on a fake systemd, a real database and real files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cortexd import observer
from tests.manager.steps import (
    JOURNALCTL,
)
from tests.support.house import House


@pytest.fixture(autouse=True)
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journal, at its seam: a program of this name that the test may replace."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(JOURNALCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(observer, "_SETTLE_SECONDS", 0.01)
    house = House(tmp_path)
    await house.open()
    yield house
    await house.close()
