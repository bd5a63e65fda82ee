"""kill -9 of a real cortexd at every await of every use-case, and another one started in its place.

`make test` does it on python-dbusmock, and for one point of each use-case on the real manager; `make test-faults` (FAULTS=real)
does all of them on the real manager, and FAULTS=mock on the mock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.cases import CASES, READING, declared
from tests.faults.dying import DONE
from tests.faults.place import MockPlace, Place, RealPlace
from tests.faults.sweep import PHASES, Point, Row, in_transaction, sweep, table

ALL = os.environ.get("FAULTS", "")
"""Where all awaits are met, each with its answer outstanding and with its answer there: real, mock, or nowhere."""


def every(trace: list[str]) -> list[Point]:
    return [(at, phase) for phase in PHASES for at in range(1, len(trace) + 1)]


def outside_transactions(trace: list[str]) -> list[Point]:
    """Every await, once, but for the statements of a transaction of the database."""
    return [(at, DONE) for at, await_ in enumerate(trace, 1) if not in_transaction(await_)]


def one(trace: list[str]) -> list[Point]:
    """One that is past the checks with which a use-case begins."""
    return [(1 + len(trace) * 7 // 10, DONE)]


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


@pytest.mark.parametrize("case", [] if ALL == "real" else CASES)
def test_killed_at_every_await(case: str, mocks: list[Place], rows: dict[str, Row]) -> None:
    rows[case] = row = sweep(CASES[case], mocks, every if ALL == "mock" else outside_transactions)
    check(row)


@pytest.mark.parametrize("case", [] if ALL == "mock" else CASES)
def test_killed_on_the_real_manager(case: str, real: list[Place], rows: dict[str, Row]) -> None:
    rows[f"{case} (real)"] = row = sweep(CASES[case], real, every if ALL == "real" else one)
    check(row)


def check(row: Row) -> None:
    """Nothing between, and every await met but for some that come or not as things happen to go."""
    assert not row.faults, f"{len(row.faults)} faults, the first: {row.faults[0]}"
    assert row.outcomes["not reached"] <= max(2, row.awaits // 5)
