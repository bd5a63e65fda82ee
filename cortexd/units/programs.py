"""What a program needs of the disk to run: the folder where it is installed, what it links to, what interprets it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

_MAX_LINKS = 40


def program_folders(executable: Path, home: Path, shared: Collection[Path]) -> list[Path]:
    """The folder that a program needs to run: a prefix with bin/ and lib/, or the folder where it lies; of its links and
    of a script's interpreter, too. Never all of `home`, or of a folder that is `shared`."""
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
            found.append(Path(os.path.normpath(found[-1].parent / found[-1].readlink())))
    return [*found, path.resolve()]


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
