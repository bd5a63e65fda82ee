"""Ollama (envconfig/config.go and `ollama serve --help`, August 2026; read, not run)."""

from __future__ import annotations

from cortexd.backends.base import Backend, LaunchPlan, gpu_environment, local_model
from cortexd.backends.llamacpp import OTHER_MODEL
from cortexd.kinds import Value
from cortexd.model import ModelSpec
from cortexd.scope import Scope


class Ollama(Backend):
    """`ollama serve`: everything is told by environment variables. Which model it loads is for its clients to say, since
    the command names none; `path` is what it is registered for."""

    name = "ollama"
    executables = ("ollama",)
    endpoint = "/api/tags"
    takes_extra_args = False
    splits = False
    note = "backend=ollama: ready means that the server answers; load the model with a request or 'ollama run' to it"

    def defaults(self, gpus: int) -> dict[str, Value]:
        """It runs a llama-server of its own for the model."""
        return super().defaults(gpus) | {"TasksMax": 4096}

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """A server that keeps one model loaded."""
        models = scope.kept_in("OLLAMA_MODELS", scope.home / ".ollama" / "models")
        address = f"[{spec.host}]" if ":" in spec.host else spec.host
        environment = gpu_environment(spec) | {
            "OLLAMA_HOST": f"{address}:{spec.port}",
            "OLLAMA_CONTEXT_LENGTH": str(spec.max_model_len),
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_MODELS": str(models),
        }
        if not spec.gpus:
            environment |= {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}  # its word for "CPU only"
        return LaunchPlan(
            argv=(spec.exec, "serve"),
            environment=environment,
            unset_environment=OTHER_MODEL,  # it hands its environment on to its llama-server
            writes=(scope.home / ".ollama", models),
            reads=local_model(spec),
            stop_seconds=30,
        )
