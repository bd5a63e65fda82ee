"""Looks at the kernel, the devices and the programs of this machine. `root` is where /proc, /sys and /dev lie."""

from __future__ import annotations

import grp
import os
import re
import shutil
import stat
import sys
from itertools import islice
from pathlib import Path

from cortexctl.doctor import bounded, userns
from cortexctl.doctor.evidence import Gpus, Kernel, Listed, Namespaces, Node, Program, Unseen
from cortexd.diagnosis import machine
from cortexd.systemd.cgroup import mount_point

_USERNS_SECONDS = 3.0
VERSION_SECONDS = 2.5
_MAX_TEXT = 64 << 10

NAMESPACE_SETTINGS = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
"""The kernel's own, Debian's and Ubuntu's."""

KILLERS = ("earlyoom", "systemd-oomd", "nohang", "oomd")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI vendor, and the first byte of a display controller's class

BUILT_IN = {
    "vllm": ("vllm",),
    "llamacpp": ("llama-server",),
    "ollama": ("ollama",),
    "tgi": ("text-generation-launcher",),
}
"""The backends that are built into cortexd, and their programs: each says its version when asked for --version."""


def kernel(root: Path = Path("/")) -> Kernel:
    """Control groups, namespaces, ports and who kills when memory is short."""
    first, last = _numbers(root, "net.ipv4.ip_local_port_range", (32768, 60999))[:2]
    return Kernel(
        cgroup2=mount_point(_text(root / "proc/self/mountinfo")) is not None,
        namespaces=_namespaces(root),
        ephemeral=(first, last),
        first_unprivileged=_numbers(root, "net.ipv4.ip_unprivileged_port_start", (1024,))[0],
        reserved=_ranges(_text(_sysctl(root, "net.ipv4.ip_local_reserved_ports"))),
        killers=_killers(root),
    )


def _namespaces(root: Path) -> Namespaces | Unseen:
    settings = {name: _numbers(root, name, (-1,))[0] for name in NAMESPACE_SETTINGS if _sysctl(root, name).exists()}
    command = [sys.executable, "-I", "-S", userns.__file__]
    try:
        status, said = bounded.run(command, _USERNS_SECONDS)
    except OSError as e:
        return Unseen(f"{sys.executable} cannot be run: {e.strerror}")
    if status is None:
        return Unseen(f"the attempt to make one took more than {_USERNS_SECONDS:g} s")
    return Namespaces(obstacle="" if status == 0 else _first_line(said) or f"status {status}", settings=settings)


def _sysctl(root: Path, name: str) -> Path:
    return root / "proc/sys" / name.replace(".", "/")


def _numbers(root: Path, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = tuple(int(word) for word in _text(_sysctl(root, name)).split() if word.isdecimal())
    return found if len(found) >= len(default) else default


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    """8000,9000-9010 as pairs of first and last."""
    return tuple((int(m[1]), int(m[2] or m[1])) for m in re.finditer(r"(\d{1,5})(?:-(\d{1,5}))?", text))


def _killers(root: Path) -> tuple[str, ...]:
    names = {_text(process / "comm").strip() for process in (root / "proc").glob("[0-9]*")}
    return tuple(name for name in KILLERS if name in names)


def gpus(user: str, root: Path = Path("/")) -> Gpus:
    """Device nodes, driver and cards."""
    paths = [
        *sorted(root.glob("dev/nvidia*")),
        *sorted(root.glob("dev/kfd")),
        *sorted(root.glob("dev/dxg")),
        *sorted(root.glob("dev/dri/renderD*")),
    ]
    cards = list(islice(root.glob("sys/bus/pci/devices/*"), 4096))
    return Gpus(
        count=machine.gpus(root).count,
        nodes=tuple(_node(path, root) for path in paths if not path.is_dir()),
        nvidia_driver=(root / "proc/driver/nvidia/version").exists(),
        nvidia_cards=sum(
            _text(card / "vendor").strip() == _NVIDIA and _text(card / "class").startswith(_DISPLAY) for card in cards
        ),
        groups=frozenset(group.gr_name for group in grp.getgrall() if user in group.gr_mem),
    )


def _node(path: Path, root: Path) -> Node:
    status = path.stat()
    group = ""
    if status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP:
        try:
            group = grp.getgrgid(status.st_gid).gr_name
        except KeyError:
            group = str(status.st_gid)
    return Node(f"/{path.relative_to(root)}", os.access(path, os.R_OK | os.W_OK), group)


def built_in(search_path: str) -> tuple[Listed, ...]:
    """The backends that are built in, where no daemon tells of all."""
    found = {n: next(filter(None, (shutil.which(p, path=search_path) for p in ps)), "") for n, ps in BUILT_IN.items()}
    return tuple(Listed(name=name, executable=executable) for name, executable in found.items())


def program(listed: Listed) -> Program:
    """A backend's program with its version; one that is not known to say it is not run."""
    known = Program(name=listed.name, executable=listed.executable, problem=listed.problem)
    if not listed.executable or Path(listed.executable).name not in BUILT_IN.get(listed.name, ()):
        return known
    if version := _installed(listed):
        return Program(name=listed.name, executable=listed.executable, version=version)
    try:
        status, said = bounded.run([listed.executable, "--version"], VERSION_SECONDS, _environment())
    except OSError as e:
        return Program(name=listed.name, executable=listed.executable, obstacle=f"cannot be run: {e.strerror}")
    if status == 0:
        return Program(name=listed.name, executable=listed.executable, version=version_in(said))
    if status is None:  # Python programs load for many seconds before they say anything
        return known
    why = f"ended with status {status} when asked for --version: {_last_line(said)[:200]}"
    return Program(name=listed.name, executable=listed.executable, obstacle=why)


def _installed(listed: Listed) -> str:
    """The version of a Python package, from the folder that pip wrote beside the program; empty where there is none."""
    prefix = Path(os.path.realpath(listed.executable)).parent.parent
    folders = prefix.glob(f"lib/python3*/site-packages/{listed.name}-*.dist-info")
    return next((f.name.removesuffix(".dist-info").partition("-")[2] for f in folders), "")


def _environment() -> dict[str, str]:
    kept = ("HOME", "USER", "LANG", "PATH", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ}


def version_in(said: str) -> str:
    """The version in what a program says of itself; empty where there is none."""
    match = re.search(r"\bversion:? (?:is )?(\d[\w.+-]*)", said) or re.search(r"\b\d+\.\d+[\w.+-]*", _last_line(said))
    return "" if match is None else match[match.lastindex or 0][:40]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""
