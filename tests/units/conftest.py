"""A world of its own for unit texts, and a lab for units that run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.units import UnitLab


@pytest.fixture(scope="module")
def unit_lab() -> Iterator[UnitLab]:
    """Units of fake servers on the private manager; every test uses models of its own names."""
    folder = Path.home() / "unit-lab"
    folder.mkdir()
    lab = UnitLab(folder)
    yield lab
    lab.close()
