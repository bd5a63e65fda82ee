"""The database as a file: made for the user alone, copied before a migration, kept aside when it is damaged."""

from __future__ import annotations

import errno
import os
import shlex
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

_SIDE_FILES = ("-wal", "-shm")


def prepare(path: Path) -> None:
    """Make the file and its folder, or take others' rights to them away. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    for suffix in ("", *_SIDE_FILES):
        each = Path(f"{path}{suffix}")
        if each.is_symlink() or (each.exists() and not each.is_file()):
            raise OSError(errno.EINVAL, f"{f'its {suffix}' if suffix else 'it'} is no regular file")
    # SQLite gives its side files (-wal, -shm) the mode of the database. O_NONBLOCK: a FIFO there must not stop us.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)


class Damaged(sqlite3.DatabaseError):
    """What SQLite's own check found."""

    sqlite_errorname = "SQLITE_CORRUPT"


def is_damaged(error: BaseException | None) -> bool:
    """Whether SQLite says that the file itself is wrong, which no retry mends (sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def is_full(error: BaseException | None) -> bool:
    """Whether it says that the disk has no room. SQLite's shared memory cannot grow then, which it calls an I/O error."""
    name = getattr(error, "sqlite_errorname", "")
    return name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE") or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)


def is_passing(error: BaseException | None) -> bool:
    """Whether it may be over at the next try: another program's lock, or a full disk."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or is_full(error)


def set_aside(path: Path, now: float) -> Path:
    """Rename a damaged database and its side files, so that nothing of it is lost. `now`: seconds since the epoch."""
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.localtime(now))}")
    # The database last: where we are killed in between, it is found damaged again, and not without its side files, which
    # another file of this name would take for its own.
    for suffix in (*_SIDE_FILES, ""):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{kept}{suffix}")
    return kept


def copy_of(path: Path, version: int) -> Path:
    """Where the copy of a database of that version lies."""
    return path.with_name(f"{path.name}.v{version}")


def copy(path: Path, version: int) -> None:
    """Copy the database as it is, before a migration; whole and on disk, or not at all. Raises sqlite3.Error, OSError."""
    target = copy_of(path, version)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as destination:
        source.backup(destination)
    for done in (part, part.parent):
        descriptor = os.open(done, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    part.replace(target)


def restore_command(path: Path, version: int) -> str:
    """What to do about a database that is too new for a cortexd that knows `version`."""
    kept = copy_of(path, version)
    if not kept.exists():
        return "move the file away"
    word = shlex.quote
    side = " ".join(word(f"{path}{suffix}") for suffix in _SIDE_FILES)
    return f"go back to the copy made before it was upgraded: rm -f {side}; mv {word(str(kept))} {word(str(path))}"
