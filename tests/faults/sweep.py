"""Kill the daemon at the points of a use-case, one after the other, and see what the next one makes of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.faults.cases import REFUSED, Case
from tests.faults.dying import END, awaits
from tests.faults.picture import BYSTANDER, VICTIM, Picture
from tests.faults.place import Place, Said
from tests.faults.places import MockPlace
from tests.support.wait import until

SETTLES = 10.0
"""Seconds that a daemon has to finish what the one before it had begun."""

_TRIES = 3
"""Runs that must end before they come to a point of that number, until there is none."""

_TRIES_AT_AWAIT = 10
"""Runs that are given to an await which comes now and then."""

_POLL = 0.005


@dataclass
class Row:
    """What a sweep found out: the points of a run that nobody interrupts, and what became of those that somebody did."""

    points: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """Awaits, and how many runs came by them."""
    killed: set[str] = field(default_factory=set)
    """At which of that there was a kill."""
    seconds: float = 0.0

    @property
    def unmet(self) -> set[str]:
        """What was seen, and nobody was killed at."""
        return self.seen.keys() - self.killed

    @property
    def kills(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values()) + len(self.faults)


class Sweep:
    """One use-case in one place."""

    def __init__(self, case: Case, place: Place) -> None:
        self.case, self.place, self.view = case, place, place.view
        self._armed: Picture = {}
        self._kept = self._spent = False
        """A run that came to its end may go on to have effects: its model is not to be had again by looking alone."""
        self._words: tuple[str, ...] = ()

    def calibrate(self) -> list[str]:
        """Learn what it is like before, and after, where nobody is killed; returns the points."""
        place = self.place
        if not place.alive():
            place.start()
        place.calm()
        if self.view.unit(f"cortex-{BYSTANDER}.service")["ActiveState"] != "active":
            place.do(*place.register(name=BYSTANDER))
            place.do("start", BYSTANDER)
            place.do("enable", BYSTANDER)
        self.bystander = self.view.bystander()
        self._prepare()
        place.kill()
        if isinstance(place, MockPlace):
            place.keep()
        place.start()
        # What a daemon's start does by itself is no use-case's doing: it writes unit files that are missing, say.
        self.before = [self._armed, self.settled()]
        self._kept = isinstance(place, MockPlace) and not self.case.of_one_daemon and self.before[1] == self._armed
        if self.case.refused:
            # It may be done after all, by the next daemon, where nobody was told of the refusal.
            assert self._uninterrupted().status == 0
            self.asked = self.settled()
        if not self._kept or self.case.refused:
            self._again()
        said = self._uninterrupted()
        if self.case.refused:
            assert said.status == 1 and "not this time" in said.errors, f"{said}"
            assert self.settled() in self.before, _differ(self.settled(), *self.before)
        else:
            assert said.status == 0, f"{self.case}: {said}: {place.log()}"
            self.asked = self.settled()
        assert self.asked not in self.before, f"{self.case} changes nothing: {self.asked}"
        return place.trace()[:-1]

    def do_again(self) -> None:
        """The use-case, to its end."""
        self._again()
        assert self._uninterrupted().status == 0
        self.settled()

    def _uninterrupted(self) -> Said:
        self.place.arm(self.case.member)
        said = self._do()
        self._over()
        return said

    def _do(self) -> Said:
        self._words = self.case.words(self.place)
        return self.place.client(*self._words, typed=self.case.typed)

    def _over(self) -> None:
        def over() -> bool:
            return not self.place.alive() or self.place.trace()[-1:] == [END]

        until(over, lambda: f"the end of {self.case}: {self.place.trace()[-3:]}", poll=_POLL)

    def _prepare(self) -> None:
        """Bring the model into the state that the use-case needs."""
        if isinstance(self.place, MockPlace):
            for member in REFUSED:  # a daemon that was killed before it asked has left it to whoever asks next
                self.place.refuse(member, 0)
        self.place.client("unregister", "--force", VICTIM)
        self.place.calm()
        self.case.needs(self.place)
        self.view.mark()
        self._armed = self.settled()

    def _again(self) -> None:
        """The same, as it was then where that can be had."""
        if not self._kept:
            self._prepare()
        else:
            assert isinstance(self.place, MockPlace)
            self.place.kill()
            self.place.restore()
            self.place.start()
            self.view.mark()
            until(lambda: self.view.picture() == self._armed, "the state that was kept", poll=_POLL)
        if self.case.refused:
            assert isinstance(self.place, MockPlace)
            self.place.refuse(self.case.refused)

    def settled(self) -> Picture:
        """The picture, once it changes no more."""
        pictures = [self.view.picture()]

        def settled() -> bool:
            pictures.append(self.view.picture())
            return len(pictures) > 3 and pictures[-1] == pictures[-2] == pictures[-3]

        until(settled, "an end of changes")
        return pictures[-1]

    def kill_at(self, at: int | str, row: Row) -> bool:
        """Adds what comes of it to `row`; False where the use-case was over before that point."""
        said = self.die(at, row)
        if said is None:
            return False
        self.place.start()
        try:
            row.outcomes[self._judged(said)] += 1
        except AssertionError as e:
            row.faults.append(f"{at}, {self.place.trace()[-1]}: {e}")
        return True

    def die(self, at: int | str, row: Row) -> Said | None:
        """Have the daemon killed there, and no other one started; None where the use-case was over before."""
        place = self.place
        if not place.alive():
            place.start()
        if self.case.of_one_daemon or self.case.refused or self._spent or self.view.picture() != self._armed:
            self._again()
        self._spent = True
        self.view.mark()
        place.arm(self.case.member, at)
        said = self._do()
        self._over()
        came_by = [point for point in place.trace() if point != END]
        row.seen.update(set().union(*map(awaits, came_by)))
        assert came_by or place.alive(), f"it ended before the use-case began: {said}: {place.log()}"
        if place.alive():
            assert said.status == 0 or self.case.refused, f"{said}: {place.log()}"
            return None
        self._spent = False
        row.killed |= awaits(came_by[-1])
        place.bury()
        return said

    def _judged(self, said: Said) -> str:
        told = self._check(said)
        outcome = self.outcome()
        assert told in ("", outcome), f"it is as {outcome}, and the client was told otherwise: {said}"
        return outcome

    def outcome(self) -> str:
        """What it has become, within the time that there is for it."""
        last: Picture = {}

        def settled() -> str:
            nonlocal last
            last = self.view.picture()
            return "asked" if last == self.asked else "before" if last in self.before else ""

        try:
            outcome = until(settled, deadline=SETTLES, poll=_POLL)
        except AssertionError:
            raise AssertionError(
                f"between: {_differ(last, *self.before[:1], self.asked)}\n{self.place.log()}"
            ) from None
        assert self.view.bystander() == self.bystander, "the model beside it has noticed"
        return outcome

    def _check(self, said: Said) -> str:
        """What a client is told: that it is as it had asked, that it is as before, or in one sentence that nobody knows and how
        to learn what became of it."""
        if said.status == 0:
            return "asked"
        assert said.status == 1 and said.errors.count("\n") == 1, f"{said}"
        if self.case.refused and "not this time" in said.errors:
            return "before"
        if said.out.startswith("Registered "):  # then it asks for the model's key
            return "asked"
        if self._words[0] == "busctl":
            assert "without replying" in said.errors, f"{said}"
        else:
            assert said.errors.startswith("cortexctl: cortexd ended"), f"{said}"
            assert f" {VICTIM}'" in said.errors, f"it says nothing of how to look: {said}"
        return ""

    def close(self) -> None:
        """Forget what was kept."""
        if isinstance(self.place, MockPlace):
            self.place.forget()


def _differ(found: Picture, *wanted: Picture) -> str:
    """What is as in none, or in some alone, of the pictures that are wanted."""
    lines = []
    for key in {key for picture in (found, *wanted) for key in picture}:
        values = [picture.get(key) for picture in (found, *wanted)]
        if all(value == values[0] for value in values):
            continue
        if all(isinstance(value, dict) for value in values):
            lines.append(f"{key}: {{{_differ(*values)}}}")
        else:
            lines.append(f"{key}: {values[0]!r} instead of {' or '.join(map(repr, values[1:]))}")
    return "\n  ".join(lines)


class _Numbers:
    """1, 2, 3... until no run comes to a point of that number any more; shared by those who kill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next, self._end = 1, 10_000
        self._missed: Counter[int] = Counter()
        self._again: list[int] = []

    def take(self) -> int:
        """The next; 0 where there is none."""
        with self._lock:
            if self._again:
                return self._again.pop()
            if self._next >= self._end:
                return 0
            self._next += 1
            return self._next - 1

    def missed(self, number: int) -> None:
        """A run was over before it."""
        with self._lock:
            self._missed[number] += 1
            if self._missed[number] >= _TRIES:
                self._end = min(self._end, number)
            else:
                self._again.append(number)


