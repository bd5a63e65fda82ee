"""The backends that cortexd knows; each file is one."""

from __future__ import annotations

from cortexd.backends.base import Backend, LaunchPlan
from cortexd.backends.llamacpp import LlamaCpp
from cortexd.backends.ollama import Ollama
from cortexd.backends.tgi import Tgi
from cortexd.backends.vllm import Vllm
from cortexd.errors import InvalidConfig
from cortexd.scope import Scope

__all__ = ["BACKENDS", "Backend", "LaunchPlan", "backend_of"]

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Vllm(), LlamaCpp(), Ollama(), Tgi())}


def backend_of(name: str, scope: Scope) -> Backend:
    """The backend of that name, or InvalidConfig."""
    if name not in BACKENDS:
        raise InvalidConfig(f"backend={name!r}: use one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
