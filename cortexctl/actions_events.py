"""The verb events: the audit log."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from cortexctl.context import Context, is_pattern, manager_call
from cortexctl.errors import USAGE, CtlError
from cortexctl.human import clean, since_epoch
from cortexctl.output import to_json
from cortexd.names import BUS_NAME

_MOST = 10_000
"""What the daemon gives in one answer."""

Event = dict[str, Any]


def events(context: Context) -> None:
    """Print the last events; with --follow, go on as the daemon's signals tell that something happened."""
    args, bus = context.args, context.bus
    options = {"limit": ("u", min(max(args.lines, 1), _MOST)), **_filter(context)}
    names = _names(context)
    if names is None:
        return
    if args.follow:
        bus.watch(f"sender='{BUS_NAME}'")
    found = _ask(context, names, options)
    if not found and args.names:
        context.names(args.names)
    _print(context, found, head=True)
    sys.stdout.flush()
    last = found[-1]["Id"] if found else 0
    while args.follow:
        bus.next_signal(None)
        bus.signals.clear()
        since = found[-1]["Time"] if found else options.get("since", ("t", 0))[1]
        fresh = [
            event
            for event in _ask(context, names, {**options, "since": ("t", since), "limit": ("u", _MOST)})
            if event["Id"] > last
        ]
        _print(context, fresh)
        sys.stdout.flush()
        found, last = fresh or found, fresh[-1]["Id"] if fresh else last


def _filter(context: Context) -> dict[str, tuple[str, Any]]:
    args = context.args
    options: dict[str, tuple[str, Any]] = {}
    if args.since:
        try:
            options["since"] = ("t", since_epoch(args.since, time.time()))
        except ValueError as e:
            raise CtlError("Usage", f"--since {args.since!r}: {e}", USAGE) from None
    if args.kind:
        options["kinds"] = ("as", [kind for item in args.kind for kind in item.split(",") if kind])
    return options


def _names(context: Context) -> list[str] | None:
    """The names to ask for: patterns are filled in, plain names stay, since a removed model has its past, too."""
    names = [name for name in context.args.names if not is_pattern(name)]
    patterns = [name for name in context.args.names if is_pattern(name)]
    if patterns:
        names += context.names(patterns)
    return names if names or not patterns else None


def _ask(context: Context, names: list[str], options: dict[str, tuple[str, Any]]) -> list[Event]:
    (found,) = context.bus.call(manager_call("ListEvents", "asa{sv}", names, options))
    return list(found)


def _print(context: Context, found: Sequence[Event], *, head: bool = False) -> None:
    out = context.out
    if out.json:
        for event in found:
            if context.args.follow:
                out.line(to_json(event))
            else:
                out.result(event)
        return
    width = max((len(event["Model"]) for event in found), default=0)
    kinds = max((len(event["Kind"]) for event in found), default=0)
    width, kinds = max(width, 12), max(kinds, 10)
    if head and found:
        out.line(out.paint(f"{'TIME':<19}  {'MODEL':<{width}}  {'KIND':<{kinds}}  MESSAGE", "bold"))
    for event in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["Time"] / 1e6))
        kind = out.paint(f"{clean(event['Kind']):<{kinds}}", event["Priority"])
        actor = out.paint(f" ({clean(event['Actor'])})", "dim") if event["Actor"] else ""
        out.line(f"{when}  {clean(event['Model']):<{width}}  {kind}  {clean(event['Message'])}{actor}")