def sweep(case: Case, places: Sequence[Place], *, amid: bool = False) -> Row:
    """All points of a use-case, shared out to the places; `amid`: only one that is in the middle of the acting."""
    row, began = Row(), time.monotonic()
    sweeps = [Sweep(case, place) for place in places]
    try:
        _sweep(sweeps, row, amid)
    finally:
        for one in sweeps:
            one.close()
    row.seconds = time.monotonic() - began
    return row


def _sweep(sweeps: Sequence[Sweep], row: Row, amid: bool) -> None:
    with ThreadPoolExecutor(len(sweeps)) as pool:
        traces = list(pool.map(Sweep.calibrate, sweeps))
        row.points = len(traces[0])
        if amid:
            missed = 0
            while not sweeps[0].kill_at(amid_of(traces[0]), row):
                missed += 1
                assert missed < _TRIES, "it never comes to that point again"
            row.seen.clear()  # the rest was not asked for
            return
        numbers = _Numbers()

        def work(one: Sweep) -> None:
            while number := numbers.take():
                try:
                    if not one.kill_at(number, row):
                        numbers.missed(number)
                except Exception as e:
                    row.faults.append(f"{number}: {e!r}")

        list(pool.map(work, sweeps))
    # What comes in another order each time, or now and then, has other numbers.
    for point in sorted(row.unmet):
        any(sweeps[0].kill_at(point, row) for _ in range(_TRIES_AT_AWAIT))


def amid_of(trace: Sequence[str]) -> int:
    """The point in the middle of what comes after the first write to the database, and before the last."""
    writes = [number for number, point in enumerate(trace, 1) if "store/writer.py" in point]
    first, last = writes[1], writes[-1] if len(writes) > 2 else len(trace)
    return (first + last) // 2


def table(rows: dict[str, Row]) -> str:
    """What was found out, for people."""
    lines = [f"{'use-case':<32}{'points':>8}{'killed':>8}{'before':>8}{'asked':>8}{'faults':>8}{'unmet':>8}{'s':>8}"]
    for name, row in rows.items():
        before, asked = row.outcomes["before"], row.outcomes["asked"]
        lines.append(
            f"{name:<32}{row.points:>8}{row.kills:>8}{before:>8}{asked:>8}{len(row.faults):>8}{len(row.unmet):>8}{row.seconds:>8.1f}"
        )
    points, kills = (sum(values) for values in zip(*((row.points, row.kills) for row in rows.values()), strict=True))
    lines.append(
        f"{len(rows)} use-cases, {points} points, {kills} kills, {sum(r.seconds for r in rows.values()):.0f} s"
    )
    return "\n".join(lines)
