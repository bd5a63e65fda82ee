"""Looks at our files: whose they are, who else may read them, what lies there that should not, and how much room is left."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from cortexctl.doctor import bounded
from cortexctl.doctor.evidence import Files, Places, Unseen, Verified
from cortexd.diagnosis import machine
from cortexd.names import model_name
from cortexd.units.files import FileState, inspect
from cortexd.units.loadable import obstacles

_MOST = 5000
"""Files of one kind that are looked at."""
_VERIFY_SECONDS = 4.0
_OTHERS = 0o077  # the rights of everybody but the owner
_FILE, _FOLDER, _EITHER = (stat.S_IFREG,), (stat.S_IFDIR,), (stat.S_IFREG, stat.S_IFDIR)


def places(environ: Mapping[str, str]) -> Places:
    """The user's folders (XDG Base Directory Specification: a relative path is invalid and to be ignored)."""
    home = Path(environ.get("HOME") or Path.home())

    def folder(variable: str, default: Path) -> Path:
        value = environ.get(variable, "")
        return Path(value) if value.startswith("/") else default

    cache = folder("XDG_CACHE_HOME", home / ".cache")
    hub = folder("HF_HOME", cache / "huggingface")
    return Places(
        data=home / ".cortex",
        unit_folder=folder("XDG_CONFIG_HOME", home / ".config") / "systemd" / "user",
        installed_units=folder("XDG_DATA_HOME", home / ".local" / "share") / "systemd" / "user",
        caches=(
            folder("HF_HUB_CACHE", hub / "hub"),
            folder("LLAMA_CACHE", cache / "llama.cpp"),
            folder("OLLAMA_MODELS", home / ".ollama" / "models"),
            folder("VLLM_CACHE_ROOT", cache / "vllm"),
        ),
    )


def files(where: Places) -> Files:
    """Modes, owners and leftovers."""
    found: dict[str, list[Path]] = {"open": [], "not_ours": [], "odd": []}
    for path, right in _private(where):
        if kind := _fault(path, right, may_be_link=path == where.data):
            found[kind].append(path)
    linked = where.data in found["not_ours"] and where.data.is_symlink()
    return Files(
        present=where.data.exists(),
        open=tuple(found["open"]),
        not_ours=() if linked else tuple(found["not_ours"]),  # what lies below it is theirs, too
        link_to_theirs=where.data if linked else None,
        odd=tuple(found["odd"]),
        obstacles=_obstacles(where),
        set_aside=tuple(sorted(where.data.glob("models.db.damaged-*[0-9]"))[:_MOST]),
    )


def rooms(where: Places) -> tuple[machine.Folder, ...]:
    """Our folder, then the caches: apart from the files, since a cache may lie on a network that is down."""
    return tuple(machine.folder(folder) for folder in dict.fromkeys((where.data, *where.caches)))


def _private(where: Places) -> Iterator[tuple[Path, Collection[int]]]:
    """What nobody but its owner may read, and what may be there (stat.S_IFMT). Nothing below a link but ~/.cortex itself."""
    if os.path.lexists(where.data):
        yield where.data, _FOLDER
        yield from ((path, _FILE) for path in islice(where.data.glob("models.db*"), _MOST))
        yield from ((path, _FILE) for path in islice(where.data.glob("*.json"), _MOST))
        for folder in (where.data / "logs", where.data / "secrets"):
            if os.path.lexists(folder):
                yield folder, _FOLDER
            if not folder.is_symlink():
                yield from ((path, _EITHER) for path in islice(folder.glob("*"), _MOST))
                inside = (path for path in folder.glob("*/environment") if not path.parent.is_symlink())
                yield from ((path, _FILE) for path in islice(inside, _MOST))
    for path in islice(where.unit_folder.glob("cortex-*.service"), _MOST):
        if path.is_dir():
            yield path, ()
        elif inspect(path) is not FileState.FOREIGN:
            yield path, _FILE


def _obstacles(where: Places) -> tuple[Path, ...]:
    folders = (where.unit_folder, where.installed_units)
    return tuple(islice((path for folder in folders for path in obstacles(folder)), _MOST))


def _fault(path: Path, right: Collection[int], *, may_be_link: bool) -> str:
    try:
        status = path.stat() if may_be_link else path.lstat()
    except OSError:
        return "odd" if path.is_symlink() else ""  # gone meanwhile
    if stat.S_IFMT(status.st_mode) not in right:
        return "odd"
    if status.st_uid != os.getuid():
        return "not_ours"
    return "open" if status.st_mode & _OTHERS else ""


def verified(where: Places) -> Verified | Unseen:
    """What systemd-analyze finds in the units of ours that are on disk."""
    if found := _obstacles(where):
        return Unseen(f"{found[0]} is in the way")
    units = [p for p in islice(sorted(where.unit_folder.glob("cortex-*.service")), _MOST) if not p.is_dir()]
    units += filter(Path.is_file, (where.installed_units / name for name in ("cortexd.service", "cortex.slice")))
    if not units:
        return Verified(0)
    try:
        with given_to_verify(units) as words:
            status, said = bounded.run(["systemd-analyze", "--user", "verify", "--man=no", *words], _VERIFY_SECONDS)
    except OSError as e:
        return Unseen(f"systemd-analyze cannot be run: {e.strerror}")
    if status is None:
        return Unseen(f"systemd-analyze did not end within {_VERIFY_SECONDS:g} s")
    # It reads units of others, too, on which these depend.
    names = {path.name for path in units}
    lines = [line.strip() for line in said.splitlines()]
    foreign = frozenset(path.name for path in units if model_name(path.name) and inspect(path) is FileState.FOREIGN)
    return Verified(len(units), tuple(line for line in lines if any(name in line for name in names)), foreign)


@contextmanager
def given_to_verify(units: Sequence[Path]) -> Iterator[list[str]]:
    """How `systemd-analyze verify` is told of these files; those that cannot be opened are left out.

    What follows a colon it takes for the name under which to look at the file before it (process_aliases() of its source). So a file
    whose path has one, as that of model llama3:8b, is given by a descriptor of ours, and then its name.
    """
    words = []
    with ExitStack() as closing:
        for path in units:
            if ":" not in str(path):
                words.append(str(path))
                continue
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                closing.callback(os.close, descriptor)
                words.append(f"/proc/{os.getpid()}/fd/{descriptor}:{path.name}")
        yield words
