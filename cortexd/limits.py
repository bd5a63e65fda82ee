"""What a model may use: what is asked for, what the kernel holds it to, and why the two differ. Pure.

Sources: systemd.resource-control(5); admin-guide/cgroup-v2 of the kernel; measured on 252 and 257.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cortexd.kinds import INFINITY, size_text

if TYPE_CHECKING:  # the client reads DELEGATE alone
    from cortexd.model import ResourceLimits
    from cortexd.systemd.protocol import Group, UnitLimits

_FOLDER = "/etc/systemd/system/user@.service.d"
DELEGATE = (
    f"sudo mkdir -p {_FOLDER} && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | "
    f"sudo tee {_FOLDER}/delegate.conf, then reboot, or end all that your manager runs: "
    "sudo systemctl daemon-reload && sudo systemctl restart user@$(id -u)"
)
"""systemd's own default with cpuset and io beside it (systemd.resource-control(5)). A new login does not do where the user
lingers; on 252 a reload and `systemctl --user daemon-reexec` did, which ends nothing, on 257 not (measured)."""

_UNIFIED = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line; in a container, have its host pass it on"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: the setting's public name, its attribute, the unit's directive, the property that changes it while the
    unit runs, and the control group's file. `caps`: the groups around it limit it, too."""

    setting: str
    attribute: str
    directive: str
    bus_property: str
    file: str
    caps: bool
    tolerance: float = 0
    """How far the kernel's figure may be from what was asked for: it counts memory in pages, systemd CPU time in percent."""

    @property
    def controller(self) -> str:
        """Of cgroup v2."""
        return self.file.partition(".")[0]

    def text(self, value: float) -> str:
        """A value as `set` takes it."""
        if value == INFINITY:
            return "infinity"
        return size_text(int(value)) if self.controller == "memory" else f"{value:g}"


_PAGE = 65535  # less than the largest that any machine has

LIMITS = (
    Limit("memory", "memory", "MemoryMax", "MemoryMax", "memory.max", True, _PAGE),
    Limit("MemoryHigh", "memory_high", "MemoryHigh", "MemoryHigh", "memory.high", True, _PAGE),
    Limit("cpu", "cpu", "CPUQuota", "CPUQuotaPerSecUSec", "cpu.max", True, 0.01),
    Limit("CPUWeight", "cpu_weight", "CPUWeight", "CPUWeight", "cpu.weight", False),
    Limit("IOWeight", "io_weight", "IOWeight", "IOWeight", "io.weight", False),
    Limit("TasksMax", "tasks_max", "TasksMax", "TasksMax", "pids.max", True),
)
"""Every one of them can be changed while the unit runs."""

