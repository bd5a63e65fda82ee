"""One thing that is wrong, or may be: what, its value, what is the matter with it, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_MAX_VALUE, _MAX_PROBLEM = 200, 400  # characters; values and problems may quote what a file or a program says


class Level(StrEnum):
    """An error keeps the model from running; a warning may."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `what` is a setting's public name, or a thing of the machine's."""

    level: Level
    what: str
    value: str
    problem: str
    remedy: str

    @property
    def sentence(self) -> str:
        """`what=value: problem; remedy`."""
        value = self.value if re.fullmatch(r"[\w./:,@+~-]+", self.value) else repr(self.value)
        return f"{self.what}={value}: {self.problem}; {self.remedy}" if self.value else self._without_value()

    def _without_value(self) -> str:
        return f"{self.what}: {self.problem}; {self.remedy}"


def error(what: str, value: object, problem: str, remedy: str) -> Finding:
    """A finding that keeps the model from running."""
    return Finding(Level.ERROR, what, plain(str(value), _MAX_VALUE), plain(problem, _MAX_PROBLEM), remedy)


def warning(what: str, value: object, problem: str, remedy: str) -> Finding:
    """A finding that may harm the model."""
    return Finding(Level.WARNING, what, plain(str(value), _MAX_VALUE), plain(problem, _MAX_PROBLEM), remedy)


def plain(text: str, limit: int) -> str:
    """`text` from outside in a form that a bus, a log and a terminal take: one line, printable, at most `limit` long."""
    shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(shown) <= limit else shown[:limit] + "…"
