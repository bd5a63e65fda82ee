"""What is printed, and where: results to standard output, everything else to standard error.

Text is for people and may change; JSON has exact values under the names of the D-Bus API and may not.
"""

from __future__ import annotations

import os
import sys

from cortexctl.errors import CtlError
from cortexctl.human import NOT_AVAILABLE, alarming, clean

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TextIO

ACTIVE = ("ready", "busy", "degraded", "unhealthy")
"""States in which a model counts as active."""
LOST = ("stopped", "failed")
"""States from which a model does not become active by itself."""

_MARKS = {"failed": "×", "stopped": "○"}
_ASCII = {"●": "*", "○": "o", "×": "x", "✓": "+"}
_COLORS = {
    "ready": "32",
    "busy": "32",
    "enabled": "32",
    "healthy": "32",
    "degraded": "33",
    "restarting": "33",
    "starting": "33",
    "stopping": "33",
    "unhealthy": "31",
    "failing": "31",
    "failed": "31",
    "in force": "32",
    "covered": "32",
    "moot": "2",
    "off": "2",
    "not in force": "31",
    "unknown": "33",
    "warning": "33",
    "error": "31",
    "alarm": "1;31",
    "bold": "1",
    "dim": "2",
}


_LITTLE_ROOM = 20
"""Columns in which nobody would want to read a sentence."""


class Row:
    """A row of a table: cells, the state whose mark stands in front, and a remark on a line of its own."""

    __slots__ = ("below", "cells", "mark")

    def __init__(self, cells: Sequence[str], mark: str = "", below: str = "") -> None:
        self.cells, self.mark, self.below = cells, mark, below


class Output:
    """One invocation's way to speak."""

    def __init__(self, program: str, *, as_json: bool = False, quiet: bool = False) -> None:
        self.program = program
        self.json = as_json
        self.quiet = quiet
        self._records: list[dict[str, Any]] = []
        self._color = {stream: _wants_color(stream) for stream in (sys.stdout, sys.stderr)}
        for stream in (sys.stdout, sys.stderr):
            getattr(stream, "reconfigure", lambda **_: None)(errors="replace")

    @property
    def interactive(self) -> bool:
        """A person looks on: progress and hints are welcome."""
        return not self.json and not self.quiet and sys.stderr.isatty()

    @property
    def asking(self) -> bool:
        """Somebody is there to answer."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def agreed(self, question: str) -> bool:
        """Whether a person says yes; anything else is a no."""
        print(f"{clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer.endswith("\n"):
            print(file=sys.stderr)
        return answer.strip().lower() in ("y", "yes")

    def line(self, text: str = "") -> None:
        """A line of a result that was asked for; --quiet does not take it away."""
        print(text)

    def result(self, record: dict[str, Any], text: str = "") -> None:
        """The result for one model: a line of text, or an element of the JSON output."""
        if self.json:
            self._records.append(record)
        elif text and not self.quiet:
            print(text, flush=True)

    def finish(self, many: bool, complete: bool) -> None:
        """Print the JSON: an array where the verb takes several models, else the one object.

        A command that was cut short prints what it has; where that is nothing, only the error speaks.
        """
        if self.json and (self._records or (many and complete)):
            print(to_json(self._records if many else self._records[0], indent=2))

    def hint(self, text: str) -> None:
        """A next command, for a person at a terminal."""
        if self.interactive and sys.stdout.isatty():
            print(self.paint(text, "dim"))

    def note(self, text: str) -> None:
        """A remark beside the result."""
        if not self.json and not self.quiet:
            print(f"{self.program}: {clean(text)}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """Something to look at; the command goes on."""
        if not self.json:
            if alarming(text):
                print(self.paint(f"Warning: {clean(text)}", "alarm", sys.stderr), file=sys.stderr)
                return
            print(self.paint("Warning:", "warning", sys.stderr), clean(text), file=sys.stderr)

    def error(self, error: CtlError) -> None:
        """A failure as one sentence."""
        if self.json:
            print(to_json({"error": error.name, "message": error.message}), file=sys.stderr)
        else:
            print(f"{self.program}: {clean(error.message)}", file=sys.stderr)

    def paint(self, text: str, kind: str, stream: TextIO | None = None) -> str:
        """`text` in the colour of a state or a role, where the stream shows colours."""
        color = _COLORS.get(kind)
        return f"\x1b[{color}m{text}\x1b[0m" if color and self._color.get(stream or sys.stdout) else text

    def mark(self, state: str) -> str:
        """The sign in front of a model."""
        sign = _MARKS.get(state, "●")
        return self.paint(printable(sign), state)

    def table(self, head: Sequence[str], rows: Sequence[Row], painted: Sequence[int] = ()) -> None:
        """Columns as wide as their widest cell, the last one as the terminal has room for it; the cells of `painted` columns
        have the colour of their own text."""
        cells = [list(head), *([clean(cell) for cell in row.cells] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        before = len(self._indent(rows)) + sum(widths[:-1]) + 2 * len(widths[:-1])
        for number, row in enumerate(cells):
            row[-1], *more = folded(row[-1], width(sys.stdout) - before)
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            if number:
                for column in painted:
                    padded[column] = self.paint(padded[column], row[column])
            text = "  ".join(padded).rstrip()
            below = rows[number - 1].below if number else ""
            mark = f"{self.mark(rows[number - 1].mark)} " if number and rows[number - 1].mark else self._indent(rows)
            print(mark + (text if number else self.paint(text, "bold")))
            for line in more:
                print(" " * before + line)
            if below:
                print(self.paint(f"    {clean(below)}", "dim"))

    @staticmethod
    def _indent(rows: Sequence[Row]) -> str:
        return "  " if any(row.mark for row in rows) else ""


def _wants_color(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(sign: str) -> str:
    """`sign`, or its stand-in where the terminal's encoding lacks it."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    return sign if encoding == "utf8" else _ASCII.get(sign, "?")


def width(stream: TextIO) -> int:
    """Columns of a terminal; 0 where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def folded(text: str, room: int) -> list[str]:
    """As lines of at most so many characters, broken at blanks; as one where it fits, or where there is hardly any room (or no
    terminal)."""
    if room < _LITTLE_ROOM or len(text) <= room:
        return [text]
    import textwrap

    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON with exact values; a figure that the machine does not have is null."""
    import json

    return json.dumps(_without_missing(value), indent=indent)


def _without_missing(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: None if v == NOT_AVAILABLE and k in _FIGURES else _without_missing(v) for k, v in value.items()}
    return [_without_missing(v) for v in value] if isinstance(value, list | tuple) else value


_FIGURES = ("MemoryCurrent", "CPUUsageNSec", "TasksCurrent")
