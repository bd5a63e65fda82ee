"""Backend files for tests."""

from __future__ import annotations

from pathlib import Path

from cortexd.backends import library
from cortexd.backends.custom import CustomBackend
from cortexd.kinds import Value
from cortexd.model import ModelSpec, build_spec
from cortexd.scope import Scope, user_scope

SMALL = """\
description = "a server"
executables = ["serve"]
command = ["{exec}", "--port", "{port}"]
endpoint = "/health"
"""


def scope_of(folder: Path, **environment: str) -> Scope:
    """A user's scope with nothing of this machine's in it."""
    return user_scope({"HOME": str(folder), "XDG_RUNTIME_DIR": "/run/user/1", "XDG_DATA_DIRS": "/none", **environment})


def put(scope: Scope, name: str, text: str | bytes = SMALL, at: int = 0) -> Path:
    """Write a backend file into a folder of the scope's."""
    path = scope.backend_folders[at] / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def custom(name: str, scope: Scope) -> CustomBackend:
    """The backend of a file that has to be there."""
    found = library.find(name, scope)
    assert found is not None
    return found


def spec_of(backend: CustomBackend, **explicit: Value) -> ModelSpec:
    """A model of it, with its defaults."""
    gpus = explicit.get("gpus", ("0",))
    given: dict[str, Value] = {"path": "org/name", "exec": "/opt/bin/serve", "backend": backend.name, **explicit}
    return build_spec("m", given, backend.defaults(len(gpus) if isinstance(gpus, tuple) else 0))
