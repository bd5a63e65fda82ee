"""Which unit files there are, and in which state: read where systemd reads it, on disk (unit_file_get_list in src/shared/install.c).

systemd's own answer (ListUnitFilesByPatterns) looks at every link beside every file anew for each file: 1.3 s of its time for
1,000 files, in which it does nothing else, after each reload. Blocking.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cortexd.bounded import unwaiting

_WANTS = (".wants", ".requires", ".upholds")
_INSTALL = re.compile(rb"(?m)^\[Install\][ \t]*$(.*?)(?=^\[|\Z)", re.DOTALL)
_RULE = re.compile(rb"(?m)^[ \t]*(?:WantedBy|RequiredBy|UpheldBy|Alias)[ \t]*=[ \t]*\S")
_ALSO = re.compile(rb"(?m)^[ \t]*Also[ \t]*=[ \t]*\S")
_MAX_FILE = 1 << 20


Installs = dict[str, tuple[tuple[int, int, int], str]]
"""By path: which file it was (inode, time, size), and the state that its [Install] section gives it."""


def listed(folders: Sequence[str], wanted: Callable[[str], bool], installs: Installs) -> dict[str, str]:
    """The state of each unit file by its path, of the units whose names are `wanted`; empty where only systemd can tell.
    `folders`: where systemd looks (its UnitPath), the first one first, which is that of a unit with several files. `installs`:
    what was found before; files that are the same are not read again."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    links = {name: folder for folder in reversed(folders) for name in _links(folder)}
    for folder in folders:
        for entry in _entries(folder):
            name = entry.name
            if name in seen or not wanted(name) or entry.is_dir():
                continue
            seen.add(name)
            try:
                found[entry.path] = _state(entry, folder, links.get(name), installs)
            except OSError:
                found[entry.path] = ""
    for path in installs.keys() - found.keys():
        del installs[path]
    return found


def _state(entry: os.DirEntry[str], folder: str, link: str | None, installs: Installs) -> str:
    about = entry.stat()
    if not stat.S_ISREG(about.st_mode) or not about.st_size:
        return "masked-runtime" if _is_passing(folder) else "masked"  # /dev/null, or as good as that
    if entry.is_symlink():
        return ""
    kind = Path(folder).name
    if kind.startswith("generator"):
        return "generated"
    if kind == "transient":
        return "transient"
    if link is not None:
        return "enabled-runtime" if _is_passing(link) else "enabled"
    same = about.st_ino, about.st_mtime_ns, about.st_size
    before, state = installs.get(entry.path, (None, ""))
    if before != same:
        state = _by_install(entry.path)
        installs[entry.path] = same, state
    return state


def _by_install(path: str) -> str:
    with open(path, "rb", opener=unwaiting) as file:
        text = b"\n" + file.read(_MAX_FILE)
    install = b"".join(_INSTALL.findall(text, max(0, text.find(b"\n[Install]"))))
    if _RULE.search(install):
        return "disabled"
    return "indirect" if _ALSO.search(install) else "static"


def _links(folder: str) -> Iterator[str]:
    """The units that others in this folder want."""
    for entry in _entries(folder):
        if entry.name.endswith(_WANTS):
            yield from (link.name for link in _entries(entry.path) if link.is_symlink())


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [*entries]
    except OSError:
        return []


def _is_passing(folder: str) -> bool:
    """Whether it ends with the machine or the user's manager."""
    return folder.startswith("/run/")
