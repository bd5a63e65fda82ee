"""What the attempts are told of the machine, as it looks from outside of any sandbox. Blocking."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cortexd.sandbox import attempts
from cortexd.scope import Scope

_SEEN = {
    "tmp": "/tmp",
    "var-tmp": "/var/tmp",
    "shared-memory": "/dev/shm",
    "devices": "/dev",
    "run": "/run",
    "terminals": "/dev/pts",
    "console": "/dev/tty1",
}
_PARENTS = ("/", "/srv", "/mnt", "/media", "/opt", "/data", "/var", "/var/lib", "/var/local", "/var/log", "/usr/local")
_NOT = ("/tmp", "/var/tmp", "/dev", "/proc", "/sys", "/run", "/home", "/root")
"""Those that directives of their own are for."""
_MAX_LOOKED_AT = 2000


def where(scope: Scope, umask: str = "0022", written: Sequence[str] = ()) -> attempts.Where:
    """For a model with this file mode mask that may write these folders. Raises OSError."""
    named = {**_SEEN, "home": str(scope.home)}
    seen = {f"{name}-is": attempts.identity(path) for name, path in named.items() if Path(path).exists()}
    seen["user-namespace-is"] = str(Path("/proc/self/ns/user").readlink())
    own = {"data": str(scope.data), "units": str(scope.unit_folder), "runtime": str(scope.runtime or "")}
    excepted = [*_NOT, str(scope.home), *map(os.path.realpath, written)]
    return {**named, **own, **seen, "umask": umask, "elsewhere": elsewhere(excepted)}


def elsewhere(excepted: Sequence[str], parents: Sequence[str] = _PARENTS) -> str:
    """A folder that this user may write and that lies in none of `excepted`; empty where none is found."""
    network = _network_mounts()
    for looked_at, path in enumerate(_children(parents)):
        if looked_at >= _MAX_LOOKED_AT:
            break
        # A server that does not answer would have us wait.
        if path in network or any(f"{path}/".startswith(f"{folder.rstrip('/')}/") for folder in excepted):
            continue
        if os.access(path, os.W_OK | os.X_OK):
            return path
    return ""


def _children(parents: Sequence[str]) -> Iterator[str]:
    for parent in parents:
        with suppress(OSError), os.scandir(parent) as entries:
            yield from (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def _network_mounts() -> set[str]:
    """Where file systems lie that need a server, or a program of somebody's."""
    found = set()
    with suppress(OSError), Path("/proc/self/mounts").open(encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _, path, kind, *_ = line.split(" ")
            if kind.startswith(("nfs", "cifs", "smb", "fuse", "9p", "ceph", "afs", "autofs", "hostfs", "glusterfs")):
                found.add(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path))
    return found
