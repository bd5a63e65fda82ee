"""Figures: taken in turns with those they are compared to, and told as a median with its quartiles."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

K = TypeVar("K")


@dataclass(frozen=True)
class Figure:
    """One thing measured some times, or why it could not be."""

    what: str
    unit: str
    values: Sequence[float] = ()
    problem: str = ""
    """Why there are no values: a peer cannot be had, or ("not measured: ...") nobody wants to wait for it."""
    beside: str = ""
    """`what` of the figure that it is compared to."""

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies the middle half."""
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Target:
    """What was to be reached."""

    what: str
    value: float
    limit: float
    at_least: bool = False
    required: bool = True
    """False: it is shown for comparison, and nobody asks that it be met."""

    @property
    def met(self) -> bool:
        """Whether it was."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Result:
    """A row: its figures, its targets, and what has to be known of how they were taken."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    """Why the row as a whole could not be measured."""

    def add(self, what: str, unit: str, values: Sequence[float], beside: str = "") -> Figure:
        """Add a figure that was measured."""
        self.figures.append(Figure(what, unit, [*values], beside=beside))
        return self.figures[-1]

    def missing(self, what: str, problem: str) -> None:
        """Add a figure that could not be."""
        self.figures.append(Figure(what, "", problem=problem))

    def median(self, what: str) -> float | None:
        """A figure's, where it has one."""
        return next((figure.median for figure in self.figures if figure.what == what and figure.values), None)

    def quotient(self, what: str, other: str) -> float | None:
        """Of the medians of two figures; None where one of them is missing."""
        ours, theirs = self.median(what), self.median(other)
        return ours / theirs if ours is not None and theirs else None

    def ratio(
        self, text: str, what: str, other: str, limit: float, *, at_least: bool = False, required: bool = True
    ) -> None:
        """A target for the ratio of two figures; none where one of them is missing."""
        if (value := self.quotient(what, other)) is not None:
            self.targets.append(Target(text, value, limit, at_least, required))

    def growth(self, text: str, many: tuple[str, str], few: tuple[str, str], limit: float) -> None:
        """A target for a ratio over sizes that were measured one after the other. Each pair is a figure, and a yardstick taken in
        turns with it: a machine that was slower in one of the two phases is no growth."""
        most, least = self.quotient(*many), self.quotient(*few)
        if most is not None and least:
            self.targets.append(Target(text, most / least, limit))

    def target(self, text: str, value: float | None, limit: float, *, at_least: bool = False) -> None:
        """A target for a value; none where it is missing."""
        if value is not None:
            self.targets.append(Target(text, value, limit, at_least))

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)


def result_of(found: Mapping[str, Any]) -> Result:
    """What `to_json` made."""
    figures = [Figure(**figure) for figure in found["figures"]]
    targets = [Target(**target) for target in found["targets"]]
    return Result(found["title"], figures, targets, list(found["notes"]), found.get("problem", ""))


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1e3


def run(command: Sequence[object], *, allow: Sequence[int] = (0,)) -> str:
    """Run it to its end. A status that is not allowed raises RuntimeError with what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode not in allow:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {said[-1] if said else 'no word'}")
    return done.stdout


def in_turns(runs: int, actions: Mapping[K, Callable[[], float]]) -> dict[K, list[float]]:
    """Every action once, then every action again: what disturbs the machine for a while disturbs all of them. A first round is
    not counted, since it fills caches."""
    taken: dict[K, list[float]] = {name: [] for name in actions}
    for number in range(runs + 1):
        for name, action in actions.items():
            value = action()
            if number:
                taken[name].append(value)
    return taken
