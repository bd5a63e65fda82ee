"""vLLM (docs.vllm.ai, `vllm serve --help` of 0.33; exit statuses and signals as seen on 0.32)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from cortexd.backends.base import (
    Backend,
    LaunchPlan,
    extra,
    folders,
    gpu_environment,
    hub_cache,
    local_model,
    path_environment,
)
from cortexd.kinds import Value
from cortexd.model import ModelSpec
from cortexd.scope import Scope


class Vllm(Backend):
    """`vllm serve`, or the module form with a python that has vLLM but no `vllm` beside it."""

    name = "vllm"
    executables = ("vllm",)
    endpoint = "/health"
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
    }
    # It ends with status 0 when its engine dies (vllm#48966), which on-failure would never restart.
    restart = "always"

    def defaults(self, gpus: int) -> dict[str, Value]:
        """One engine process of many threads a GPU: 512 tasks stop it (vllm#6295)."""
        return super().defaults(gpus) | {"TasksMax": 4096 * max(1, gpus)}

    def find(self, search_path: str) -> str | None:
        """`vllm`, else the first python on PATH that has the package installed."""
        if found := super().find(search_path):
            return found
        for name in ("python", "python3"):
            python = shutil.which(name, path=search_path)
            if python and any(
                Path(python).absolute().parent.parent.glob("lib*/python3*/site-packages/vllm/entrypoints")
            ):
                return str(Path(python).absolute())
        return None

    def missing(self) -> str:
        """Says that a python counts, too."""
        return "exec: neither vllm nor a python that has it is on your PATH; install vLLM, or give --exec FILE"

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """See the table of flags in the project's documentation of backends."""
        if Path(spec.exec).name.startswith("python"):
            argv = [spec.exec, "-m", "vllm.entrypoints.openai.api_server", "--model", spec.path]
        else:
            argv = [spec.exec, "serve", spec.path]
        argv += ["--host", spec.host, "--port", str(spec.port), "--served-model-name", spec.name]
        argv += ["--gpu-memory-utilization", f"{spec.gpu_memory_utilization:g}"]
        argv += ["--max-model-len", str(spec.max_model_len), "--tensor-parallel-size", str(spec.tensor_parallel)]
        if spec.quantization:
            argv += ["--quantization", spec.quantization]
        home, cache = scope.home, scope.cache
        caches = hub_cache(scope) | {"VLLM_CACHE_ROOT": str(scope.kept_in("VLLM_CACHE_ROOT", cache / "vllm"))}
        return LaunchPlan(
            argv=(*argv, *extra(spec)),
            environment=gpu_environment(spec) | path_environment(spec) | caches | {"VLLM_NO_USAGE_STATS": "1"},
            unset_environment=("VLLM_PORT",),  # means the port of its internal sockets, not of the server
            writes=(
                *folders(caches),
                home / ".config" / "vllm",
                cache / "flashinfer",
                home / ".triton",
                home / ".nv",
            ),
            reads=local_model(spec),
            kill_signal="SIGINT",  # SIGTERM is ignored while it loads
            stop_seconds=60,
            success_exit_status=("130", "143"),
        )
