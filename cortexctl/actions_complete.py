"""The hidden verb __complete: words for the shell's completion. It starts nothing and fails in silence."""

from __future__ import annotations

from cortexctl.bus import Bus
from cortexctl.context import Context, manager_call
from cortexctl.errors import CtlError

_PATIENCE = 2.0
"""Seconds that a person at the TAB key waits at most."""


def complete(context: Context) -> None:
    """Print one word a line."""
    try:
        words = _words(Bus(autostart=False), context.args.kind)
    except CtlError:
        return
    for word in words:
        context.out.line(word)


def _words(bus: Bus, kind: str) -> list[str]:
    if kind == "settings":
        (settings,) = bus.call(manager_call("ListSettings"), _PATIENCE)
        return [row[0] for row in settings]
    if kind == "backends":
        (backends,) = bus.call(manager_call("ListBackends", "a{sv}", {}), _PATIENCE)
        return [row["Name"] for row in backends if not row["Problem"]]
    options = {"settings": ("b", True), "usage": ("b", True)} if kind == "properties" else {}
    (models,) = bus.call(manager_call("ListModels", "asa{sv}", [], options), _PATIENCE)
    if kind in ("names", "secret"):
        return [*(("set", "unset", "list") if kind == "secret" else ()), *(info["Name"] for info in models)]
    return sorted({key for info in models for key in (*info, *info["Settings"])} - {"Settings"})
