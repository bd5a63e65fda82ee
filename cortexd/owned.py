"""Folders below ~/.cortex: the user's own, for the user alone, and no link is followed on the way to them. Blocking."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cortexd.durable import sync_folder


@contextmanager
def opened(folder: Path, name: str, *, make: bool = False) -> Iterator[int]:
    """The folder `name` in `folder`, of which only what is before its last part may be a link, as a descriptor. Raises
    OSError: ELOOP or ENOTDIR for a link, EPERM where it belongs to somebody else."""
    parent = _open(folder, None, make)
    try:
        descriptor = _open(folder / name, parent, make)
    finally:
        os.close(parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path, parent: int | None, make: bool) -> int:
    where: Path | str = path if parent is None else path.name
    if make:
        with suppress(FileExistsError):
            os.mkdir(where, 0o700, dir_fd=parent)
            if parent is None:
                sync_folder(path.parent)
            else:
                os.fsync(parent)
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None
    status = os.fstat(descriptor)
    if status.st_uid != os.getuid():
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "belongs to another user", str(path))
    if status.st_mode & 0o077:
        os.fchmod(descriptor, 0o700)
    return descriptor
