"""llama.cpp's server (tools/server/README.md of b11669; metrics, keys, stopping and exit statuses as seen on it)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from cortexd.backends.base import (
    Activity,
    Backend,
    EngineProbe,
    LaunchPlan,
    extra,
    flag_of,
    folders,
    gpu_environment,
    is_reference,
    local_model,
    socket_folder,
)
from cortexd.backends.gguf import check_gguf
from cortexd.backends.llamacpp_variables import VARIABLES
from cortexd.errors import InvalidConfig
from cortexd.kinds import INFINITY, MIB
from cortexd.model import ModelSpec
from cortexd.scope import Scope

_VARIABLES = frozenset(VARIABLES)
_DEFAULT_CACHE_RAM = 8192 * MIB
_API_KEY = "LLAMA_API_KEY"
_SPLIT = ("-sm", "--split-mode", "-ts", "--tensor-split")
_NO_COMPLETIONS = ("--embedding", "--embeddings", "--rerank", "--reranking")


class LlamaCpp(Backend):
    """`llama-server` with one model: without -m or -hf it would be a router that calls itself healthy."""

    name = "llamacpp"
    executables = ("llama-server",)
    endpoint = "/health"
    compiles = False
    unix_sockets = True  # a host that ends in .sock is one
    version = ("--version",)
    healthy = r'\s*\{\s*"status"\s*:\s*"ok"[^{}]*\}\s*'

    owned: ClassVar[Mapping[str, str]] = {
        "--host": "host",
        "--port": "port",
        "-m": "path",
        "--model": "path",
        "-mu": "path",
        "--model-url": "path",
        "-dr": "path",
        "--docker-repo": "path",
        "-hf": "path",
        "-hfr": "path",
        "--hf-repo": "path",
        "-c": "max_model_len",
        "--ctx-size": "max_model_len",
    }
    owned_variables: ClassVar[Mapping[str, str]] = {**Backend.owned_variables, "GGML_VK_VISIBLE_DEVICES": "gpus"}
    secret_flags: ClassVar[Mapping[str, str]] = {"--api-key": _API_KEY, "-hft": "HF_TOKEN", "--hf-token": "HF_TOKEN"}

    def check(self, spec: ModelSpec) -> None:
        """A local path must be a GGUF file."""
        super().check(spec)
        if not is_reference(spec.path):
            check_gguf(Path(spec.path))
        elif spec.path.endswith(".gguf"):
            raise InvalidConfig(f"path={spec.path!r}: no such file here; give the path of a GGUF file that exists")
        elif "/" not in spec.path:
            raise InvalidConfig(f"path={spec.path!r}: is neither a GGUF file nor a reference such as org/name:Q4_K_M")
        split = [word for word in extra(spec) if flag_of(word) in _SPLIT]
        if split and spec.tensor_parallel > 1:
            raise InvalidConfig(f"extra_args={split[0]!r}: is given by a setting; leave it out, or tensor_parallel=")

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """Context length, alias, GPU layers, split; the rest is llama-server's own default."""
        argv = [spec.exec, "-hf" if is_reference(spec.path) else "-m", spec.path]
        # Both are given always: the default port moves between releases.
        argv += ["--host", spec.host, "--port", str(spec.port), "--alias", spec.name, "-c", str(spec.max_model_len)]
        argv += ["--metrics"]
        if not spec.gpus:
            argv += ["--n-gpu-layers", "0"]
        if spec.tensor_parallel > 1:
            # Every layer on each of so many GPUs. Without it whole layers are spread over all GPUs that it may see, by
            # their free memory: its default, and what one wants who names several.
            argv += ["--split-mode", "row", "--tensor-split", ",".join(["1"] * spec.tensor_parallel)]
        caches = {}
        if is_reference(spec.path):
            caches = {"LLAMA_CACHE": str(scope.kept_in("LLAMA_CACHE", scope.cache / "llama.cpp"))}
        environment = llama_gpus(spec) | caches
        # The prompt cache lies beside the model in memory and would run into the limit. As a variable, since servers
        # from before it refuse the flag.
        memory = spec.limits.memory
        if memory != INFINITY and memory // 4 < _DEFAULT_CACHE_RAM:
            environment["LLAMA_ARG_CACHE_RAM"] = str(memory // 4 // MIB)
        generates = not any(flag_of(word) in _NO_COMPLETIONS for word in extra(spec))
        return LaunchPlan(
            argv=(*argv, *extra(spec)),
            environment=environment,
            unset_environment=(*_without(environment), _API_KEY),
            writes=(*folders(caches), *socket_folder(spec)),
            reads=local_model(spec),
            # A request in flight outlives SIGTERM for as long as it takes.
            stop_seconds=20,
            api_key=_API_KEY,
            # Without the cache the slot's last prompt, being the same, would cost the engine nothing.
            engine=_ENGINE if generates else None,
            # Tokens are counted when a request has ended, or a prompt: in between only n_decode_total grows.
            activity=Activity(
                path="/metrics",
                counters=(
                    "llamacpp:prompt_tokens_total",
                    "llamacpp:tokens_predicted_total",
                    "llamacpp:n_decode_total",
                ),
            ),
        )


def _without(environment: Mapping[str, str]) -> Sequence[str]:
    """VARIABLES but those that are given."""
    return [name for name in VARIABLES if name not in environment] if environment.keys() & _VARIABLES else VARIABLES


def llama_gpus(spec: ModelSpec) -> dict[str, str]:
    """Which GPUs llama.cpp's backends see; Vulkan's knows them by their numbers alone."""
    vulkan = {"GGML_VK_VISIBLE_DEVICES": ",".join(spec.gpus)} if all(gpu.isdecimal() for gpu in spec.gpus) else {}
    return gpu_environment(spec) | vulkan


_ENGINE = EngineProbe(
    path="/completion",
    body=json.dumps({"prompt": "a", "n_predict": 1, "cache_prompt": False}),
    # With --sleep-idle-seconds; neither this question nor /health wakes it.
    asleep=("/props", r'"is_sleeping"\s*:\s*true'),
)
