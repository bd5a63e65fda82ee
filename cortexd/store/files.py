"""The database as a file: made for the user alone, copied before a migration, kept aside when it is damaged."""

from __future__ import annotations

import errno
import filecmp
import os
import shlex
import sqlite3
import time
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

from cortexd.durable import make_folder, sync_folder

_SIDE_FILES = ("-wal", "-shm")
_DAMAGED = ".damaged-"


def prepare(path: Path) -> None:
    """Make the file and its folder, or take others' rights to them away. Raises OSError."""
    make_folder(path.parent)
    path.parent.chmod(0o700)
    for suffix in ("", *_SIDE_FILES):
        each = Path(f"{path}{suffix}")
        if each.is_symlink():
            raise OSError(errno.ELOOP, f"{f'its {suffix}' if suffix else 'it'} is a link")
        if each.exists() and not each.is_file():
            raise OSError(errno.EINVAL, f"{f'its {suffix}' if suffix else 'it'} is no regular file")
    is_new = not path.exists()
    # SQLite gives its side files (-wal, -shm) the mode of the database. O_NONBLOCK: a FIFO there must not stop us.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)
    if is_new:
        sync_folder(path.parent)
        sync_folder(path.parent.parent)  # its folder may have been made just now, too, to lock it


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
    kept = _begun(path) or unused(path.with_name(f"{path.name}{_DAMAGED}{_stamp(now)}"))
    # The database last: where we are killed in between, it is found damaged again, and not without its side files, which
    # another file of this name would take for its own.
    for suffix in (*_SIDE_FILES, ""):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{kept}{suffix}")
    sync_folder(path.parent)
    return kept


def _begun(path: Path) -> Path | None:
    """The name of a database whose log was set aside already, by a cortexd that was killed before it came to the rest."""
    wal = _SIDE_FILES[0]
    kept = (Path(str(side).removesuffix(wal)) for side in path.parent.glob(f"{path.name}{_DAMAGED}*{wal}"))
    return None if Path(f"{path}{wal}").exists() else next((each for each in kept if not each.exists()), None)


def last_damaged(path: Path) -> Path | None:
    """Where the last one that was damaged is kept, if there is one."""
    kept = (each for each in path.parent.glob(f"{path.name}{_DAMAGED}*") if not each.name.endswith(_SIDE_FILES))
    return max(kept, default=None)


def unused(path: Path) -> Path:
    """The path, or one like it where something lies there."""
    names = (path.with_name(f"{path.name}{f'-{number}' if number else ''}") for number in count())
    return next(each for each in names if not each.exists())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _stamp(now: float) -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.localtime(now))


def copy_of(path: Path, version: int) -> Path:
    """Where the copy of a database of that version lies."""
    return path.with_name(f"{path.name}.v{version}")


def copy(path: Path, version: int, now: float) -> None:
    """Copy the database as it is, before a migration; whole and on disk, or not at all. A copy that says something else is
    kept. Raises sqlite3.Error, OSError."""
    target = copy_of(path, version)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as destination:
        source.backup(destination)
    if target.exists() and filecmp.cmp(part, target, shallow=False):
        part.unlink()  # of a migration that failed
    else:
        _sync(part)
        with suppress(FileNotFoundError):
            target.rename(unused(target.with_name(f"{target.name}.kept-{_stamp(now)}")))
        part.rename(target)
    sync_folder(target.parent)


def restore_command(path: Path, version: int, now: float) -> str:
    """What to do about a database that is too new for a cortexd that knows `version`. Nothing is lost by it."""
    kept = copy_of(path, version)
    if not kept.exists():
        return "move the file away"
    folder, name, copy, aside = (
        shlex.quote(str(part))
        for part in (path.parent, path.name, kept.name, unused(path.with_name(f"newer-{_stamp(now)}")).name)
    )
    # What is there of the database's three files, and with it all that is beside it; of that the copies come back.
    steps = (f"cd {folder}", f"mkdir {aside}", f"mv {name}* {aside}", f"mv {aside}/{name}.v* .", f"mv {copy} {name}")
    return f"go back to the copy made before it was upgraded: {' && '.join(steps)}"
