"""The verb logs: journalctl with the unit filled in."""

from __future__ import annotations

import os
import sys

from cortexctl import filtered, journal
from cortexctl.bus import Bus
from cortexctl.context import Context, manager_call
from cortexctl.errors import NO_SUCH_MODEL, USAGE, CtlError
from cortexd.names import unit_name

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from cortexctl.context import Info

_OPTIONS = (
    ("follow", "--follow"),
    ("lines", "--lines"),
    ("since", "--since"),
    ("until", "--until"),
    ("grep", "--grep"),
    ("output", "--output"),
    ("reverse", "--reverse"),
    ("no_pager", "--no-pager"),
    ("quiet", "--quiet"),
)


def logs(context: Context) -> int:
    """Run journalctl, and show what it says without what servers wrote to steer the terminal: `-o cat` and its like pass that
    on, and every format passes on characters that turn the direction of writing. Works while the daemon is dead, and does not
    start it."""
    args = context.args
    models = _known(context)
    if models is not None and not models:
        return NO_SUCH_MODEL
    if (problem := journal.unreadable()) is not None:
        raise CtlError("JournalUnreadable", f"log lines cannot be shown: {problem}")
    units = [unit_name(name) for name in args.names] if models is None else [info["Unit"] for info in models]
    selection = [word for unit in units for word in (*journal.unit_match(unit), "+")] + journal.dropped_match()
    if args.previous:
        if len(units) != 1:
            raise CtlError("Usage", "--previous takes one model", USAGE)
        selection = journal.run_match(_previous(context, args.names[0], models))
    elif not args.quiet and (note := journal.flood(units)):
        context.out.warn(note)
    if context.out.json:
        args.output = args.output or "json"
    command = ["journalctl", journal.reading(), *_given(args), *selection]
    terminal = sys.stdout.isatty()
    try:
        if args.output == "export" and not terminal:
            os.execvp(command[0], command)  # binary fields, for a program that reads that format
        as_json = (args.output or "").startswith("json")
        status = filtered.run(command, as_json=as_json, pager=terminal and not args.follow and not args.no_pager)
    except FileNotFoundError as e:
        raise CtlError("JournalUnreadable", f"cannot run journalctl: {e.strerror}") from None
    context.out.json = False  # journalctl's JSON is all there is
    return status


def _known(context: Context) -> list[Info] | None:
    """The models that are named; None where the daemon does not run, and the journal has to do."""
    try:
        context.bus = Bus(autostart=False)
        return context.models(context.args.names)
    except CtlError:
        return None


def _previous(context: Context, name: str, models: list[Info] | None) -> str:
    """The invocation ID of the run before the current one, or before the last one when none is current."""
    runs = _recorded(context, name) if models else []
    if len(runs) < 2:
        runs = journal.runs(unit_name(name), 100) or runs
    current = models[0]["InvocationID"] if models else ""
    earlier = runs[runs.index(current) + 1 :] if current in runs else runs[0 if current else 1 :]
    if not earlier:
        raise CtlError("NoPreviousRun", f"no run of {name} before this one is known")
    return earlier[0]


def _recorded(context: Context, name: str) -> list[str]:
    """The invocation IDs of a model's runs, newest first, as the daemon's events have them."""
    options = {"limit": ("u", 100), "kinds": ("as", ["run"])}
    (events,) = context.bus.call(manager_call("ListEvents", "asa{sv}", [name], options))
    return list(dict.fromkeys(event["InvocationID"] for event in reversed(events) if event["InvocationID"]))


def _given(args: object) -> list[str]:
    """The options that were given, as journalctl spells them."""
    given = []
    for name, flag in _OPTIONS:
        value = getattr(args, name)
        if value is True:
            given.append(flag)
        elif value:
            given.append(f"{flag}={value}")
    return given
