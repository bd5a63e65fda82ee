"""Text Generation Inference (launcher/src/main.rs and docs/source/reference of 3.3.7; read, not run)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from cortexd.backends.base import (
    Activity,
    Backend,
    EngineProbe,
    LaunchPlan,
    extra,
    folders,
    gpu_environment,
    hub_cache,
    local_model,
    path_environment,
    port_beside,
)
from cortexd.errors import InvalidConfig
from cortexd.kinds import Value
from cortexd.model import ModelSpec
from cortexd.scope import Scope

_GRACE = 90  # --graceful-termination-timeout's default: once for the router and once for the shards
_API_KEY = "API_KEY"

# Every option of the launcher's is a variable, too, without any prefix: names that other programs set for other purposes.
_VARIABLES = """
    API_KEY CORS_ALLOW_ORIGIN CUDA_GRAPHS CUDA_MEMORY_FRACTION DISABLE_CUSTOM_KERNELS DISABLE_GRAMMAR_SUPPORT DTYPE
    ENABLE_PREFILL_LOGPROBS GRACEFUL_TERMINATION_TIMEOUT HOSTNAME JSON_OUTPUT KV_CACHE_DTYPE LORA_ADAPTERS MASTER_ADDR
    MASTER_PORT MAX_BATCH_PREFILL_TOKENS MAX_BATCH_SIZE MAX_BATCH_TOTAL_TOKENS MAX_BEST_OF MAX_CLIENT_BATCH_SIZE
    MAX_CONCURRENT_REQUESTS MAX_INPUT_LENGTH MAX_INPUT_TOKENS MAX_STOP_SEQUENCES MAX_TOP_N_TOKENS MAX_TOTAL_TOKENS
    MAX_WAITING_TOKENS MODEL_ID NGROK NGROK_AUTHTOKEN NGROK_EDGE NUM_SHARD OTLP_ENDPOINT OTLP_SERVICE_NAME PAYLOAD_LIMIT
    PORT PROMETHEUS_PORT QUANTIZE REVISION ROPE_FACTOR ROPE_SCALING SHARDED SHARD_UDS_PATH SPECULATE
    TOKENIZER_CONFIG_PATH TRUST_REMOTE_CODE USAGE_STATS VALIDATION_WORKERS WAITING_SERVED_RATIO WATERMARK_DELTA
    WATERMARK_GAMMA WEIGHTS_CACHE_OVERRIDE
"""


class Tgi(Backend):
    """`text-generation-launcher`, which starts the shards and the router."""

    name = "tgi"
    executables = ("text-generation-launcher",)
    endpoint = "/health"
    version = ("--version",)
    folder_has = ("config.json",)
    healthy = r"\s*"
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
        "--sharded": "tensor_parallel",
        "--quantize": "quantization",
        "--max-total-tokens": "max_model_len",
        "--max-input-tokens": "max_model_len",
        "--max-input-length": "max_model_len",
        "--cuda-memory-fraction": "gpu_memory_utilization",
    }
    secret_flags: ClassVar[Mapping[str, str]] = {"--api-key": _API_KEY, "--ngrok-authtoken": "NGROK_AUTHTOKEN"}

    def defaults(self, gpus: int) -> dict[str, Value]:
        """A shard has as many threads as a vLLM engine."""
        return super().defaults(gpus) | {"TasksMax": 4096 * max(1, gpus)}

    def check(self, spec: ModelSpec) -> None:
        """What the launcher itself would refuse, some seconds later."""
        super().check(spec)
        if spec.max_model_len < 2:
            raise InvalidConfig(
                f"max_model_len={spec.max_model_len}: tgi needs room for a prompt and an answer; give 2 or more"
            )
        if spec.quantization == "exl2" and spec.tensor_parallel > 1:
            raise InvalidConfig(
                "quantization='exl2': tgi cannot share such a model between GPUs; use tensor_parallel=1"
            )
        for word in extra(spec):
            if word.startswith("-p") and word != "-p":
                raise InvalidConfig(f"extra_args={word!r}: is given by a setting; use port=")

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """Two launchers on one machine collide on three more ports and paths: each is derived from the model's port."""
        argv = [spec.exec, "--model-id", spec.path, "--hostname", spec.host, "--port", str(spec.port)]
        argv += ["--num-shard", str(spec.tensor_parallel)]
        argv += ["--max-input-tokens", str(spec.max_model_len - 1), "--max-total-tokens", str(spec.max_model_len)]
        argv += ["--cuda-memory-fraction", f"{spec.gpu_memory_utilization:g}"]
        argv += ["--prometheus-port", str(port_beside(spec.port, 10_000))]
        argv += ["--master-port", str(port_beside(spec.port, 20_000))]
        argv += ["--shard-uds-path", f"/tmp/cortex-{spec.name}-{spec.port}"]
        caches = hub_cache(scope)
        # The router and the launcher know only this older name for it.
        caches |= {"HUGGINGFACE_HUB_CACHE": caches["HF_HUB_CACHE"]}
        if spec.quantization:
            argv += ["--quantize", spec.quantization]
        return LaunchPlan(
            argv=(*argv, *extra(spec)),
            # It runs text-generation-server and text-generation-router, which lie beside it.
            environment=gpu_environment(spec) | path_environment(spec) | caches,
            unset_environment=tuple(_VARIABLES.split()),
            writes=(*folders(caches), scope.home / ".triton", scope.home / ".nv"),
            reads=local_model(spec),
            stop_seconds=2 * _GRACE + 10,
            success_exit_status=("130", "143"),
            api_key=_API_KEY,
            engine=EngineProbe(path="/generate", body=json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 1}})),
            # The first two are counted when a request has ended, the last one with every step of a batch.
            activity=Activity(
                path="/metrics",
                counters=("tgi_request_success", "tgi_request_generated_tokens_sum", "tgi_batch_inference_count"),
            ),
        )
