"""llama.cpp's server (tools/server/README.md of b11669; stopping and exit statuses as seen on it)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from cortexd.backends.base import (
    Backend,
    LaunchPlan,
    extra,
    folders,
    gpu_environment,
    is_reference,
    local_model,
)
from cortexd.errors import InvalidConfig
from cortexd.kinds import INFINITY, MIB
from cortexd.model import ModelSpec
from cortexd.scope import Scope

_GGUF_MAGIC = b"GGUF"
_DEFAULT_CACHE_RAM = 8192 * MIB


OTHER_MODEL = ("LLAMA_ARG_MODEL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT")
"""Variables that llama-server takes for options, and that would make it serve something else."""


class LlamaCpp(Backend):
    """`llama-server` with one model: without -m or -hf it would be a router that calls itself healthy."""

    name = "llamacpp"
    executables = ("llama-server",)
    endpoint = "/health"

    owned: ClassVar[Mapping[str, str]] = {
        "--host": "host",
        "--port": "port",
        "-m": "path",
        "--model": "path",
        "-hf": "path",
        "--hf-repo": "path",
        "-c": "max_model_len",
        "--ctx-size": "max_model_len",
    }

    def check(self, spec: ModelSpec) -> None:
        """A local path must be a GGUF file."""
        super().check(spec)
        if not is_reference(spec.path):
            _check_gguf(Path(spec.path))
        elif spec.path.endswith(".gguf"):
            raise InvalidConfig(f"path={spec.path!r}: no such file here; give the path of a GGUF file that exists")
        elif "/" not in spec.path:
            raise InvalidConfig(f"path={spec.path!r}: is neither a GGUF file nor a reference such as org/name:Q4_K_M")

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """Context length, alias, GPU layers; the rest is llama-server's own default."""
        argv = [spec.exec, "-hf" if is_reference(spec.path) else "-m", spec.path]
        # Both are given always: the default port moves between releases.
        argv += ["--host", spec.host, "--port", str(spec.port), "--alias", spec.name, "-c", str(spec.max_model_len)]
        if not spec.gpus:
            argv += ["--n-gpu-layers", "0"]
        if spec.tensor_parallel > 1:
            argv += ["--split-mode", "row"]
        caches = {}
        if is_reference(spec.path):
            caches = {"LLAMA_CACHE": str(scope.kept_in("LLAMA_CACHE", scope.cache / "llama.cpp"))}
        environment = gpu_environment(spec) | caches
        # The prompt cache lies beside the model in memory and would run into the limit. As a variable, since servers
        # from before it refuse the flag.
        memory = spec.limits.memory
        if memory != INFINITY and memory // 4 < _DEFAULT_CACHE_RAM:
            environment["LLAMA_ARG_CACHE_RAM"] = str(memory // 4 // MIB)
        return LaunchPlan(
            argv=(*argv, *extra(spec)),
            environment=environment,
            unset_environment=OTHER_MODEL,
            writes=folders(caches),
            reads=local_model(spec),
            # A request in flight outlives SIGTERM for as long as it takes.
            stop_seconds=20,
        )


def _check_gguf(path: Path) -> None:
    try:
        # A FIFO would let us wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            magic = file.read(len(_GGUF_MAGIC)) if regular else b""
    except OSError as e:
        raise InvalidConfig(f"path={str(path)!r}: {e.strerror}; give the path of a GGUF file") from None
    if magic != _GGUF_MAGIC:
        raise InvalidConfig(f"path={str(path)!r}: is no GGUF file; give one, or convert the model to GGUF")
