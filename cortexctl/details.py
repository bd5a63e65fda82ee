"""`status NAME`: one model as systemctl shows a unit."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path

from cortexctl import journal
from cortexctl.human import (
    NOT_AVAILABLE,
    ago,
    alarming,
    clean,
    duration,
    exact_size,
    failed_runs,
    loading,
    moment,
    size,
)
from cortexctl.output import Output

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from cortexctl.context import Info

_LABEL_WIDTH = 11


def describe(out: Output, info: Info, lines: int) -> None:
    """Print everything about a model, then its last log lines."""
    served = clean(f"{info['Backend']}: {info.get('Settings', {}).get('path', '')}")
    out.line(f"{out.mark(info['State'])} {out.paint(info['Name'], 'bold')} - {served}")
    for label, text, kind in _fields(info):
        head, _, rest = (clean(text), "", "") if kind == "alarm" else clean(text).partition(" ")
        out.line(f"{label + ':':>{_LABEL_WIDTH}} {out.paint(head, kind)}{' ' if rest else ''}{rest}")
    if lines <= 0:
        return
    out.line()
    problem = journal.unreadable()
    if problem:
        out.line(out.paint(f"Log lines cannot be shown: {problem}", "dim"))
    for line in journal.tail(info["Unit"], info["InvocationID"], lines):
        out.line(line)


def _fields(info: Info) -> Iterator[tuple[str, str, str]]:
    """Label, text, and the role that colours the text's first word."""
    yield "State", info["State"] + loading(info, time.time()), info["State"]
    if info["StateReason"]:
        yield "Reason", info["StateReason"], ""
    if info["MainPID"]:
        yield "Health", _health(info), info["Health"]
    yield "URL", info["URL"], ""
    if info["URL"].startswith("unix:"):
        yield "Ask by", f"curl --unix-socket {info['URL'].removeprefix('unix:')} http://localhost/", ""
    yield "Loaded", f"{info['LoadState']} ({info['FragmentPath'] or info['Unit']}; {info['UnitFileState']})", ""
    for path in info["DropInPaths"]:
        yield "Drop-In", path, ""
    result = "" if info["Result"] in ("", "success") else f"; result: {info['Result']}"
    changed = info["StateChangeTimestamp"]
    since = f" since {moment(changed)}; {ago(changed, time.time())}" if changed else ""
    yield "Active", f"{info['ActiveState']} ({info['SubState']}{result}){since}", ""
    if info["StatusText"] and info["ActiveState"] not in ("inactive", "failed"):
        yield "Status", f'"{info["StatusText"]}"', ""
    if restarts := [*_restarts(info)]:
        yield "Restarts", "; ".join(restarts), ""
    if info["MainPID"]:
        yield from _process(info, info.get("Settings", {}))
    if info["Secrets"]:
        yield "Secrets", ", ".join(info["Secrets"]), ""
    if info["RestartNeeded"]:
        yield "Changed", "settings or secrets were changed since it was started; restart it to use them", "warning"
    for warning in info["Warnings"]:
        yield "Warning", warning, "alarm" if alarming(warning) else ""


def _restarts(info: Info) -> Iterator[str]:
    if info["NRestarts"]:
        yield f"{info['NRestarts']} by systemd"
    if info["FailedRuns"]:
        yield failed_runs(info["FailedRuns"], info.get("Settings", {}).get("max_restarts", 0))


def _process(info: Info, settings: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "Main PID", f"{info['MainPID']} ({_command(info['MainPID'])})", ""
    limits = _limits(info, settings)
    memory = _held((("high", limits["MemoryHigh"]), ("limit", limits["memory"])))
    yield "Memory", _figure(info["MemoryCurrent"], "memory", size) + memory, ""
    cores = f"{limits['cpu']} cores" if limits["cpu"] else ""
    cpu = _figure(info["CPUUsageNSec"], "cpu", lambda n: duration(n / 1e9))
    yield "CPU", cpu + _held((("limit", cores), ("weight", limits["CPUWeight"]))), ""
    yield "Tasks", _figure(info["TasksCurrent"], "pids", str) + _held((("limit", limits["TasksMax"]),)), ""
    if info["ControlGroup"]:
        yield "IO", f"weight: {limits['IOWeight']}" if limits["IOWeight"] else _lacks("io"), ""
        yield "CGroup", info["ControlGroup"], ""
    yield from _not_in_force(info)


def _limits(info: Info, settings: dict[str, Any]) -> dict[str, str]:
    """Each limit that holds; where the daemon cannot tell, what the settings say. Empty: none holds."""
    asked = {key: settings.get(key) for key in ("memory", "MemoryHigh", "cpu", "CPUWeight", "IOWeight", "TasksMax")}
    sizes = ("memory", "MemoryHigh")
    shown = {k: "" if v is None else exact_size(v) if k in sizes else f"{v:g}" for k, v in asked.items()}
    return shown | {setting: effective for setting, _, effective, _, _ in info["Limits"]}


def _held(limits: Iterable[tuple[str, str]]) -> str:
    text = ", ".join(f"{word}: {value}" for word, value in limits if value)
    return f" ({text})" if text else ""


def _not_in_force(info: Info) -> Iterator[tuple[str, str, str]]:
    """What was asked for and does not hold; a line for all that have one reason."""
    amiss = sorted((tuple(limit) for limit in info["Limits"] if limit[3]), key=lambda limit: limit[3:])
    for (reason, remedy), group in groupby(amiss, key=lambda limit: limit[3:]):
        named = ", ".join(
            f"{setting}={asked}" + (f" (it is {effective})" if effective else "")
            for setting, asked, effective, *_ in group
        )
        yield "Limits", f"not in force: {named}: {reason}; {remedy}", "warning"


def _figure(value: int, controller: str, text: Any) -> str:
    if value == NOT_AVAILABLE:
        return _lacks(controller)
    return str(text(value))


def _lacks(controller: str) -> str:
    return f"not available: the control group has no {controller} controller"


def _health(info: Info) -> str:
    text: str = info["Health"]
    if info["HealthFailures"]:
        before = " before that" if text == "busy" else ""
        count = info["HealthFailures"]
        text += f" ({f'{count} failed probes in a row' if count > 1 else 'one failed probe'}{before})"
    return f"{text}: {info['HealthReason']}" if info["HealthReason"] else text


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return "gone"
