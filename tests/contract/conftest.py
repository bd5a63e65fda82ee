"""The worlds of the contract, as fixtures."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.systemd_worlds import FakeWorld, MockWorld, RealWorld, World


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket (108 bytes; unix(7))."""
    folder = Path(tempfile.mkdtemp(prefix="ctx"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def fake(short_folder: Path) -> AsyncIterator[FakeWorld]:
    world = await FakeWorld.create(short_folder)
    yield world
    await world.close()


@pytest.fixture
async def mock(short_folder: Path) -> AsyncIterator[MockWorld]:
    world = await MockWorld.create(short_folder)
    yield world
    await world.close()


@pytest.fixture
async def real(short_folder: Path) -> AsyncIterator[RealWorld]:
    if not os.environ.get("CORTEX_LAB"):
        reason = "needs a systemd user manager to play with: run it through scripts/private-systemd"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    world = await RealWorld.create(short_folder)
    yield world
    await world.close()


@pytest.fixture(params=["fake", "mock", "real"])
def world(request: pytest.FixtureRequest) -> World:
    """Every test of the contract runs in all three."""
    found: World = request.getfixturevalue(request.param)
    return found
