"""A whole manager on a fake systemd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.house import House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A home with a cortexd in it."""
    house = House(tmp_path)
    await house.open()
    yield house
    await house.close()
