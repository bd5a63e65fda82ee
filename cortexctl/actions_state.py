"""Verbs that say how models are: status, list, is-active, is-enabled, is-failed."""

from __future__ import annotations

from cortexctl.bus import PROPERTIES, Call
from cortexctl.context import Context
from cortexctl.errors import FAILURE, NO_SUCH_MODEL, NOT_ACTIVE, OK
from cortexctl.human import NOT_AVAILABLE, duration, size
from cortexctl.output import ACTIVE, Row
from cortexd.names import MANAGER_INTERFACE, ROOT_PATH
from cortexd.version import VERSION

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cortexctl.context import Info

_ENABLED = ("enabled", "enabled-runtime", "static", "alias", "indirect", "generated")
"""The unit file states that systemctl is-enabled counts as enabled."""

_SHOWN = (
    "Name",
    "State",
    "StateReason",
    "Backend",
    "URL",
    "MemoryCurrent",
    "UnitFileState",
    "Warnings",
    "RestartNeeded",
    "UsualLoadUSec",
)
"""Properties that the table is made of."""


def status(context: Context) -> int:
    """The table of all models; with names, everything about each."""
    if not context.args.names:
        return table(context)
    from cortexctl.details import describe

    models = context.models(context.args.names, settings=True, usage=True, limits=True)
    for number, info in enumerate(models):
        if context.out.json:
            context.out.result(info)
            continue
        if number:
            context.out.line()
        describe(context.out, info, context.args.lines)
    if not models:
        return NO_SUCH_MODEL
    return OK if all(info["State"] in ACTIVE for info in models) else NOT_ACTIVE


def table(context: Context) -> int:
    """One line a model."""
    out, names = context.out, context.args.names
    if out.json:
        models = context.models(names, usage=True, settings=True, limits=True)
    else:
        models = context.models(names, usage=True, properties=_SHOWN)
    if out.json:
        for info in models:
            out.result(info)
    elif models:
        out.table(("NAME", "STATE", "BACKEND", "ENDPOINT", "MEMORY", "BOOT"), [_row(info) for info in models], (1, 5))
        running = sum(info["State"] in ACTIVE for info in models)
        out.hint(f"\n{len(models)} registered, {running} running. '{out.program} status NAME' tells more.")
    elif not names:
        out.note(f"no model is registered; '{out.program} register NAME --path PATH' adds one")
    if not names:
        (daemon,) = context.bus.call(Call(ROOT_PATH, PROPERTIES, "GetAll", "s", (MANAGER_INTERFACE,)))
        _warn_about_daemon(context, daemon)
    return OK


def is_active(context: Context) -> int:
    """Print each state; success if one is active."""
    return _check(context, "State", lambda info: info["State"] in ACTIVE, NOT_ACTIVE)


def is_failed(context: Context) -> int:
    """Print each state; success if one has failed."""
    return _check(context, "State", lambda info: info["State"] == "failed", FAILURE)


def is_enabled(context: Context) -> int:
    """Print the state of each unit file; success if one is enabled."""
    return _check(context, "UnitFileState", lambda info: info["UnitFileState"] in _ENABLED, FAILURE)


def _check(context: Context, key: str, holds: Callable[[Info], bool], otherwise: int) -> int:
    """Print one property of each model; the code is systemctl's: success as soon as one holds."""
    out = context.out
    models, unknown = context.lookup(context.args.names, properties=["Name", key, "State"])
    for info in models:
        out.result({"Name": info["Name"], key: info[key]}, out.paint(info[key], info[key]))
    for name, error in unknown.items():
        out.result({"Name": name, "error": error.name, "message": error.message}, "unknown")
    if any(holds(info) for info in models):
        return OK
    return otherwise if models else NO_SUCH_MODEL


def _row(info: Info) -> Row:
    memory = info["MemoryCurrent"]
    cells = (
        info["Name"],
        info["State"],
        info["Backend"],
        info["URL"],
        size(memory) if memory != NOT_AVAILABLE else "-",
        info["UnitFileState"] or "-",
    )
    usual = info["UsualLoadUSec"] / 1e6
    estimate = f"usually ready after {duration(usual)}" if info["State"] == "starting" and usual >= 1 else ""
    remarks = [info["StateReason"], estimate, *info["Warnings"]]
    if info["RestartNeeded"]:
        remarks.append("settings changed since it was started; restart it to use them")
    return Row(cells, info["State"], "; ".join(remark for remark in remarks if remark))


def _warn_about_daemon(context: Context, daemon: dict[str, Any]) -> None:
    for warning in daemon["Warnings"]:
        context.out.warn(warning)
    if daemon["Version"] != VERSION:
        from cortexctl.diagnose import version_mismatch

        context.out.warn(version_mismatch(daemon["Version"]).message)
