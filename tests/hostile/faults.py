"""What may lie where a file of ours belongs."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

FAULTS = ("truncated", "garbage", "link", "dangling link", "fifo", "folder", "another's", "read-only", "closed", "huge")
_NEWNS, _NEWUSER, _BIND_ALL = 0x00020000, 0x10000000, 4096 | 16384


def lay(path: Path, fault: str, good: bytes, elsewhere: Path) -> None:
    """Put one in the place of `path`. A link leads to `elsewhere`, or to nothing beside it. "another's" has to be done in a
    process of its own, which alone will see it."""
    folder = path.is_dir()
    _remove(path)
    match fault:
        case "link":
            path.symlink_to(elsewhere)
        case "dangling link":
            path.symlink_to(elsewhere.with_name("nothing"))
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir(mode=0o700)
        case "another's":
            _mount(Path("/etc") if folder else Path("/etc/passwd"), path)
        case "huge":
            path.write_bytes(good)
            path.chmod(0o600)
            os.truncate(path, 1 << 30)  # sparse
        case _:
            whole = good[: len(good) // 2] if fault == "truncated" else good
            path.write_bytes(os.urandom(5000) if fault == "garbage" else whole)
            path.chmod({"read-only": 0o400, "closed": 0}.get(fault, 0o600))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mount(theirs: Path, path: Path) -> None:
    """Root's in its place, for this process alone, as in a container whose root is somebody else."""
    (Path.mkdir if theirs.is_dir() else Path.touch)(path)
    libc, ids = ctypes.CDLL(None, use_errno=True), (os.getuid(), os.getgid())
    assert libc.unshare(_NEWUSER | _NEWNS) == 0, os.strerror(ctypes.get_errno())
    Path("/proc/self/uid_map").write_text(f"{ids[0]} {ids[0]} 1")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"{ids[1]} {ids[1]} 1")
    assert libc.mount(os.fsencode(theirs), os.fsencode(path), None, _BIND_ALL, None) == 0, os.strerror(
        ctypes.get_errno()
    )
