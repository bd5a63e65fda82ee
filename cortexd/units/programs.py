"""What a program needs of the disk to run: the folder where it is installed, what it links to, what interprets it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from pathlib import Path

_MAX_LINKS = 40

_found: ContextVar[dict[tuple[Path, Path, tuple[Path, ...]], list[Path]] | None] = ContextVar("found", default=None)


@contextlib.contextmanager
def at_one_look() -> Iterator[None]:
    """Inside, no program is looked at twice: a thousand models have few."""
    token = _found.set({})
    try:
        yield
    finally:
        _found.reset(token)


def program_folders(executable: Path, home: Path, shared: Collection[Path]) -> list[Path]:
    """The folder that a program needs to run: a prefix with bin/ and lib/, or the folder where it lies; of its links and
    of a script's interpreter, too. Never all of `home`, or of a folder that is `shared`."""
    known, key = _found.get(), (executable, home, tuple(shared))
    if known is None:
        return _program_folders(*key)
    if key not in known:
        known[key] = _program_folders(*key)
    return known[key]


def _program_folders(executable: Path, home: Path, shared: Collection[Path]) -> list[Path]:
    found = []
    interpreter = _interpreter(executable)
    for path in (*steps(executable), *(steps(interpreter) if interpreter else ())):
        folder = path.parent.parent if path.parent.name == "bin" else path.parent
        open_to_all = folder in shared or home.is_relative_to(folder) or folder.parent in (Path("/home"), Path("/"))
        found.append(path if open_to_all else folder)
    return found


def steps(path: Path) -> list[Path]:
    """The path, what it links to, and where that lies in the end."""
    found = [path]
    with contextlib.suppress(OSError):  # the last one is no link
        while len(found) < _MAX_LINKS:
            link = os.readlink(found[-1])  # noqa: PTH115 - as text: pathlib takes most of the time in which models are read
            found.append(Path(os.path.normpath(os.path.join(found[-1].parent, link))))  # noqa: PTH118
    return [*found, Path(os.path.realpath(path))]


def links(path: str) -> list[str]:
    """The links on the way to where a path leads, each by a name that has no other link in it. Blocking."""
    found: list[str] = []
    at, rest = "/", path.split("/")[::-1]
    while rest:
        name = rest.pop()
        here = os.path.normpath(os.path.join(at, name))  # noqa: PTH118 - as text
        try:
            leads = os.readlink(here)  # noqa: PTH115
        except OSError:
            at = here
            continue
        if len(found) >= _MAX_LINKS:
            break
        found.append(here)
        at = "/" if leads.startswith("/") else at
        rest += leads.split("/")[::-1]
    return found


def _interpreter(script: Path) -> Path | None:
    """What runs an executable that begins with #! (execve(2))."""
    try:
        if not script.is_file():
            return None
        with script.open("rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    words = line.removeprefix(b"#!").split() if line.startswith(b"#!") else []
    return Path(os.fsdecode(words[0])) if words and words[0].startswith(b"/") else None
