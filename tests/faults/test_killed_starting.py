"""kill -9 of a cortexd at every await of its start: while it finishes what another one was killed in, or makes a database again
that was lost. `make test` does every seventh, after some use-cases; `make test-faults` all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults.cases import CASES, Case
from tests.faults.places import MockPlace
from tests.faults.starting import sweep_starts

SOME = ("register --api-key", "unregister --force", "start --enable", "secret set")
EACH = 1 if os.environ.get("FAULTS") else 7
AFTER = [name for name, case in CASES.items() if not (case.refused or case.of_one_daemon)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockPlace]:
    with MockPlace.create(tmp_path_factory.mktemp("mock")) as place:
        yield place


@pytest.mark.parametrize("case", AFTER if os.environ.get("FAULTS") else SOME)
def test_killed_while_it_finishes(case: str, place: MockPlace) -> None:
    row = sweep_starts(CASES[case], place, each=EACH)
    assert not row.faults, f"{len(row.faults)} of {row.kills}, the first: {row.faults[0]}"
    assert row.killed


def _lost(place: MockPlace) -> None:
    for path in (place.home / ".cortex").glob("models.db*"):
        path.unlink()


def _damaged(place: MockPlace) -> None:
    _lost(place)
    (place.home / ".cortex" / "models.db").write_bytes(b"no database at all" * 100)


@pytest.mark.parametrize("what", [_lost, _damaged])
def test_killed_while_it_makes_a_database_again(place: MockPlace, what: object) -> None:
    assert callable(what)
    case: Case = CASES["start"]
    row = sweep_starts(case, place, what, each=EACH)
    assert not row.faults, f"{len(row.faults)} of {row.kills}, the first: {row.faults[0]}"
    assert row.killed
