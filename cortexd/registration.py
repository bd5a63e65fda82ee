"""What a registration leaves open, filled in from the caller's surroundings: paths, the executable, a free port."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cortexd.backends import backend_of
from cortexd.checks import check_host
from cortexd.errors import InvalidConfig
from cortexd.kinds import Value
from cortexd.model import AUTO_PORT, DEFAULT_BACKEND, ModelSpec, parse_settings
from cortexd.ports import free_port


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and from where. A model server often lives in a virtual environment that only the caller's PATH has."""

    actor: str = ""
    search_path: str = ""
    working_directory: str = ""


def fill_in(
    given: Mapping[str, Value | None], old: Mapping[str, Value], caller: Caller, others: Sequence[ModelSpec]
) -> dict[str, Value]:
    """The complete explicit settings; blocking (looks at files and sockets). `others` are the other models, whose
    ports "auto" avoids. Raises InvalidConfig."""
    explicit = {**old, **{name: value for name, value in given.items() if value is not None}}
    for name, value in given.items():
        if value is None:
            explicit.pop(name, None)
    backend = backend_of(str(explicit.get("backend", DEFAULT_BACKEND)))
    if given.get("path"):
        explicit["path"] = _local(str(explicit["path"]), caller)
    if given.get("exec"):
        explicit["exec"] = _executable(str(explicit["exec"]), caller)
    elif "exec" not in explicit or ("backend" in given and given["backend"] != old.get("backend", DEFAULT_BACKEND)):
        found = backend.find(caller.search_path or os.environ.get("PATH", os.defpath))
        if found is None:
            raise InvalidConfig(backend.missing())
        explicit["exec"] = found
    if explicit.get("port") == AUTO_PORT:
        host = str(explicit.get("host", "127.0.0.1"))
        check_host(host)
        explicit["port"] = free_port("127.0.0.1" if host == "localhost" else host, {spec.port for spec in others})
    parse_settings({name: explicit.get(name, "") for name in ("path", "exec")})  # the caller's folders may be odd, too
    return explicit


def _local(path: str, caller: Caller) -> str:
    """An absolute path for what is a local file or folder to the caller; a reference stays as it is."""
    if path == "~" or path.startswith("~/"):
        path = str(Path(path).expanduser())
    if path.startswith("/"):
        return os.path.normpath(path)
    if caller.working_directory.startswith("/"):
        here = Path(caller.working_directory, path)
        if path.startswith(("./", "../")) or here.exists():
            return os.path.normpath(here)
    return path


def _executable(file: str, caller: Caller) -> str:
    path = _local(file, caller) if "/" in file else shutil.which(file, path=caller.search_path or None)
    if path is None:
        raise InvalidConfig(f"exec={file!r}: is not on your PATH; give its path")
    if not path.startswith("/"):
        raise InvalidConfig(f"exec={file!r}: give an absolute path")
    if not Path(path).is_file() or not os.access(path, os.X_OK):
        raise InvalidConfig(f"exec={file!r}: is no executable file; check the path and its mode")
    return path
