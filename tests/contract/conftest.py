"""The worlds of the contract, as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.systemd_worlds import FakeWorld, MockWorld, RealWorld, ScriptedWorld, World


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeWorld]:
    world = await FakeWorld.create(tmp_path)
    yield world
    await world.close()


@pytest.fixture
async def mock(tmp_path: Path, private_bus: str) -> AsyncIterator[MockWorld]:
    world = await MockWorld.create(tmp_path, private_bus)
    yield world
    await world.close()


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealWorld]:
    world = await RealWorld.create(tmp_path)
    yield world
    await world.close()


@pytest.fixture(params=["fake", "mock", "real"])
def world(request: pytest.FixtureRequest) -> World:
    """Every test of the contract runs in all three."""
    found: World = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["fake", "mock"])
def scripted(request: pytest.FixtureRequest) -> ScriptedWorld:
    """The two in which the moment of JobRemoved can be chosen."""
    found: ScriptedWorld = request.getfixturevalue(request.param)
    return found
