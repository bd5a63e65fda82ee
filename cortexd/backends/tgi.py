"""Text Generation Inference (text-generation-launcher --help and launcher/src/main.rs of 3.3.7; read, not run)."""

from __future__ import annotations

from collections.abc import Mapping
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

_GRACE = 90  # --graceful-termination-timeout's default: once for the router and once for the shards


def _beside(port: int, distance: int) -> int:
    """Another port that goes with this one and no other below the kernel's ephemeral range (32768 and up)."""
    return 1024 + (port - 1024 + distance) % (32768 - 1024)


class Tgi(Backend):
    """`text-generation-launcher`, which starts the shards and the router."""

    name = "tgi"
    executables = ("text-generation-launcher",)
    endpoint = "/health"
    quantizations = (
        "awq", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "compressed-tensors", "eetq", "exl2", "fp8", "gptq",
        "marlin",
    )  # fmt: skip

    owned: ClassVar[Mapping[str, str]] = {
        "--hostname": "host",
        "--port": "port",
        "-p": "port",
        "--model-id": "path",
        "--num-shard": "tensor_parallel",
        "--quantize": "quantization",
        "--max-total-tokens": "max_model_len",
        "--cuda-memory-fraction": "gpu_memory_utilization",
    }

    def defaults(self, gpus: int) -> dict[str, Value]:
        """A shard has as many threads as a vLLM engine."""
        return super().defaults(gpus) | {"TasksMax": 4096 * max(1, gpus)}

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """Two launchers on one machine collide on three more ports and paths: each is derived from the model's port."""
        argv = [spec.exec, "--model-id", spec.path, "--hostname", spec.host, "--port", str(spec.port)]
        argv += ["--num-shard", str(spec.tensor_parallel)]
        argv += [
            "--max-input-tokens",
            str(max(1, spec.max_model_len - 1)),
            "--max-total-tokens",
            str(spec.max_model_len),
        ]
        argv += ["--cuda-memory-fraction", f"{spec.gpu_memory_utilization:g}"]
        argv += ["--prometheus-port", str(_beside(spec.port, 10000)), "--master-port", str(_beside(spec.port, 20000))]
        argv += ["--shard-uds-path", f"/tmp/cortex-{spec.name}-{spec.port}"]
        caches = hub_cache(scope)
        if spec.quantization:
            argv += ["--quantize", spec.quantization]
        return LaunchPlan(
            argv=(*argv, *extra(spec)),
            # It runs text-generation-server and text-generation-router, which lie beside it.
            environment=gpu_environment(spec) | path_environment(spec) | caches,
            # It reads bare names that other programs set for other purposes.
            unset_environment=("PORT", "HOSTNAME", "MODEL_ID", "API_KEY", "NUM_SHARD", "QUANTIZE", "REVISION", "DTYPE"),
            writes=(*folders(caches), scope.home / ".triton", scope.home / ".nv"),
            reads=local_model(spec),
            stop_seconds=2 * _GRACE + 10,
            success_exit_status=("130", "143"),
        )
