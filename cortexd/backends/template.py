"""What a backend file may say of a model: placeholders in its texts, and conditions on its arguments. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

from cortexd.backends.base import is_reference, port_beside
from cortexd.model import ModelSpec
from cortexd.scope import Scope

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def _address(spec: ModelSpec) -> str:
    host = f"[{spec.host}]" if ":" in spec.host else spec.host
    return f"{host}:{spec.port}"


PLACEHOLDERS: Mapping[str, tuple[str, Callable[[ModelSpec, Scope], str]]] = {
    "exec": ("the executable: what was found on PATH, or --exec", lambda spec, scope: spec.exec),
    "path": ("the model: an absolute path, or a reference", lambda spec, scope: spec.path),
    "name": ("the model's name in cortexd", lambda spec, scope: spec.name),
    "host": ("the address to listen on", lambda spec, scope: spec.host),
    "port": ("the TCP port", lambda spec, scope: str(spec.port)),
    "address": ("host and port in one word: 127.0.0.1:8000, [::1]:8000", lambda spec, scope: _address(spec)),
    "side_port": (
        "a second port, for metrics and the like, that goes with this model's port and no other",
        lambda spec, scope: str(port_beside(spec.port, 10_000)),
    ),
    "max_model_len": ("context length in tokens", lambda spec, scope: str(spec.max_model_len)),
    "tensor_parallel": ("GPUs that share the model", lambda spec, scope: str(spec.tensor_parallel)),
    "quantization": ("quantization method; empty where none was asked for", lambda spec, scope: spec.quantization),
    "gpu_memory_utilization": (
        "share of the GPU's memory, such as 0.9",
        lambda spec, scope: f"{spec.gpu_memory_utilization:g}",
    ),
    "gpus": ("the GPUs, separated by commas; empty for none", lambda spec, scope: ",".join(spec.gpus)),
    "home": ("the home folder", lambda spec, scope: str(scope.home)),
    "cache": ("the cache folder: XDG_CACHE_HOME, else ~/.cache", lambda spec, scope: str(scope.cache)),
}
"""Every placeholder: what it stands for, and its value."""

IN_FOLDERS = ("home", "cache", "name")
"""Those that may stand in the path of a folder: none is a caller's free text."""

CONDITIONS: Mapping[str, tuple[str, Callable[[ModelSpec], bool]]] = {
    "quantization": ("a quantization was asked for", lambda spec: bool(spec.quantization)),
    "not quantization": ("none was", lambda spec: not spec.quantization),
    "gpus": ("it may see a GPU", lambda spec: bool(spec.gpus)),
    "not gpus": ("--gpus none", lambda spec: not spec.gpus),
    "tensor_parallel > 1": ("several GPUs share the model", lambda spec: spec.tensor_parallel > 1),
    "path is local": ("the model is a file or a folder", lambda spec: not is_reference(spec.path)),
    "path is reference": ("the model is a reference such as org/name", lambda spec: is_reference(spec.path)),
}
"""Every condition: its meaning, and whether it holds."""


def names_in(text: str) -> Iterator[str]:
    """The placeholders of a text. Raises ValueError for a brace that belongs to none."""
    for match in _TOKEN.finditer(text):
        if match[1] is not None:
            yield match[1]
        elif match[0] in "{}":
            raise ValueError(f"has a lone {match[0]!r}; write {match[0] * 2} for the character itself")


def check(text: str, known: Collection[str] = PLACEHOLDERS) -> None:
    """Raise ValueError for a text with a placeholder that is not `known`."""
    for name in names_in(text):
        if name not in known:
            raise ValueError(f"has the unknown placeholder {{{name}}}; use one of {', '.join(known)}")


def values_of(spec: ModelSpec, scope: Scope) -> dict[str, str]:
    """What the placeholders stand for in one model."""
    return {name: value(spec, scope) for name, (_, value) in PLACEHOLDERS.items()}


def fill(text: str, values: Mapping[str, str]) -> str:
    """A checked text with its placeholders filled in, once: a value that has braces of its own keeps them."""
    return _TOKEN.sub(lambda match: match[0][0] if match[1] is None else values[match[1]], text)