DIRECTIVES = tuple(limit.directive for limit in LIMITS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit as it is: both values as `set` takes them, `effective` empty where nothing is enforced; where they differ,
    why and what to do."""

    setting: str
    requested: str
    effective: str
    reason: str = ""
    remedy: str = ""


NOT_APPLIED = "the kernel has another value"
"""The reason where nothing explains the difference: the unit file was changed, and nobody told the unit that runs."""

LIFTED = "the kernel has a higher one: somebody lifted it, or the unit file was changed"
"""The same where more is allowed than was asked for."""


def properties(limits: ResourceLimits) -> dict[Limit, int]:
    """What SetUnitProperties takes for each (org.freedesktop.systemd1(5)); CPU time in microseconds a second."""
    values = {limit: getattr(limits, limit.attribute) for limit in LIMITS}
    return {limit: round(value * 1e6) if limit.setting == "cpu" else int(value) for limit, value in values.items()}


_HEADER = (
    '# This is a drop-in unit file extension, created via "systemctl set-property"\n'
    "# or an equivalent operation. Do not edit."
)


def left_by_us(limit: Limit, value: int) -> tuple[str, str]:
    """Name and text of the drop-in that SetUnitProperties leaves (measured on 252 and 257)."""
    said = "infinity" if value == INFINITY else str(value)
    if limit.setting == "cpu":
        said = f"{value // 10_000}%"
    return f"50-{limit.directive}.conf", f"{_HEADER}\n[Service]\n{limit.directive}={said}\n"


def is_ours(limit: Limit, value: int, text: str) -> bool:
    """Whether a drop-in's text is, to the byte, what SetUnitProperties leaves of this value. systemd writes CPU time in whole
    percent, or with two decimals, as its release has it."""
    whole = left_by_us(limit, value)[1]
    if limit.setting == "cpu" and value != INFINITY:
        head = whole.rpartition("=")[0]
        return text in (whole, f"{head}={value // 10_000}.00%\n", f"{head}={value // 100 / 100:.2f}%\n")
    return text == whole


def assigned(text: str) -> set[str]:
    """Those of DIRECTIVES that a drop-in's text sets (systemd.syntax(7))."""
    found, section = set(), ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        elif section == "[Service]" and (name := line.partition("=")[0].rstrip()) in DIRECTIVES:
            found.add(name)
    return found


def verdicts(asked: ResourceLimits, found: UnitLimits, drop_ins: Mapping[str, set[str]], name: str) -> list[Verdict]:
    """What is in force for the model `name`. `drop_ins`: path of each, and what it sets; the last one wins."""
    return [_verdict(limit, getattr(asked, limit.attribute), found, drop_ins, name) for limit in LIMITS]


def _verdict(limit: Limit, asked: float, found: UnitLimits, drop_ins: Mapping[str, set[str]], name: str) -> Verdict:
    requested = limit.text(asked)
    own = found.groups[0].values.get(limit.file) if found.groups else None
    if own is None:
        return Verdict(limit.setting, requested, "", *_not_enforced(limit, found))
    around = [(group.values[limit.file], i, group) for i, group in _around(limit, found)]
    if around and (least := min(around))[0] < min(own, asked) - limit.tolerance:
        value, place, group = least
        reason = f"{group.name} as a whole has no more"
        return Verdict(limit.setting, requested, limit.text(value), reason, _raise(limit, found, place))
    if own == asked or (math.isfinite(own) and abs(own - asked) <= limit.tolerance):
        return Verdict(limit.setting, requested, requested)
    theirs = [path for path, names in drop_ins.items() if limit.directive in names]
    if theirs:
        remedy = f"delete that line there, then 'systemctl --user daemon-reload' and 'cortexctl restart {name}'"
        return Verdict(limit.setting, requested, limit.text(own), f"{theirs[-1]} says otherwise", remedy)
    if limit.caps and own > asked:
        remedy = f"'cortexctl restart {name}' brings it; if its server did that, do not trust it"
        return Verdict(limit.setting, requested, limit.text(own), LIFTED, remedy)
    return Verdict(limit.setting, requested, limit.text(own), NOT_APPLIED, f"'cortexctl restart {name}' brings it")


def _not_enforced(limit: Limit, found: UnitLimits) -> tuple[str, str]:
    controller = limit.controller
    if not found.groups:
        return "this machine has no unified control groups (cgroup v2)", _UNIFIED
    if controller in found.groups[0].controllers:
        return (
            f"the kernel has no {limit.file}",
            f"use a kernel that has it ({limit.directive}= in systemd.resource-control(5))",
        )
    return unavailable(controller, found.controllers)


def unavailable(controller: str, everywhere: frozenset[str]) -> tuple[str, str]:
    """Why the user's manager lacks a controller, and what to do. `everywhere`: those of the whole hierarchy."""
    if controller not in everywhere:
        return f"cgroup v2 has no {controller} controller here", _UNIFIED
    return f"the {controller} controller is not delegated to your manager", DELEGATE


def _around(limit: Limit, found: UnitLimits) -> Iterator[tuple[int, Group]]:
    if limit.caps:
        yield from ((i, group) for i, group in enumerate(found.groups) if i and limit.file in group.values)


def _raise(limit: Limit, found: UnitLimits, place: int) -> str:
    """How a group's limit is taken away; those up to user@.service are the user's own."""
    group, value = found.groups[place], "" if limit.setting == "cpu" else "infinity"
    users = any(later.name.startswith("user@") for later in found.groups[place + 1 :])
    return f"'{'systemctl --user' if users else 'sudo systemctl'} set-property {group.name} {limit.directive}={value}'"


def lowered(before: ResourceLimits, after: ResourceLimits, used: int) -> str:
    """What to warn of where a limit was lowered below what the model uses (bytes); empty where that is not so."""
    if after.memory < before.memory and after.memory < used:
        return (
            f"memory={size_text(after.memory)} is less than the {_rounded(used)} that it uses: the kernel reclaims what it "
            "can, and kills the model where that is not enough"
        )
    if after.memory_high < before.memory_high and after.memory_high < used:
        return (
            f"MemoryHigh={size_text(after.memory_high)} is less than the {_rounded(used)} that it uses: the kernel "
            "slows it down while it reclaims memory"
        )
    return ""


def _rounded(size: int) -> str:
    for suffix, unit in (("G", 1 << 30), ("M", 1 << 20)):
        if size >= unit:
            return f"{size / unit:.1f}{suffix}"
    return str(size)
