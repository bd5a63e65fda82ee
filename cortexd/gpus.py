"""Who holds memory of the GPUs, as NVIDIA's own program tells; nobody where it is not installed."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cortexd.bounded import output
from cortexd.names import model_name

_SECONDS = 5.0
_MAX_OUTPUT = 64 << 10  # bytes


async def memory() -> dict[int, int]:
    """GPU memory in bytes by process."""
    program = shutil.which("nvidia-smi")
    if not program:
        return {}
    query = ("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    return parse(await output(program, *query, seconds=_SECONDS, limit=_MAX_OUTPUT))


def parse(text: bytes) -> dict[int, int]:
    """nvidia-smi's rows "PID, MiB"; a process has one for each GPU. Rows without a figure ("[N/A]") are left out."""
    found: dict[int, int] = {}
    for row in text.decode(errors="replace").splitlines():
        pid, _, mebibytes = (part.strip() for part in row.partition(","))
        if pid.isdecimal() and mebibytes.isdecimal():
            found[int(pid)] = found.get(int(pid), 0) + (int(mebibytes) << 20)
    return found


@dataclass(frozen=True, slots=True)
class Holder:
    """A process of this user's that holds memory of a GPU and belongs to no model."""

    pid: int
    program: str
    memory: int
    """Bytes."""


def strays(held: dict[int, int], proc: Path = Path("/proc")) -> list[Holder]:
    """Those of `held` that are ours and run in no model's unit, the largest first. Blocking."""
    found = []
    for pid, size in held.items():
        folder = proc / str(pid)
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            units = re.findall(r"/([^/\n]+\.service)", (folder / "cgroup").read_text())
            if any(model_name(unit) for unit in units):
                continue
            found.append(Holder(pid, (folder / "comm").read_text(errors="replace").strip(), size))
        except OSError:
            continue  # it has gone meanwhile
    return sorted(found, key=lambda holder: -holder.memory)
