"""The backends that cortexd knows: four are built in, a file of code each; others are files of the user's, the system's or
those that come with cortexd (docs/backends.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cortexd.backends import library
from cortexd.backends.base import Backend, LaunchPlan
from cortexd.backends.llamacpp import LlamaCpp
from cortexd.backends.ollama import Ollama
from cortexd.backends.tgi import Tgi
from cortexd.backends.vllm import Vllm
from cortexd.errors import InvalidConfig
from cortexd.scope import Scope

__all__ = ["BACKENDS", "Backend", "LaunchPlan", "Listed", "backend_of", "list_backends"]

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Vllm(), LlamaCpp(), Ollama(), Tgi())}

_DESCRIPTIONS = {
    "vllm": "vLLM",
    "llamacpp": "llama.cpp's llama-server",
    "ollama": "Ollama",
    "tgi": "Text Generation Inference",
}


def backend_of(name: str, scope: Scope) -> Backend:
    """The backend of that name, or InvalidConfig. For one of a file it is the same object until the file changes."""
    found = BACKENDS.get(name) or library.find(name, scope)
    if found is None:
        known = ", ".join(dict.fromkeys([*BACKENDS, *(n for n, _ in library.names(scope) if library.possible(n))]))
        remedy = f"use one of {known}"
        if library.possible(name):
            where = " or ".join(str(folder) for folder in scope.backend_folders)
            remedy += f", or put the file {name}{library.SUFFIX} in {where}"
        raise InvalidConfig(f"backend={name!r}: {remedy}")
    return found


@dataclass(frozen=True, slots=True)
class Listed:
    """A backend as a list shows it."""

    name: str
    description: str
    source: str
    """"built-in", or the file."""
    backend: Backend | None
    """None where the file is none that could be used."""
    problem: str = ""


def list_backends(scope: Scope) -> Iterator[Listed]:
    """All of them, files that cannot be used with what is wrong; blocking."""
    for name, backend in BACKENDS.items():
        yield Listed(name, _DESCRIPTIONS[name], "built-in", backend)
    for name, path in library.names(scope):
        listed = name
        if name in BACKENDS:
            listed = path.name  # two of one name would be one to those who look for it
            problem = f"{path}: {name} is built in and cannot be redefined; give the file another name"
        elif not library.possible(name):
            problem = f"{path}: the name must be small letters, digits and . _ - only, 64 at most; rename the file"
        else:
            try:
                custom = library.load(path)
                custom.check_folders(scope)
            except InvalidConfig as e:
                problem = str(e)
            else:
                yield Listed(name, custom.form.description, str(path), custom)
                continue
        yield Listed(listed, "", str(path), None, problem)
