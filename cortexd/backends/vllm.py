"""vLLM (docs.vllm.ai, `vllm serve --help` of 0.33; signals, exit statuses, endpoints and folders as seen on 0.32 for CPUs)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
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
    hub_cache,
    local_model,
    packages,
    path_environment,
    socket_folder,
)
from cortexd.kinds import GIB, Value
from cortexd.model import ModelSpec
from cortexd.scope import Scope

_API_KEY = "VLLM_API_KEY"
_CPU_CACHE = 4 * GIB


class Vllm(Backend):
    """`vllm serve`, or the module form with a python that has vLLM but no `vllm` beside it."""

    name = "vllm"
    executables = ("vllm",)
    endpoint = "/health"
    version = ("--version",)
    folder_has = ("config.json", "params.json")  # the hub's format, or Mistral's own
    unix_sockets = True
    healthy = r"\s*"
    quantizations = (
        "awq", "awq_marlin", "compressed-tensors", "experts_int8", "fp8", "fbgemm_fp8", "gptq", "gptq_marlin", "modelopt",
        "modelopt_fp4", "moe_wna16", "mxfp4", "petit_nvfp4", "quark", "torchao",
    )  # fmt: skip
    owned: ClassVar[Mapping[str, str]] = {
        "--host": "host",
        "--port": "port",
        "--model": "path",
        "--tensor-parallel-size": "tensor_parallel",
        "-tp": "tensor_parallel",
        "--max-model-len": "max_model_len",
        "--quantization": "quantization",
        "-q": "quantization",
        "--gpu-memory-utilization": "gpu_memory_utilization",
        "--uds": "host",
    }
    secret_flags: ClassVar[Mapping[str, str]] = {"--api-key": _API_KEY, "--hf-token": "HF_TOKEN"}
    # It ends with status 0 when its engine dies (vllm#48966), which on-failure would never restart.
    restart = "always"

    def defaults(self, gpus: int) -> dict[str, Value]:
        """One engine process of many threads a GPU: 512 tasks stop it (vllm#6295)."""
        return super().defaults(gpus) | {"TasksMax": 4096 * max(1, gpus)}

    def find(self, search_path: str) -> str | None:
        """`vllm`, else the first python on PATH that has the package installed."""
        found = super().find(search_path)
        if found and not _is_renamed(Path(found)):
            return found
        for name in ("python", "python3"):
            python = shutil.which(name, path=search_path)
            if python and packages(Path(python), "vllm/entrypoints"):
                return str(Path(python).absolute())
        return found

    def missing(self) -> str:
        """Says that a python counts, too."""
        return "exec: neither vllm nor a python that has it is on your PATH; install vLLM, or give --exec FILE"

    def version_command(self, spec: ModelSpec) -> tuple[str, ...]:
        """A python says whether it has the package, which takes no time; importing it would take many seconds."""
        if not Path(spec.exec).name.startswith("python"):
            return super().version_command(spec)
        return (
            spec.exec,
            "-c",
            "import importlib.util as u, sys; u.find_spec('vllm') or sys.exit('No module named vllm')",
        )

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """See the table of flags in the project's documentation of backends."""
        if Path(spec.exec).name.startswith("python"):
            argv = [spec.exec, "-m", "vllm.entrypoints.openai.api_server", "--model", spec.path]
        else:
            argv = [spec.exec, "serve", spec.path]
        argv += ["--uds", spec.socket] if spec.socket else ["--host", spec.host, "--port", str(spec.port)]
        argv += ["--served-model-name", spec.name]
        argv += _memory(spec)
        argv += ["--max-model-len", str(spec.max_model_len), "--tensor-parallel-size", str(spec.tensor_parallel)]
        if spec.quantization:
            argv += ["--quantization", spec.quantization]
        home, cache = scope.home, scope.cache
        caches = hub_cache(scope) | {"VLLM_CACHE_ROOT": str(scope.kept_in("VLLM_CACHE_ROOT", cache / "vllm"))}
        return LaunchPlan(
            argv=(*argv, *extra(spec)),
            environment=gpu_environment(spec) | path_environment(spec) | caches | {"VLLM_NO_USAGE_STATS": "1"},
            # VLLM_PORT means the port of its internal sockets; a stray key would lock out clients that know of none.
            unset_environment=("VLLM_PORT", _API_KEY),
            writes=(
                *folders(caches),
                home / ".config" / "vllm",
                home / ".cache" / "flashinfer",  # wherever XDG_CACHE_HOME is
                home / ".triton",
                home / ".nv",
                *socket_folder(spec),
            ),
            reads=local_model(spec),
            # As Ctrl-C does, for all of its processes: SIGTERM is ignored while it loads, and where only the main process
            # knows, that waits for an engine that goes on loading, or generating, until it is done.
            kill_signal="SIGINT",
            kill_mode="control-group",
            stop_seconds=60,
            success_exit_status=("130", "143"),
            api_key=_API_KEY,
            # A server of embeddings or scores has no completions.
            engine=None if _pools(spec) else _ENGINE,
            activity=Activity(
                path="/metrics",
                counters=("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total"),
            ),
        )


# Without a model's name it means the one that is served, whatever else --served-model-name calls it.
_ENGINE = EngineProbe(
    path="/v1/completions",
    body=json.dumps({"prompt": "a", "max_tokens": 1}),
    # Only a server in development mode can be put to sleep, and has this.
    asleep=("/is_sleeping", r'"is_sleeping"\s*:\s*true'),
)


def _memory(spec: ModelSpec) -> list[str]:
    """How much memory it takes. On a CPU gpu_memory_utilization would be a share of the whole machine's memory: vLLM knows
    the limit of a container, not that of a unit, and would run into it. So there the cache for keys and values gets a
    size: 4 GiB, which was vLLM's own default, or a quarter of the limit. --kv-cache-memory-bytes in extra_args and
    VLLM_CPU_KVCACHE_SPACE win over it."""
    if spec.gpus:
        return ["--gpu-memory-utilization", f"{spec.gpu_memory_utilization:g}"]
    return ["--kv-cache-memory-bytes", str(min(_CPU_CACHE, spec.limits.memory // 4))]


def _pools(spec: ModelSpec) -> bool:
    """Whether it is told to serve something else than text."""
    words = [part for word in extra(spec) for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return any(
        flag_of(flag) in ("--runner", "--convert", "--task") and value not in ("auto", "none", "generate")
        for flag, value in pairwise(words)
    )


def _is_renamed(program: Path) -> bool:
    """Whether this `vllm` is of a build that was published under another package's name (vllm-cpu, say): it asks for the
    metadata of vllm and fails, while the module works."""
    return bool(packages(program, "vllm/entrypoints")) and not packages(program, "vllm-[0-9]*.dist-info")
