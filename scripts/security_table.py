#!/usr/bin/env python3
"""make test-machine | tee log; scripts/security_table.py <log: the tables of docs/security.md, from what machines said of themselves.

Takes the lines `TABLE COLUMN, PROFILE: JSON` that tests/machine/guest/boot1/41_security.py and `pytest -s tests/sandbox` print
(JSON: requested, effect and why by directive), and writes a table for each profile between the two marks anew. A column that
no line is about stays as it is.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "security.md"
BEGIN, END = "<!-- The tables: scripts/security_table.py writes them. -->\n", "<!-- End of the tables. -->\n"
FIRST, LAST = ["directive", "requested"], "why"

Column = dict[str, list[str]]
"""Requested, effect and why, by directive."""


def tables(document: str) -> dict[str, dict[str, Column]]:
    """What the document says, by profile and column. The reason is the same in all columns."""
    found: dict[str, dict[str, Column]] = {}
    columns: dict[str, Column] = {}
    for line in document.partition(BEGIN)[2].partition(END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if match := re.fullmatch(r"With `--security (\w+)`:", line):
            columns = found.setdefault(match[1], {})
        elif cells[:2] == FIRST:
            columns.update({name: {} for name in cells[2:-1]})
        elif line.startswith("| `"):
            directive, requested, *effects, why = cells
            for column, effect in zip(columns.values(), effects, strict=True):
                if effect:
                    column[directive.strip("`")] = [requested, effect, why]
    return found


def table(columns: dict[str, Column], new: set[str]) -> str:
    """As Markdown; the reasons as `new` columns have them, where one of them has one."""
    rows = [[*FIRST, *columns, LAST], ["---"] * (len(columns) + 3)]
    for directive in dict.fromkeys(directive for column in columns.values() for directive in column):
        said = [column.get(directive, ["", "", ""]) for column in columns.values()]
        requested = next(cell[0] for cell in said if cell[0])
        reasons = sorted(columns.items(), key=lambda item: item[0] not in new)
        cells = [column[directive] for _, column in reasons if directive in column]
        why = next(
            (cell[2] for effect in ("not in force", "in force", "covered") for cell in cells if cell[1] == effect),
            cells[0][2],
        )
        rows.append([f"`{directive}`", requested, *(effect for _, effect, _ in said), why])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    """Read standard input, write the document."""
    text = DOCUMENT.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"security_table: {DOCUMENT} lacks a mark: {(BEGIN + END).strip()}", file=sys.stderr)
        return 1
    found = tables(text)
    lines = re.findall(r"^TABLE ([^:\n|]+), (\w+): (\{.*\})$", sys.stdin.read(), re.MULTILINE)
    for column, profile, said in lines:
        cells = {str(name): [str(cell).replace("|", "/") for cell in row] for name, row in json.loads(said).items()}
        found.setdefault(profile, {})[column] = cells
    new = {str(column) for column, _, _ in lines}
    if not lines:
        print("security_table: no line on standard input begins with TABLE", file=sys.stderr)
        return 1
    parts = [
        f"With `--security {profile}`:\n\n{table(dict(sorted(found[profile].items())), new)}\n"
        for profile in sorted(found)
    ]
    DOCUMENT.write_text(f"{before}{begin}\n{''.join(parts)}{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
