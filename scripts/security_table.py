#!/usr/bin/env python3
"""make test-machine | tee log; scripts/security_table.py <log: the table of docs/security.md, from what machines said of themselves.

Takes the lines `TABLE COLUMN: JSON` that tests/machine/guest/boot1/41_security.py and `pytest -s tests/sandbox` print, and
writes the table between its two marks anew. A column that no line is about stays as it is.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "security.md"
BEGIN, END = "<!-- The table: scripts/security_table.py writes it. -->\n", "<!-- End of the table. -->\n"


def columns(text: str) -> dict[str, dict[str, str]]:
    """The effects by column and directive, of a table that there is."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    if not rows:
        return {}
    head, _, *body = rows
    return {name: {cells[0].strip("`"): cells[place] for cells in body} for place, name in enumerate(head) if place}


def table(found: dict[str, dict[str, str]]) -> str:
    """As Markdown."""
    directives = list(dict.fromkeys(directive for effects in found.values() for directive in effects))
    rows = [["directive", *found], ["---"] * (len(found) + 1)]
    rows += [
        [f"`{directive}`", *(effects.get(directive, "") for effects in found.values())] for directive in directives
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    """Read standard input, write the document."""
    found = {}
    for match in re.finditer(r"^TABLE ([^:\n|]+): (\{.*\})$", sys.stdin.read(), re.MULTILINE):
        found[match[1]] = {str(name): str(effect) for name, effect in json.loads(match[2]).items()}
    if not found:
        print("security_table: no line on standard input begins with TABLE", file=sys.stderr)
        return 1
    text = DOCUMENT.read_text()
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        print(f"security_table: {DOCUMENT} lacks a mark: {(BEGIN + END).strip()}", file=sys.stderr)
        return 1
    DOCUMENT.write_text(before + begin + table(dict(sorted({**columns(old), **found}.items()))) + end + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
