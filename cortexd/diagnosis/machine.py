"""What this machine has for a model: GPUs, and room where a server keeps what it downloads."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

_MAX_TEXT = 64 << 10  # bytes of one file of /proc and /sys


@dataclass(frozen=True, slots=True)
class Gpus:
    """`count` is None where there are GPUs that this way of looking cannot count."""

    count: int | None = 0
    identifiers: tuple[str, ...] = ()
    """NVIDIA's, such as GPU-5d5ba0d6-...; empty where they are not known."""


def gpus(root: Path = Path("/")) -> Gpus:
    """The GPUs that a process here can use, below `root`.

    NVIDIA's driver shows each in /proc/driver/nvidia/gpus, also in a container that may open fewer of the nodes
    /dev/nvidiaN: the nodes count. AMD's shows each node with compute units in kfd's topology. Others are not counted.
    """
    nodes = [path for path in root.glob("dev/nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    shown = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    if nodes:
        found = [match[1] for path in shown if (match := re.search(r"GPU UUID:\s*(GPU-[0-9a-f-]+)", _text(path)))]
        return Gpus(len(nodes), tuple(found))
    amd = [p for p in root.glob("sys/class/kfd/kfd/topology/nodes/*/properties") if _computes(_text(p))]
    if amd:
        return Gpus(len(amd))
    if (root / "dev/dxg").exists() or any(root.glob("dev/dri/renderD*")):
        return Gpus(None)
    return Gpus()


def _computes(properties: str) -> bool:
    match = re.search(r"^simd_count (\d+)$", properties, re.MULTILINE)
    return match is not None and int(match[1]) > 0


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that the server has to write, made at its start where it is missing."""

    path: Path
    obstacle: Path | None = None
    """What keeps us from writing or making it."""
    free: int | None = None
    """Bytes; None where it is not known."""


def folder(path: Path) -> Folder:
    """See whether a folder can be written, or made. Blocking."""
    there = path
    try:
        while there != there.parent and not (there.exists() or there.is_symlink()):
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return Folder(path, obstacle=there)
        return Folder(path, free=shutil.disk_usage(there).free)
    except OSError:  # a folder on the way may not be searched
        return Folder(path, obstacle=there)
