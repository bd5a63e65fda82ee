"""The verb backends: the programs that can serve models."""

from __future__ import annotations

import os

from cortexctl.context import Context, manager_call
from cortexctl.output import Row


def backends(context: Context) -> None:
    """All of them in a table; what is wrong with a backend file, as a warning."""
    out = context.out
    path = {"search_path": ("s", os.environ.get("PATH", ""))}
    (found,) = context.bus.call(manager_call("ListBackends", "a{sv}", path))
    for row in found:
        out.result(row)
    if out.json:
        return
    usable = [row for row in found if not row["Problem"]]
    out.table(("NAME", "EXECUTABLE", "SOURCE"), [Row((r["Name"], r["Executable"] or "-", r["Source"])) for r in usable])
    for row in found:
        if row["Problem"]:
            out.warn(row["Problem"])
