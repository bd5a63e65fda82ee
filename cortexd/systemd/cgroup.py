"""What a unit uses, from the files of its control group (cgroup v2; admin-guide/cgroup-v2 of the kernel)."""

from __future__ import annotations

import re
from pathlib import Path

from cortexd.systemd.protocol import UNKNOWN, UnitUsage


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
