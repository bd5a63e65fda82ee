"""The hidden verb __complete: words for the shell's completion. It starts nothing and fails in silence."""

from __future__ import annotations

from cortexctl.bus import Bus
from cortexctl.context import Context, manager_call
from cortexctl.errors import CtlError

_PATIENCE = 2.0
"""Seconds that a person at the TAB key waits at most."""


def complete(context: Context) -> None:
    """Print one word a line."""
    call = {
        "names": manager_call("ListModels", "asa{sv}", [], {}),
        "settings": manager_call("ListSettings"),
    }[context.args.kind]
    try:
        (rows,) = Bus(autostart=False).call(call, _PATIENCE)
    except CtlError:
        return
    for row in rows:
        context.out.line(row["Name"] if context.args.kind == "names" else row[0])
