"""Who holds memory of the GPUs, as NVIDIA's own program tells, and who uses them, as that and the kernel tell; nobody where
neither does. What is read here was seen in manuals, not on a GPU."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cortexd.bounded import output
from cortexd.names import model_name

DEVICES = Path("/dev/dri")
"""What a process opens to use a GPU through the kernel's DRM."""

_SECONDS = 5.0
_MAX_OUTPUT = 64 << 10  # bytes
_MAX_DESCRIPTORS = 1024  # of one process
_MAX_ELAPSED = 60.0  # seconds


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


class Shares:
    """What each process uses of NVIDIA's GPUs now: one look for all who ask, and none while the program of the last one is still
    there: a driver that hangs keeps it from ending, killed or not, and others would pile up beside it."""

    def __init__(self) -> None:
        self._look: asyncio.Task[dict[int, float]] | None = None
        self._program: Process | None = None

    async def now(self) -> dict[int, float]:
        """In GPUs, by process: `nvidia-smi pmon`, which looks for about a second; nothing where it does not tell."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._ask())
        return await asyncio.shield(self._look)

    def close(self) -> None:
        """Look no more."""
        if self._look:
            self._look.cancel()

    async def _ask(self) -> dict[int, float]:
        program = shutil.which("nvidia-smi")
        if not program or (self._program is not None and self._program.returncode is None):
            return {}
        command = (program, "pmon", "-c", "1", "-s", "u")
        return parse_shares(await output(*command, seconds=_SECONDS, limit=_MAX_OUTPUT, began=self._began))

    def _began(self, program: Process) -> None:
        self._program = program


def parse_shares(text: bytes) -> dict[int, float]:
    """The rows of `nvidia-smi pmon`, whose columns its first line names; "-" stands for what is not known."""
    found: dict[int, float] = {}
    columns: list[str] = []
    for row in text.decode(errors="replace").splitlines():
        words = row.lstrip("# ").split()
        if row.startswith("#"):
            columns = columns or words
            continue
        cells = dict(zip(columns, words, strict=False))
        pid, percent = cells.get("pid", ""), cells.get("sm", "")
        if pid.isdecimal() and percent.isdecimal():
            found[int(pid)] = found.get(int(pid), 0.0) + min(int(percent), 100) / 100
    return found


def engine_times(pids: Collection[int], proc: Path = Path("/proc"), devices: Path = DEVICES) -> dict[str, int]:
    """The nanoseconds that the engines of GPUs have worked for these processes, by what they opened: the kernel's "DRM client
    usage stats" (amdgpu, i915 and others; not NVIDIA's own driver). Blocking."""
    found: dict[str, int] = {}
    if not devices.is_dir():
        return found
    for pid in pids:
        try:
            descriptors = [*(proc / str(pid) / "fd").iterdir()][:_MAX_DESCRIPTORS]
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                if descriptor.readlink().is_relative_to(devices):
                    text = (proc / str(pid) / "fdinfo" / descriptor.name).read_text(errors="replace")[:_MAX_OUTPUT]
                    # A client is the same behind each copy of its descriptor, also in another process.
                    client = " ".join(re.findall(r"^drm-(?:pdev|client-id):\s*(\S+)", text, re.MULTILINE))
                    found[client] = sum(
                        map(int, re.findall(r"^drm-engine-[\w-]+:\s*(\d{1,18}) ns$", text, re.MULTILINE))
                    )
            except OSError:
                continue  # closed meanwhile
    return found


def can_tell() -> bool:
    """Whether there is anything on this machine that tells who uses GPUs."""
    return bool(shutil.which("nvidia-smi")) or DEVICES.is_dir()


class Meter:
    """The GPU time of one run, added up from look to look. `pids` tells its processes, and may block; `shares` is everybody's."""

    def __init__(
        self, pids: Callable[[], Collection[int]], shares: Shares, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pids, self._shares, self._clock = pids, shares, clock
        self._looked: float | None = None
        self._engines: Mapping[str, int] = {}
        self.total = 0
        """Nanoseconds from the first look to the last."""

    async def look(self) -> None:
        """Add what was used since the last look. Where only a share is told, it is taken for that of all this time, but of no
        more than a minute."""
        if not can_tell():
            return
        pids = await asyncio.to_thread(self._pids)
        engines, share = await asyncio.gather(asyncio.to_thread(engine_times, pids), self._shares.now())
        now = self._clock()
        if self._looked is not None:
            elapsed = min(now - self._looked, _MAX_ELAPSED)
            self.total += round(sum(share.get(pid, 0.0) for pid in pids) * elapsed * 1e9)
            self.total += sum(max(0, spent - self._engines.get(client, spent)) for client, spent in engines.items())
        self._looked, self._engines = now, engines


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
