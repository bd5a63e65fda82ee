"""The verb repair: unit files that are not as cortexd wrote them, what differs, and their repair."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from cortexctl.context import Context, model_call
from cortexctl.errors import FAILURE, OK, CtlError
from cortexctl.human import clean

_MOST_LINES = 200
"""Of a difference; an edited file may be anything."""

_LOST = ("edited", "foreign")
"""States of a file that is somebody's work."""


def repair(context: Context) -> int:
    """Show what differs, ask where something is replaced that somebody wrote, and repair it. Success where nothing is left."""
    out, args = context.out, context.args
    drifted, asks = [], False
    looks = context.on_models(args.names, lambda name: model_call(name, "Repair", "a{sv}", {"dry_run": ("b", True)}))
    for name, (found,) in looks:
        if found["State"] != "current":
            drifted.append(name)
            _show(context, name, found)
        elif args.names:
            out.result(_record(name, found), f"{name}: its unit file is as cortexd wrote it")
        if found["State"] in _LOST and not args.yes:
            asks = True
    if asks and (out.json or not out.asking):
        sentence = (
            "nothing was changed: repair asks before it replaces a file, and there is no terminal; --yes answers it"
        )
        context.fail(CtlError("NotAsked", sentence))
        return FAILURE
    wanted = [name for name in drifted if not asks or out.agreed(f"Write the unit file of {name} again?")]
    for name, (done,) in context.each({name: model_call(name, "Repair", "a{sv}", {}) for name in wanted}):
        kept = f"; what was there is kept as {clean(done['Kept'])}" if done["Kept"] else ""
        out.result(_record(name, done), f"{name}: its unit file is written again{kept}")
    if not drifted and not args.names:
        out.note("every unit file is as cortexd wrote it")
    return FAILURE if len(wanted) < len(drifted) else OK


def _show(context: Context, name: str, found: dict[str, Any]) -> None:
    out = context.out
    if out.json or out.quiet:
        return
    out.line(out.paint(f"{name}: {clean(found['Path'])} ({found['State']})", "bold"))
    if found["State"] == "missing":
        return
    lines = _difference(found)
    for line in islice(lines, _MOST_LINES):
        out.line(out.paint(line, {"-": "failed", "+": "ready"}.get(line[:1], "")))
    if more := sum(1 for _ in lines):
        out.line(out.paint(f"... and {more} more lines", "dim"))


def _difference(found: dict[str, Any]) -> Iterator[str]:
    """What repairing changes, as diff -u tells it, harmless to a terminal."""
    from difflib import unified_diff

    before, after = ([clean(line, keep="\t") for line in found[key].split("\n")] for key in ("Found", "Wanted"))
    return unified_diff(before, after, "as it is", "as cortexd writes it", n=1, lineterm="")


def _record(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"Name": name, **{key: found[key] for key in ("State", "Path", "Kept")}}
