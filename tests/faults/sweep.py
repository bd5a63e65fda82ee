"""Kill the daemon at the awaits of a use-case, one after the other, and see what the next one makes of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.faults.cases import Case
from tests.faults.dying import DONE, END, SENT
from tests.faults.place import BYSTANDER, VICTIM, Picture, Place, Said
from tests.support.wait import until

PHASES = (DONE, SENT)
Point = tuple[int, str]

SETTLES = 10.0
"""Seconds that a daemon has to finish what the one before it had begun."""


@dataclass
class Row:
    """What a sweep found out."""

    awaits: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Sweep:
    """One use-case in one place."""

    def __init__(self, case: Case, place: Place) -> None:
        self.case, self.place = case, place
        self.words = case.words(place)
        self._armed: Picture = {}

    def calibrate(self) -> list[str]:
        """Learn what it is like before, and after, where nobody is killed; returns the awaits."""
        place = self.place
        if not place.alive():
            place.start()
        place.calm()
        if place.unit(f"cortex-{BYSTANDER}.service")["ActiveState"] != "active":
            place.do(*place.register(name=BYSTANDER))
            place.do("start", BYSTANDER)
            place.do("enable", BYSTANDER)
        self.bystander = place.bystander()
        self._prepare()
        place.kill()
        place.start()
        # What a daemon's start does by itself is no use-case's doing: it writes unit files that are missing, say.
        self.before = [self._armed, self._settled()]
        if self.before[1] != self._armed:
            self._prepare()
        place.arm(self.case.member)
        said = place.client(*self.words, typed=self.case.typed)
        assert said.status == 0, f"{self.words}: {said}: {place.log()}"
        until(lambda: place.trace()[-1:] == [END], lambda: f"the end of {self.words}: {place.trace()[-3:]}")
        self.asked = self._settled()
        assert self.asked not in self.before, f"{self.words} changes nothing: {self.asked}"
        return place.trace()[:-1]

    def _prepare(self) -> None:
        """Bring the model into the state that the use-case needs."""
        place = self.place
        place.client("unregister", "--force", VICTIM)
        place.calm()
        self.case.needs(place)
        place.mark()
        self._armed = self._settled()

    def _settled(self) -> Picture:
        """The picture, once it changes no more."""
        pictures = [self.place.picture()]

        def settled() -> bool:
            pictures.append(self.place.picture())
            return len(pictures) > 3 and pictures[-1] == pictures[-2] == pictures[-3]

        until(settled, "an end of changes")
        return pictures[-1]

    def kill_at(self, at: int, phase: str) -> str:
        """Returns the outcome, or raises AssertionError with what is wrong."""
        place = self.place
        if not place.alive():
            place.start()
        if place.picture() != self._armed:
            self._prepare()
        place.mark()
        place.arm(self.case.member, at, phase)
        said = place.client(*self.words, typed=self.case.typed)
        until(lambda: not place.alive() or place.trace()[-1:] == [END], "the end of the use-case")
        where = (place.trace() or ["?"])[min(at, len(place.trace())) - 1]
        if place.alive():
            assert said.status == 0, f"{said}: {place.log()}"
            return "not reached"
        place.bury()
        place.start()
        try:
            return self._judged(said)
        except AssertionError as e:
            raise AssertionError(f"{phase} {where}: {e}") from None

    def _judged(self, said: Said) -> str:
        self._check(said)
        last: Picture = {}

        def settled() -> str:
            nonlocal last
            last = self.place.picture()
            return "asked" if last == self.asked else "before" if last in self.before else ""

        try:
            outcome = until(settled, deadline=SETTLES)
        except AssertionError:
            raise AssertionError(f"between: {_differ(last, self.before[0], self.asked)}\n{self.place.log()}") from None
        assert said.status != 0 or outcome == "asked", f"confirmed, and not there: {said}"
        assert self.place.bystander() == self.bystander, "the model beside it has noticed"
        return outcome

    def _check(self, said: Said) -> None:
        """What a client is told: one sentence, and how to learn what became of it."""
        if said.status == 0:
            return
        assert said.status == 1 and said.errors.count("\n") == 1, f"{said}"
        if self.words[0] == "busctl":
            assert "without replying" in said.errors, f"{said}"
        else:
            assert said.errors.startswith("cortexctl: cortexd ended"), f"{said}"
            assert f" {VICTIM}'" in said.errors, f"it says nothing of how to look: {said}"


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


def in_transaction(await_: str) -> bool:
    """Whether it waits for a statement of a transaction, which is there as a whole or not at all: killed at the end of each
    statement the database is as it was before the first, and after the last as for whoever waits for the transaction."""
    return await_.rpartition(" ")[2] in ("_one", "_write_all")


def sweep(case: Case, places: Sequence[Place], choose: Callable[[list[str]], Iterable[Point]]) -> Row:
    """The points of a use-case that are chosen of its awaits, shared out to the places."""
    row, began = Row(), time.monotonic()
    sweeps = [Sweep(case, place) for place in places]
    with ThreadPoolExecutor(len(places)) as pool:
        trace = max(pool.map(Sweep.calibrate, sweeps), key=len)
        row.awaits = len(trace)
        left = iter(choose(trace))

        def work(one: Sweep) -> None:
            for at, phase in left:
                try:
                    row.outcomes[one.kill_at(at, phase)] += 1
                except AssertionError as e:
                    row.faults.append(str(e))

        list(pool.map(work, sweeps))
    row.seconds = time.monotonic() - began
    return row


def table(rows: dict[str, Row]) -> str:
    """What was found out, for people."""
    lines = [f"{'use-case':<24}{'awaits':>8}{'killed':>8}{'before':>8}{'asked':>8}{'not reached':>13}{'s':>8}"]
    for name, row in rows.items():
        before, asked, missed = (row.outcomes[word] for word in ("before", "asked", "not reached"))
        killed = before + asked + len(row.faults)
        lines.append(f"{name:<24}{row.awaits:>8}{killed:>8}{before:>8}{asked:>8}{missed:>13}{row.seconds:>8.1f}")
    total = sum(sum(row.outcomes.values()) for row in rows.values())
    lines.append(f"{len(rows)} use-cases, {sum(row.awaits for row in rows.values())} awaits, {total} kills")
    return "\n".join(lines)
