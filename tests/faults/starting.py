"""Kill a daemon at the points of its start, one after the other, and see what the next one makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.faults.cases import Case
from tests.faults.dying import END, STARTING, awaits
from tests.faults.places import MockPlace
from tests.faults.sweep import Row, Sweep, amid_of
from tests.support.wait import until

LASTING = ("systemd", "run", "files", "settings", "intents")
"""Of a picture, what is as it was also where a database was lost, with the log that it had."""

_POLL = 0.005
_TRIES = 3
"""Starts that are through before a point of that number, until there is none."""


def sweep_starts(case: Case, place: MockPlace, lay: Callable[[MockPlace], None] | None = None, *, each: int = 1) -> Row:
    """The starts after a daemon that was killed in the middle of a use-case; with `lay`, those after the use-case, where
    something has happened to the files meanwhile, after which everything must be as it was. `each`: how many points there are
    from one kill to the next."""
    row, began = Row(), time.monotonic()
    one = Sweep(case, place)
    try:
        trace = one.calibrate()
        if lay:
            one.do_again()
            place.kill()
            lay(place)
        else:
            assert one.die(amid_of(trace), Row()), "it is over before its middle"
        place.forget()
        place.keep()
        if lay:
            place.start()
            was, one.asked, one.before = one.asked, one.settled(), []
            assert {key: one.asked[key] for key in LASTING} == {key: was[key] for key in LASTING}
        _sweep(one, row, place, each)
    finally:
        one.close()
        if not place.alive():
            place.start()
    row.seconds = time.monotonic() - began
    return row


def _sweep(one: Sweep, row: Row, place: MockPlace, each: int) -> None:
    row.points = _come_by(one, row, place, 0)
    number, missed = 1, 0
    while missed < _TRIES:
        if _come_by(one, row, place, number):
            missed += 1
        else:
            number, missed = number + each, 0


def _come_by(one: Sweep, row: Row, place: MockPlace, at: int) -> int:
    """Start a daemon that is killed at that point, and the next one. How many points there were where it was through before
    that; else 0."""
    if place.alive():
        place.kill()
    place.restore()
    place.arm(STARTING, at)
    place.launch()
    until(
        lambda: not place.alive() or place.trace()[-1:] == [END], lambda: f"its start: {place.trace()[-3:]}", poll=_POLL
    )
    came_by = [point for point in place.trace() if point != END]
    row.seen.update(set().union(*map(awaits, came_by)))
    through = place.alive()
    if not through:
        place.bury()
        row.killed |= awaits(came_by[-1])
        place.start()
    try:
        row.outcomes[one.outcome()] += 1
    except AssertionError as e:
        row.faults.append(f"{at}, {came_by[-1]}: {e}")
    return len(came_by) if through else 0
