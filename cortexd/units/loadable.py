"""What would hold systemd up: it opens whatever lies in the place of a unit's file or drop-in, in its one thread. Blocking.

Measured on 252: at a FIFO it waits for a writer, who never comes, and of 1 GB of nothing it reads for minutes; it answers nobody
meanwhile. A drop-in is opened wherever its unit is loaded, and by each reload while it is; a FIFO in the place of the unit's own
file only where the state of that file is asked for or changed, and by a loading it is passed over.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cortexd.errors import UnitConflict
from cortexd.names import FOLDER_TEMPLATE, SLICE

MAX_SIZE = 1 << 20
"""Bytes of a unit file; none of ours is near it, and systemd takes no line that is longer."""
_OURS = re.compile(r"cortex.*\.service(\.d)?|cortex\.slice(\.d)?|(service|slice)\.d")


def check_loadable(folder: Path, unit: str = "") -> None:
    """Raise UnitConflict where systemd must not be made to load `unit` and what our units draw in, of which the files lie in
    `folder`; without one, where it must not be made to read again all that is loaded."""
    if unit:
        names = [*_files_of(unit), *_files_of(SLICE), *_files_of(FOLDER_TEMPLATE)]
        found = _in(folder, names)
    else:
        found = (path for path in obstacles(folder) if not (path.parent == folder and _waits(path)))
    if path := next(found, None):
        raise UnitConflict(
            f"{path} is no unit file, and would keep your systemd manager from working; move it away, or have "
            "'cortexctl doctor --fix' do it"
        )


def obstacles(folder: Path) -> Iterator[Path]:
    """All such files among those of ours and of the user's that have to do with our units. Empty where there is no folder."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        yield from _in(folder, [entry.name for entry in entries if _OURS.fullmatch(entry.name)])


def free(path: Path) -> None:
    """Have who waits at a FIFO for its writer go on, as at the end of an empty file; no other file is changed."""
    with suppress(OSError):
        if stat.S_ISFIFO(path.stat().st_mode):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _files_of(unit: str) -> Iterator[str]:
    """The names under which systemd looks for a unit's file and for folders of drop-ins (systemd.unit(5))."""
    stem, _, kind = unit.rpartition(".")
    yield unit
    yield f"{unit}.d"
    yield from (f"{stem[: match.end()]}.{kind}.d" for match in re.finditer("-", stem))
    yield f"{kind}.d"


def _in(folder: Path, names: list[str]) -> Iterator[Path]:
    for name in names:
        if not name.endswith(".d"):
            if _is_obstacle(folder / name, drop_in=False):
                yield folder / name
            continue
        with suppress(OSError), os.scandir(folder / name) as entries:
            files = [Path(entry.path) for entry in entries if entry.name.endswith(".conf")]
            yield from (path for path in sorted(files) if _is_obstacle(path, drop_in=True))


def _is_obstacle(path: Path, *, drop_in: bool) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    if stat.S_ISREG(status.st_mode):
        return status.st_size > MAX_SIZE
    if stat.S_ISCHR(status.st_mode) and status.st_rdev != os.makedev(1, 3):  # /dev/null, by which a file is masked
        return drop_in  # read to the end, which /dev/zero has not; a unit is masked by any
    return not (stat.S_ISDIR(status.st_mode) or stat.S_ISSOCK(status.st_mode) or stat.S_ISCHR(status.st_mode))


def _waits(path: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISFIFO(path.stat().st_mode)
    return False
