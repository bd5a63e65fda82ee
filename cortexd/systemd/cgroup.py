"""What a unit uses and may use, from the files of its control group (cgroup v2; admin-guide/cgroup-v2 of the kernel)."""

from __future__ import annotations

import re
from pathlib import Path

from cortexd.kinds import INFINITY
from cortexd.limits import LIMITS
from cortexd.systemd.protocol import UNKNOWN, Group, UnitLimits, UnitUsage


def mount_point(mountinfo: str) -> Path | None:
    """Where cgroup2 is mounted, from the text of /proc/self/mountinfo (proc(5)); None if it is not."""
    found = None
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 "):
            # A later mount covers an earlier one.
            found = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), mount.split(" ")[4])
    return Path(found) if found else None


def _number(text: str | None) -> int:
    return int(text) if text and text.strip().isdigit() else UNKNOWN


def read_usage(group: Path) -> UnitUsage | None:
    """The counters of a control group; UNKNOWN those whose controller is not enabled, None if the group cannot be read."""

    def content(name: str) -> str | None:
        try:
            return (group / name).read_text()
        except OSError:
            return None

    cpu = content("cpu.stat")  # there without a controller, too
    if cpu is None:
        return None
    micros = next((_number(line.split()[1]) for line in cpu.splitlines() if line.startswith("usage_usec ")), UNKNOWN)
    return UnitUsage(
        memory=_number(content("memory.current")),
        cpu_nsec=UNKNOWN if micros == UNKNOWN else micros * 1000,
        tasks=_number(content("pids.current")),
    )


def read_limits(root: Path, group: str, around_all: dict[Path, Group | None] | None = None) -> UnitLimits | None:
    """What the control group (a path below `root`, the hierarchy's) and those around it are held to; None where it is gone.
    `around_all`: what was read of folders that lie around several groups, and is read of them now."""
    seen = {} if around_all is None else around_all

    def shared(folder: Path) -> Group | None:
        if folder not in seen:
            seen[folder] = _group(folder)
        return seen[folder]

    place = root / group.lstrip("/")
    own = _group(place)
    if own is None:
        return None
    around = [shared(folder) for folder in place.parents if folder != root and folder.is_relative_to(root)]
    whole = shared(root)
    return UnitLimits((own, *filter(None, around)), whole.controllers if whole else frozenset())


def _group(folder: Path) -> Group | None:
    try:
        controllers = frozenset((folder / "cgroup.controllers").read_text().split())
    except OSError:
        return None
    values = {}
    for limit in LIMITS:
        try:
            value = limit_value((folder / limit.file).read_text())
        except OSError:
            continue
        if value is not None:
            values[limit.file] = value
    return Group(folder.name, controllers, values)


def limit_value(text: str) -> float | None:
    """A limit's file: a number, "max", "default WEIGHT" with lines for devices after it (io.weight), or quota and period in
    microseconds (cpu.max), which make cores. None for what is none of these."""
    words = text.partition("\n")[0].removeprefix("default ").split()
    if words and words[0] == "max":
        return INFINITY
    if not words or not all(word.isdecimal() for word in words[:2]):
        return None
    numbers = [int(word) for word in words[:2]]
    if len(numbers) == 1:
        return numbers[0]
    return numbers[0] / numbers[1] if numbers[1] else None
