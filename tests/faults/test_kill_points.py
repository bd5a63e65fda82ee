"""kill -9 of a real cortexd at every await of every use-case, and another one started in its place.

`make test` does it on python-dbusmock, and for one point of each use-case on the real manager; `make test-faults` (FAULTS=real)
does all of them on the real manager, and FAULTS=mock those on the mock alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.cases import CASES, READING, declared
from tests.faults.place import Place
from tests.faults.places import MockPlace, RealPlace
from tests.faults.sweep import Row, sweep, table

WHERE = os.environ.get("FAULTS", "")

RARE = 2
"""Runs: what is met no more often than that, as things happen to go, may not come again when it is to be killed at."""

ON_REAL = [name for name, case in CASES.items() if not case.refused]
"""The real manager refuses nothing that it is told to."""


def test_every_method_that_changes_something_is_killed() -> None:
    """A method that is new has to be killed at its awaits, or to be said to change nothing."""
    known = {(case.interface, case.member) for case in CASES.values()}
    known |= {(interface, member) for interface, members in READING.items() for member in members}
    assert known == set(declared())


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, Row]]:
    """What the tests of this module have found out; shown at the end."""
    found: dict[str, Row] = {}
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{table(found)}")


@pytest.fixture(scope="module")
def mocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Place]]:
    """Two of them, so that two cores have something to do."""
    with ExitStack() as closing:
        yield [closing.enter_context(MockPlace.create(tmp_path_factory.mktemp("mock"))) for _ in range(2)]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Place]]:
    with RealPlace.create(tmp_path_factory.mktemp("real")) as place:
        yield [place]


@pytest.mark.parametrize("case", [] if WHERE == "real" else CASES)
def test_killed_at_every_await(case: str, mocks: list[Place], rows: dict[str, Row]) -> None:
    rows[case] = row = sweep(CASES[case], mocks)
    check(row)


@pytest.mark.parametrize("case", [] if WHERE == "mock" else ON_REAL)
def test_killed_on_the_real_manager(case: str, real: list[Place], rows: dict[str, Row]) -> None:
    rows[f"{case} (real)"] = row = sweep(CASES[case], real, amid=WHERE != "real")
    check(row)


def check(row: Row) -> None:
    """Nothing between, and no await that was seen and not killed at."""
    assert not row.faults, f"{len(row.faults)} faults, the first: {row.faults[0]}"
    assert row.killed, "nobody was killed"
    unmet = [await_ for await_ in row.unmet if row.seen[await_] > RARE]
    assert not unmet, f"seen, and never killed at: {unmet}"
