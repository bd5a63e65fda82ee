"""The hidden verb __complete: words for the shell's completion. It starts nothing and fails in silence."""

from __future__ import annotations

from cortexctl.bus import Bus
from cortexctl.context import Context, manager_call
from cortexctl.errors import CtlError

_PATIENCE = 2.0
"""Seconds that a person at the TAB key waits at most."""
_EVENTS = 1000
"""So many of the last events are looked at for their kinds."""
_ACTIONS = ("set", "unset", "list")


def complete(context: Context) -> None:
    """Print one word a line."""
    try:
        words = _words(
            Bus(autostart=False), context.args.kind, [word for word in context.args.before if not word.startswith("-")]
        )
    except CtlError:
        return
    for word in words:
        context.out.line(word)


def _words(bus: Bus, kind: str, before: list[str]) -> list[str]:
    """Words of a kind; `before`: those that already stand between the verb and the one that is completed."""
    if kind == "secret":
        return _secret(bus, before)
    if kind == "items":  # models, and settings once a model is named; after the first setting only settings
        named = [] if any("=" in word for word in before) else _words(bus, "names", before)
        return [*named, *(_words(bus, "settings", before) if before else [])]
    if kind == "settings":
        (settings,) = bus.call(manager_call("ListSettings"), _PATIENCE)
        return [row[0] + "=" for row in settings]
    if kind == "kinds":  # what has happened: a kind that never did has no events to show
        (events,) = bus.call(manager_call("ListEvents", "asa{sv}", [], {"limit": ("u", _EVENTS)}), _PATIENCE)
        return sorted({event["Kind"] for event in events})
    if kind == "backends":
        (backends,) = bus.call(manager_call("ListBackends", "a{sv}", {}), _PATIENCE)
        return [row["Name"] for row in backends if not row["Problem"]]
    options = {"settings": ("b", True), "usage": ("b", True)} if kind == "properties" else {}
    (models,) = bus.call(manager_call("ListModels", "asa{sv}", [], options), _PATIENCE)
    if kind == "names":
        return [info["Name"] for info in models if info["Name"] not in before]
    return sorted({key for info in models for key in (*info, *info["Settings"])} - {"Settings"})


def _secret(bus: Bus, before: list[str]) -> list[str]:
    """The verb secret: what to do, a model, then one of its secrets; set may take a new one."""
    if not before:
        return list(_ACTIONS)
    if before[0] not in _ACTIONS or len(before) > 2 or (len(before) == 2 and before[0] == "list"):
        return []
    (models,) = bus.call(manager_call("ListModels", "asa{sv}", before[1:], {}), _PATIENCE)
    if len(before) == 1:
        return [info["Name"] for info in models]
    return sorted({key for info in models for key in info["Secrets"]})
