"""Ollama (envconfig/config.go, types/model/name.go and docs/api.md, August 2026; read, not run)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from cortexd.backends.base import Backend, EngineProbe, LaunchPlan, is_reference, local_model
from cortexd.backends.gguf import check_gguf
from cortexd.backends.llamacpp import llama_gpus
from cortexd.backends.llamacpp_variables import VARIABLES
from cortexd.errors import InvalidConfig
from cortexd.kinds import Value
from cortexd.model import ModelSpec
from cortexd.scope import Scope

# [[HOST/]NAMESPACE/]MODEL[:TAG]; a host may have a port.
_TAG = re.compile(r"((\w[\w.:-]{0,349}/)?\w[\w-]{0,79}/)?\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", re.ASCII)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_ITS_OWN = ("LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET")
"""Of llama-server's variables, those that Ollama documents as its own."""
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")


class Ollama(Backend):
    """`ollama serve`, told everything by environment variables. It takes no model: the waiter in the unit has it pull or
    create the model and load it, and calls the unit ready when it is loaded."""

    name = "ollama"
    executables = ("ollama",)
    # It says only that the server lives; readiness is the waiter's to find out.
    endpoint = "/api/tags"
    # Atomic: the first "models" has to do, so that an answer full of them takes no more time than another.
    healthy = r'(?>\s*\{.*?"models"\s*:).*\}\s*'
    version = ("--version",)
    takes_extra_args = False
    splits = False
    owned_variables: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(_GPU_VARIABLES, "gpus"),
        "OLLAMA_HOST": "port",
        "OLLAMA_CONTEXT_LENGTH": "max_model_len",
        "OLLAMA_LOAD_TIMEOUT": "health.startup_timeout_seconds",
    }

    def defaults(self, gpus: int) -> dict[str, Value]:
        """It runs a llama-server of its own for the model."""
        return super().defaults(gpus) | {"TasksMax": 4096}

    def check_reference(self, path: str) -> None:
        """A tag of its own library, or of another registry as in hf.co/org/name:quant."""
        if not is_reference(path):
            return
        if not _TAG.fullmatch(path):
            raise InvalidConfig(f"path={path!r}: is neither a GGUF file that exists nor a tag such as llama3:8b")
        if re.search(r":(.*-)?cloud$", path):
            raise InvalidConfig(
                f"path={path!r}: runs on ollama.com and not on this machine; give the tag of a local model"
            )

    def check(self, spec: ModelSpec) -> None:
        """A local path must be one GGUF file."""
        super().check(spec)
        if is_reference(spec.path):
            return
        check_gguf(Path(spec.path))
        if _SPLIT.search(spec.path):
            raise InvalidConfig(
                f"path={spec.path!r}: is one part of several; make one file of them with 'llama-gguf-split --merge'"
            )

    def check_plan(self, spec: ModelSpec, plan: LaunchPlan) -> None:
        """The model has to stay loaded."""
        super().check_plan(spec, plan)
        for assignment in spec.env:
            name = assignment.partition("=")[0]
            if name in ("OLLAMA_KEEP_ALIVE", "OLLAMA_MAX_LOADED_MODELS"):
                raise InvalidConfig(f"env={name!r}: cortexd keeps exactly one model loaded; leave it out")

    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """A server that has one model loaded, and keeps it."""
        models = scope.kept_in("OLLAMA_MODELS", scope.home / ".ollama" / "models")
        address = f"[{spec.host}]" if ":" in spec.host else spec.host
        environment = llama_gpus(spec) | {
            "OLLAMA_HOST": f"{address}:{spec.port}",
            "OLLAMA_CONTEXT_LENGTH": str(spec.max_model_len),
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MAX_LOADED_MODELS": "1",
            # Its five minutes would end a load for which startup_timeout leaves more time.
            "OLLAMA_LOAD_TIMEOUT": f"{math.ceil(spec.health.startup_timeout)}s",
            # Servers share the folder: one that starts would remove what another one is just receiving.
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_MODELS": str(models),
        }
        if not spec.gpus:
            environment |= dict.fromkeys(_GPU_VARIABLES, "-1")  # its word for "CPU only"
        tag = tag_of(spec)
        return LaunchPlan(
            argv=(spec.exec, "serve"),
            environment=environment,
            # It hands its environment on to its llama-server.
            unset_environment=tuple(name for name in VARIABLES if name not in _ITS_OWN),
            writes=(scope.home / ".ollama", models),
            reads=local_model(spec),
            stop_seconds=30,
            load=("--load", "ollama", "--model", tag, *(() if is_reference(spec.path) else ("--from", spec.path))),
            engine=EngineProbe(path="/api/generate", body=_one_token(tag), asleep=("/api/ps", _not_listed(tag))),
        )


def tag_of(spec: ModelSpec) -> str:
    """By which name the server knows the model: its tag, or for a file one in a namespace of ours, where it replaces no
    model of the user's. Ollama's names have no colon and do not tell capitals from others."""
    if is_reference(spec.path):
        return spec.path
    plain = spec.name.lower().replace(":", "-")
    same = plain == spec.name
    return f"cortex/{plain}" if same else f"cortex/{plain}-{hashlib.sha256(spec.name.encode()).hexdigest()[:8]}"


def _one_token(tag: str) -> str:
    options = {"num_predict": 1}  # none of those for which it would load the model anew
    return json.dumps({"model": tag, "prompt": "a", "raw": True, "stream": False, "keep_alive": -1, "options": options})


def shown_as(tag: str) -> str:
    """The tag as Ollama's answers write it: complete, but without its own registry and library (DisplayShortest)."""
    head, _, model = tag.rpartition("/")
    parts = [part for part in head.split("/") if part]
    if parts and parts[0] == "registry.ollama.ai" and len(parts) == 2:
        parts = parts[1:]
    parts = [] if parts == ["library"] else parts
    return "/".join([*parts, model if ":" in model else f"{model}:latest"])


def _not_listed(tag: str) -> str:
    return rf'(?si)\A(?!.*"name"\s*:\s*"{re.escape(shown_as(tag))}")'
