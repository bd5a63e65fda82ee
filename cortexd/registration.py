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
from cortexd.scope import Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and from where. A model server often lives in a virtual environment that only the caller's PATH has."""

    actor: str = ""
    search_path: str = ""
    working_directory: str = ""


def fill_in(
    given: Mapping[str, Value | None],
    old: Mapping[str, Value],
    caller: Caller,
    scope: Scope,
    others: Sequence[ModelSpec],
) -> dict[str, Value]:
    """The complete explicit settings; blocking (looks at files and sockets). `others` are the other models, whose
    ports "auto" avoids. Raises InvalidConfig."""
    explicit = {**old, **{name: value for name, value in given.items() if value is not None}}
    for name, value in given.items():
        if value is None:
            explicit.pop(name, None)
    backend = backend_of(str(explicit.get("backend", DEFAULT_BACKEND)), scope)
    search_path = _search_path(caller, scope)
    try:
        if given.get("path"):
            explicit["path"] = _local(str(explicit["path"]), caller, scope)
        if given.get("exec"):
            explicit["exec"] = _executable(str(explicit["exec"]), caller, scope, search_path)
    except OSError as e:
        raise InvalidConfig(f"{e.filename!r}: {e.strerror}; check the path and its folders") from None
    if "exec" not in explicit or (not given.get("exec") and backend.name != old.get("backend", DEFAULT_BACKEND)):
        found = backend.find(search_path)
        if found is None:
            raise InvalidConfig(backend.missing())
        explicit["exec"] = found
    host = str(explicit.get("host", "127.0.0.1")).removeprefix("unix:")
    if host.startswith("/"):
        explicit["host"] = host
        if taken := next((spec.name for spec in others if spec.host == host), ""):
            # Not only a warning, as for ports: each start would take the other's away.
            raise InvalidConfig(f"host={host!r}: is the socket of model {taken}; use another path")
        host = "127.0.0.1"
    if explicit.get("port") == AUTO_PORT:
        check_host(host)
        explicit["port"] = free_port("127.0.0.1" if host == "localhost" else host, {spec.port for spec in others})
    parse_settings({name: explicit.get(name, "") for name in ("path", "exec")})  # the caller's folders may be odd, too
    return explicit


def _search_path(caller: Caller, scope: Scope) -> str:
    """The caller's PATH, its relative parts as the caller means them."""
    parts = (caller.search_path or scope.search_path).split(":")
    return ":".join(str(Path(caller.working_directory or "/", part)) for part in parts if part)


def _local(path: str, caller: Caller, scope: Scope) -> str:
    """An absolute path for what is a local file or folder to the caller; a reference stays as it is. Raises OSError."""
    if path == "~" or path.startswith("~/"):
        path = str(scope.home) + path[1:]
    if path.startswith("/"):
        return os.path.normpath(path)
    if caller.working_directory.startswith("/"):
        here = Path(caller.working_directory, path)
        if path.startswith(("./", "../")) or os.path.lexists(here):
            return os.path.normpath(here)
    return path


def _executable(file: str, caller: Caller, scope: Scope, search_path: str) -> str:
    path = _local(file, caller, scope) if "/" in file else shutil.which(file, path=search_path)
    if path is None:
        raise InvalidConfig(f"exec={file!r}: is not on your PATH; give its path")
    if not path.startswith("/"):
        raise InvalidConfig(f"exec={file!r}: give an absolute path")
    if not Path(path).is_file() or not os.access(path, os.X_OK):
        raise InvalidConfig(f"exec={file!r}: is no executable file; check the path and its mode")
    return path
