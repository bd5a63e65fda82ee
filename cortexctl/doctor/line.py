"""What the doctor says: one line for each thing that it looked at, and how a fault may be fixed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How it is. A warning and an error are something to fix; a note is something to know."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


class Cure(StrEnum):
    """What `--fix` can do."""

    LINGER = "linger"
    """Have logind let the user's services run without a login; no arguments."""
    CLOSE = "close"
    """Take the rights of others to files and folders away; the arguments are their paths."""
    ASIDE = "aside"
    """Give files another name, and have who waits at them go on; the arguments are their paths."""
    START = "start"
    """Start cortexd's unit; no arguments."""
    RESTART = "restart"
    """Restart it; models go on running."""


@dataclass(frozen=True, slots=True)
class Fix:
    """A cure, and what to ask before."""

    cure: Cure
    question: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line. `check` is a word for scripts, the same for all that one look can come to."""

    check: str
    level: Level
    text: str
    remedy: str = ""
    fix: Fix | None = None

    @property
    def wrong(self) -> bool:
        """Something is to be fixed."""
        return self.level in (Level.WARNING, Level.ERROR)


def ok(check: str, text: str) -> Line:
    """All is well."""
    return Line(check, Level.OK, text)


def note(check: str, text: str, remedy: str = "") -> Line:
    """Nothing is wrong, but it is good to know."""
    return Line(check, Level.NOTE, text, remedy)


def warning(check: str, text: str, remedy: str, fix: Fix | None = None) -> Line:
    """Something that may harm models."""
    return Line(check, Level.WARNING, text, remedy, fix)


def error(check: str, text: str, remedy: str, fix: Fix | None = None) -> Line:
    """Something that keeps models from running."""
    return Line(check, Level.ERROR, text, remedy, fix)


def from_sentence(check: str, sentence: str, fix: Fix | None = None) -> Line:
    """An error whose remedy follows a semicolon, as the client's own errors have it."""
    text, _, remedy = sentence.partition("; ")
    return error(check, text, remedy, fix)
