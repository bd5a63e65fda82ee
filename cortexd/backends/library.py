"""Backend files: where they lie, read with care, parsed once as long as they do not change."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cortexd.backends.custom import CustomBackend
from cortexd.backends.form import parse
from cortexd.bounded import unwaiting
from cortexd.errors import InvalidConfig
from cortexd.scope import Scope

SHIPPED = Path(__file__).parent / "files"
SUFFIX = ".toml"
MAX_BYTES = 64 * 1024
_MAX_FILES = 1000
"""Of a folder that are looked at for a list."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """What a file came to: a backend, or what is wrong with it."""

    identity: _Identity
    backend: CustomBackend | None
    problem: str = ""


_parsed: dict[Path, _Parsed] = {}


def folders(scope: Scope) -> tuple[Path, ...]:
    """Where backend files are looked for: the user's, the system's, those that come with cortexd. The first one wins."""
    return (*scope.backend_folders, SHIPPED)


def find(name: str, scope: Scope) -> CustomBackend | None:
    """The backend of that name; None where there is no file. Raises InvalidConfig for a file that is none."""
    if not _NAME.fullmatch(name):
        return None
    for folder in folders(scope):
        path = folder / f"{name}{SUFFIX}"
        if _lies(path):
            return load(path)
    return None


def _lies(path: Path) -> bool:
    """Whether there is something of that name: also a dangling link, which hides what comes after it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        raise InvalidConfig(f"{path}: {e.strerror}; check its folders") from None
    return True


def load(path: Path) -> CustomBackend:
    """The backend in a file: the same object until the file changes. Raises InvalidConfig."""
    try:
        identity = _identity(path, path.stat())
        known = _parsed.get(path)
        if known is None or known.identity != identity:
            text, identity = _read(path)
            known = _parsed[path] = _parse(path, text, identity)
    except OSError as e:
        raise InvalidConfig(f"{path}: {e.strerror}; repair the file, or remove it") from None
    if known.backend is None:
        raise InvalidConfig(known.problem)
    return known.backend


def _parse(path: Path, text: bytes, identity: _Identity) -> _Parsed:
    try:
        form = parse(text.decode(), path)
    except UnicodeDecodeError as e:
        return _Parsed(identity, None, f"{path}: is no UTF-8 (byte {e.start}); save it as UTF-8")
    except InvalidConfig as e:
        return _Parsed(identity, None, str(e))
    return _Parsed(identity, CustomBackend(path.name.removesuffix(SUFFIX), form, path))


def _read(path: Path) -> tuple[bytes, _Identity]:
    """A file's bytes and the identity that they have. Never waits: a FIFO is refused. Raises OSError and InvalidConfig."""
    with open(path, "rb", opener=unwaiting) as file:
        identity = _identity(path, os.fstat(file.fileno()))
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise InvalidConfig(f"{path}: has more than {MAX_BYTES} bytes; a backend needs no more")
    return text, identity


def _identity(path: Path, status: os.stat_result) -> _Identity:
    if not stat.S_ISREG(status.st_mode):
        raise InvalidConfig(f"{path}: is no regular file; put one in its place, or remove it")
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def names(scope: Scope) -> Iterator[tuple[str, Path]]:
    """Every backend file that is not hidden by another one, with the name that it stands for; of any name."""
    seen = set()
    for folder in folders(scope):
        try:
            with os.scandir(folder) as entries:
                found = sorted(e.name for e in itertools.islice(entries, _MAX_FILES) if e.name.endswith(SUFFIX))
        except OSError:
            continue  # most of them are not there
        for file in found:
            name = file.removesuffix(SUFFIX)
            if name not in seen and not name.startswith("."):
                seen.add(name)
                yield name, folder / file


def possible(name: str) -> bool:
    """Whether a backend may have that name."""
    return _NAME.fullmatch(name) is not None
