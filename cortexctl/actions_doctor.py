"""The verb doctor: what is wrong with the machine, the session and the installation, and its repair where that is safe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from cortexctl.context import Context
from cortexctl.doctor import fixes
from cortexctl.doctor.examine import collect, judge
from cortexctl.doctor.line import Level, Line
from cortexctl.errors import FAILURE, OK, USAGE, CtlError
from cortexctl.human import clean
from cortexctl.output import Output, folded, printable, width

_SIGNS = {Level.OK: "✓", Level.NOTE: "-", Level.WARNING: "!", Level.ERROR: "×"}
_COLORS = {Level.OK: "ready", Level.NOTE: "dim", Level.WARNING: "warning", Level.ERROR: "error"}

Groups = Mapping[str, Sequence[Line]]


def doctor(context: Context) -> int:
    """One screen; with --fix, repairs and what is left after them. Success where nothing is to be fixed."""
    out, args = context.out, context.args
    if args.yes and not args.fix:
        raise CtlError("Usage", "--yes answers the questions of --fix; give both", USAGE)
    groups: Groups = judge(collect(), os.getuid())
    if not args.fix:
        _report(out, groups)
    else:
        if not out.json:
            _print(out, groups)
        groups = _fix(context, groups)
    if out.json:
        for group, lines in groups.items():
            for line in lines:
                out.result(_record(group, line))
    return FAILURE if any(line.wrong for line in _all(groups)) else OK


def _all(groups: Groups) -> list[Line]:
    return [line for lines in groups.values() for line in lines]


def _record(group: str, line: Line) -> dict[str, str | bool]:
    return {
        "group": group,
        "check": line.check,
        "level": str(line.level),
        "text": line.text,
        "remedy": line.remedy,
        "fixable": line.fix is not None,
    }


def _report(out: Output, groups: Groups) -> None:
    if out.json:
        return
    _print(out, groups)
    wrong = [line for line in _all(groups) if line.wrong]
    fixable = sum(line.fix is not None for line in wrong)
    if not wrong:
        _line(out, "all is well")
        return
    _line(out, f"{_things(len(wrong))} to fix")
    if fixable:
        out.note(f"'{out.program} doctor --fix' repairs {fixable} of them, and asks before each")


def _things(count: int) -> str:
    return "1 thing" if count == 1 else f"{count} things"


def _line(out: Output, text: str) -> None:
    if not out.quiet:
        out.line()
        out.line(text)


def _print(out: Output, groups: Groups) -> None:
    """With --quiet only what is wrong."""
    first = True
    for group, lines in groups.items():
        shown = [line for line in lines if line.wrong or not out.quiet]
        if not shown:
            continue
        if not first:
            out.line()
        first = False
        out.line(out.paint(group, "bold"))
        for line in shown:
            sign = out.paint(printable(_SIGNS[line.level]), _COLORS[line.level])
            text, *more = folded(clean(line.text), width(sys.stdout) - 4)
            out.line(f"  {sign} {text}")
            for rest in more:
                out.line(f"    {rest}")
            if line.remedy:  # on one line, however long: it may be a command, which is copied
                out.line(f"      {out.paint(clean(line.remedy), 'dim')}")


def _fix(context: Context, groups: Groups) -> Groups:
    """Ask for each repair and do it; returns what is to be said afterwards."""
    out = context.out
    fixable = [line for line in _all(groups) if line.fix is not None]
    asking = out.asking
    if not fixable:
        out.note("nothing here can be fixed by --fix" if any(line.wrong for line in _all(groups)) else "all is well")
        return groups
    if not (asking or context.args.yes):
        raise CtlError(
            "NotAsked", "nothing was changed: --fix asks before each repair, and there is no terminal; --yes answers it"
        )
    done = 0
    for line in fixable:
        assert line.fix is not None
        if not (context.args.yes or out.agreed(line.fix.question)):
            continue
        try:
            fixes.apply(line.fix, interactive=asking)
        except CtlError as e:
            context.exit_code = context.exit_code or e.exit_code
            out.error(e)
            continue
        done += 1
        out.note(f"done: {line.fix.question.partition('?')[0]}")
    if not done:
        return groups
    groups = judge(collect(), os.getuid())
    left = [line for line in _all(groups) if line.wrong]
    out.note(f"{_things(len(left))} left to fix" if left else "all is well now")
    return groups
