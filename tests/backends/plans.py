"""Launch plans without a registration: what the tests of every backend need."""

from __future__ import annotations

from pathlib import Path

from cortexd.backends import BACKENDS, LaunchPlan
from cortexd.kinds import Value
from cortexd.model import ModelSpec, build_spec
from cortexd.scope import Scope, user_scope

HOME = Path("/home/somebody")
SCOPE: Scope = user_scope({"HOME": str(HOME), "XDG_RUNTIME_DIR": "/run/user/1000"})
EXECUTABLES = {
    "vllm": "/opt/venv/bin/vllm",
    "llamacpp": "/usr/bin/llama-server",
    "ollama": "/usr/local/bin/ollama",
    "tgi": "/opt/tgi/bin/text-generation-launcher",
}
PATHS = {"vllm": "org/name", "llamacpp": "/models/m.gguf", "ollama": "llama3:8b", "tgi": "org/name"}


def spec_of(backend: str, name: str = "m", **explicit: Value) -> ModelSpec:
    """A model of that backend, with its defaults; a double underscore stands for a setting's dot."""
    gpus = explicit.get("gpus", ("0",))
    defaults = BACKENDS[backend].defaults(len(gpus) if isinstance(gpus, tuple) else 0)
    given = {"path": PATHS[backend], "exec": EXECUTABLES[backend], "backend": backend}
    return build_spec(name, given | {key.replace("__", "."): value for key, value in explicit.items()}, defaults)


def plan_of(backend: str, name: str = "m", **explicit: Value) -> LaunchPlan:
    """Its launch plan."""
    return BACKENDS[backend].plan(spec_of(backend, name, **explicit), SCOPE)


def after(plan: LaunchPlan, flag: str) -> str:
    """The value of a flag, which has to stand there once."""
    assert plan.argv.count(flag) == 1, plan.argv
    return plan.argv[plan.argv.index(flag) + 1]


def check(backend: str, **explicit: Value) -> None:
    """The backend's own checks of a model."""
    BACKENDS[backend].check(spec_of(backend, "m", **explicit))
