"""The verb security: what was asked for of models' sandboxes, and what of it is in force."""

from __future__ import annotations

from cortexctl.context import Context, model_call
from cortexctl.errors import FAILURE
from cortexctl.output import Row

_KEYS = ("directive", "requested", "effect", "why")
_HEAD = ("DIRECTIVE", "REQUESTED", "EFFECT", "WHY")
_EFFECT = 2
_FAILED = ("not in force", "unknown")
_SECONDS = 120.0
"""For each model: some thirty units are run where it is not known yet, and one may take a slow machine seconds."""
_OPEN = "security="
"""How a warning begins that is about a profile without a sandbox, or without a fence (cortexd/checks.py)."""


def security(context: Context) -> int:
    """A table for each model; success where all that was asked for is in force, or could not be done anyway."""
    args, out = context.args, context.out
    options = {"probe": ("b", True)} if args.probe else {}
    missing, found = False, context.models(args.names, properties=["Name", "Warnings"])
    names = [info["Name"] for info in found]
    for info in found:
        context.warn(info["Name"], [text for text in info["Warnings"] if text.startswith(_OPEN)])
    calls = {name: model_call(name, "GetSecurity", "a{sv}", options) for name in names}
    for number, (name, (rows,)) in enumerate(context.each(calls, _SECONDS * len(calls))):
        missing = missing or any(row[_EFFECT] in _FAILED for row in rows)
        out.result({"Name": name, "directives": [dict(zip(_KEYS, row, strict=True)) for row in rows]})
        if out.json:
            continue
        if len(names) > 1:
            out.line(("\n" if number else "") + out.paint(f"# {name}", "bold"))
        out.table(_HEAD, [Row(row) for row in rows], painted=(_EFFECT,))
    return context.exit_code or (FAILURE if missing else 0)
