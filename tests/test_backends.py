"""Launch plans: each backend's flags, signals, times and folders, and the traps of the real programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortexd.backends import BACKENDS, LaunchPlan, backend_of
from cortexd.errors import InvalidConfig
from cortexd.kinds import GIB, INFINITY, Value
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
    """A model of that backend, with its defaults."""
    gpus = explicit.get("gpus", ("0",))
    defaults = BACKENDS[backend].defaults(len(gpus) if isinstance(gpus, tuple) else 0)
    given = {"path": PATHS[backend], "exec": EXECUTABLES[backend], "backend": backend, **explicit}
    return build_spec(name, given, defaults)


def plan_of(backend: str, name: str = "m", **explicit: Value) -> LaunchPlan:
    """Its launch plan."""
    return BACKENDS[backend].plan(spec_of(backend, name, **explicit), SCOPE)


def after(plan: LaunchPlan, flag: str) -> str:
    """The value of a flag, which has to stand there once."""
    assert plan.argv.count(flag) == 1, plan.argv
    return plan.argv[plan.argv.index(flag) + 1]


def check(backend: str, **explicit: Value) -> None:
    BACKENDS[backend].check(spec_of(backend, "m", **explicit))


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\3\0\0\0")
    return path


# ----------------------------------------------------------------------------------------------------------------- all


def test_the_four_backends() -> None:
    assert list(BACKENDS) == ["vllm", "llamacpp", "ollama", "tgi"]
    assert all(backend_of(name, SCOPE).name == name for name in BACKENDS)
    with pytest.raises(InvalidConfig, match="backend='sglang': use one of vllm, llamacpp, ollama, tgi"):
        backend_of("sglang", SCOPE)


@pytest.mark.parametrize(
    ("backend", "endpoint", "restart", "signal", "stop", "clean", "tasks"),
    [
        # It ends with 0 when its engine dies, so on-failure would leave it dead; while it loads only SIGINT ends it.
        ("vllm", "/health", "always", "SIGINT", 60, ("130", "143"), 4096),
        # A request in flight outlives SIGTERM.
        ("llamacpp", "/health", "on-failure", "SIGTERM", 20, (), 512),
        ("ollama", "/api/tags", "on-failure", "SIGTERM", 30, (), 4096),
        # Its grace of 90 s counts twice: for the router and for the shards.
        ("tgi", "/health", "on-failure", "SIGTERM", 190, ("130", "143"), 4096),
    ],
)
def test_life(
    backend: str, endpoint: str, restart: str, signal: str, stop: int, clean: tuple[str, ...], tasks: int
) -> None:
    spec, plan = spec_of(backend), plan_of(backend)
    assert (spec.health.endpoint, spec.restart.restart, spec.limits.tasks_max) == (endpoint, restart, tasks)
    assert (plan.kill_signal, plan.stop_seconds, plan.success_exit_status) == (signal, stop, clean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpus_are_the_same_for_cuda_and_rocm(backend: str) -> None:
    """On ROCm vLLM refuses to be imported where the two differ."""
    for gpus in ((), ("0",), ("2", "3")):
        environment = plan_of(backend, gpus=gpus).environment
        cpu_only = "-1" if backend == "ollama" else ""
        assert environment["CUDA_VISIBLE_DEVICES"] == environment["HIP_VISIBLE_DEVICES"] == (",".join(gpus) or cpu_only)
        assert environment["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize("backend", ["vllm", "llamacpp", "tgi"])
def test_host_and_port_are_always_given(backend: str) -> None:
    """Their defaults differ, move between releases, and are all interfaces."""
    plan = plan_of(backend, host="10.0.0.1", port=1234)
    assert after(plan, "--hostname" if backend == "tgi" else "--host") == "10.0.0.1"
    assert after(plan, "--port") == "1234"


FLAGS = {
    "vllm": {"serve", "--host", "--port", "--served-model-name", "--gpu-memory-utilization", "--max-model-len", "--tensor-parallel-size",
             "--quantization"},
    "llamacpp": {"-m", "--host", "--port", "--alias", "-c", "--split-mode"},
    "ollama": {"serve"},
    "tgi": {"--model-id", "--hostname", "--port", "--num-shard", "--max-input-tokens", "--max-total-tokens", "--cuda-memory-fraction",
            "--prometheus-port", "--master-port", "--shard-uds-path", "--quantize"},
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_its_own_flags(backend: str) -> None:
    """None of vLLM's options, nor anybody's, leaks into another's command line."""
    splits = backend != "ollama"
    full = plan_of(
        backend, gpus=("0", "1"), tensor_parallel=2 if splits else 1, gpu_memory_utilization=0.5, max_model_len=77,
        quantization="awq" if backend in ("vllm", "tgi") else "",
    )  # fmt: skip
    flags = {word for word in full.argv[1:] if word.startswith("-")} | ({"serve"} & set(full.argv))
    assert flags == FLAGS[backend]
    hub = {"HF_HOME", "HF_HUB_CACHE"}
    own_variables = {"vllm": {"PATH", "VLLM_NO_USAGE_STATS", "VLLM_CACHE_ROOT", *hub}, "tgi": {"PATH", *hub}, "llamacpp": set(),
                     "ollama": {"OLLAMA_HOST", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "OLLAMA_MAX_LOADED_MODELS",
                                "OLLAMA_MODELS"}}  # fmt: skip
    common = {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM"}
    assert set(full.environment) == common | own_variables[backend]


@pytest.mark.parametrize("backend", ["vllm", "llamacpp", "tgi"])
def test_extra_arguments_come_last_word_by_word(backend: str) -> None:
    plan = plan_of(backend, extra_args="""--a "b c" '%n $X ;' d\\ e ü""")
    assert plan.argv[-5:] == ("--a", "b c", "%n $X ;", "d e", "ü")
    assert plan.argv[:-5] == plan_of(backend).argv


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_executable_is_absolute_and_first(backend: str) -> None:
    assert plan_of(backend).argv[0] == EXECUTABLES[backend]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_local_model_has_to_be_seen(backend: str) -> None:
    assert plan_of(backend, path="/srv/models/m").reads == (Path("/srv/models/m"),)
    assert plan_of(backend, path="org/name").reads == ()
    assert plan_of(backend, path="/srv/models/m-00001-of-00003.gguf").reads == (Path("/srv/models"),)


@pytest.mark.parametrize(
    ("backend", "explicit", "message"),
    [
        ("vllm", {"quantization": "gguf"}, r"quantization='gguf': vllm has awq, .*gptq"),
        ("vllm", {"quantization": "bitsandbytes"}, "quantization='bitsandbytes'"),
        (
            "llamacpp",
            {"quantization": "awq"},
            "quantization='awq': llamacpp takes it from the model's file; leave it out",
        ),
        ("ollama", {"quantization": "awq"}, "leave it out"),
        ("tgi", {"quantization": "torchao"}, "quantization='torchao': tgi has awq, bitsandbytes"),
        ("vllm", {"tensor_parallel": 2}, "tensor_parallel=2: needs as many GPUs, and gpus names 1; give --gpus"),
        ("llamacpp", {"tensor_parallel": 3, "gpus": ("0", "1")}, "gpus names 2"),
        ("tgi", {"tensor_parallel": 2, "gpus": ()}, "gpus names 0"),
        (
            "ollama",
            {"tensor_parallel": 2, "gpus": ("0", "1")},
            "tensor_parallel=2: ollama has no such option; leave it out",
        ),
        ("ollama", {"extra_args": "--verbose"}, "extra_args='--verbose': ollama takes no arguments; leave it out"),
    ],
)
def test_what_a_backend_lacks(backend: str, explicit: dict[str, Value], message: str, gguf: Path) -> None:
    with pytest.raises(InvalidConfig, match=message):
        check(backend, **({"path": str(gguf)} if backend == "llamacpp" else {}), **explicit)


@pytest.mark.parametrize("backend", ["vllm", "tgi"])
def test_every_quantization_that_it_names_is_taken(backend: str) -> None:
    for method in BACKENDS[backend].quantizations:
        check(backend, quantization=method)
        assert method in plan_of(backend, quantization=method).argv
    assert {"awq", "gptq"} <= set(BACKENDS[backend].quantizations)


# ---------------------------------------------------------------------------------------------------------------- vllm


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


def test_vllm_writes_what_it_cannot_run_without() -> None:
    assert set(plan_of("vllm").writes) >= {
        HOME / ".cache/vllm", HOME / ".config/vllm", HOME / ".cache/huggingface", HOME / ".triton", HOME / ".nv", HOME / ".cache/flashinfer",
    }  # fmt: skip
    moved = user_scope({"HOME": str(HOME), "XDG_CACHE_HOME": "/big/cache"})
    assert Path("/big/cache/vllm") in BACKENDS["vllm"].plan(spec_of("vllm"), moved).writes


@pytest.mark.parametrize(
    ("backend", "variable"),
    [("vllm", "HF_HOME"), ("vllm", "HF_HUB_CACHE"), ("vllm", "VLLM_CACHE_ROOT"), ("tgi", "HF_HOME"), ("tgi", "HF_HUB_CACHE"),
     ("llamacpp", "LLAMA_CACHE"), ("ollama", "OLLAMA_MODELS")],
)  # fmt: skip
def test_a_cache_that_the_user_keeps_elsewhere_is_used_and_opened(backend: str, variable: str) -> None:
    moved = user_scope({"HOME": str(HOME), "XDG_RUNTIME_DIR": "/run/user/1000", variable: "/big/models"})
    plan = BACKENDS[backend].plan(spec_of(backend, path="org/name"), moved)
    assert plan.environment[variable] == "/big/models"
    assert Path("/big/models") in plan.writes
    relative = user_scope({"HOME": str(HOME), "XDG_RUNTIME_DIR": "/run/user/1000", variable: "models"})
    assert BACKENDS[backend].plan(spec_of(backend, path="org/name"), relative) == plan_of(backend, path="org/name")


@pytest.mark.parametrize("backend", ["vllm", "llamacpp", "tgi"])
def test_what_a_setting_gives_is_refused_in_extra_args(backend: str, gguf: Path) -> None:
    owned = BACKENDS[backend].owned
    path: Value = str(gguf) if backend == "llamacpp" else "org/name"
    for flag, setting in owned.items():
        for word in (flag, f"{flag}=1"):
            with pytest.raises(InvalidConfig, match=f"extra_args='{word}': is given by a setting; use {setting}="):
                check(backend, path=path, extra_args=f"--first {word} 1")
    given = {word for word in plan_of(backend, gpus=("0", "1"), max_model_len=5).argv if word in owned}
    assert {owned[word] for word in given} >= {"host", "port", "max_model_len"}
    check(backend, path=path, extra_args="--port-x 1 port")


@pytest.mark.parametrize("gpus", [(), ("0",), ("0", "1", "2", "3")])
def test_vllm_tasks_grow_with_the_gpus(gpus: tuple[str, ...]) -> None:
    assert spec_of("vllm", gpus=gpus).limits.tasks_max == 4096 * max(1, len(gpus))


def test_programs_beside_the_server_are_on_its_path() -> None:
    """TGI starts text-generation-server and -router by name; vLLM's compilers are in its virtual environment."""
    assert plan_of("tgi").environment["PATH"] == "/opt/tgi/bin:/usr/local/bin:/usr/bin:/bin"
    assert plan_of("vllm").environment["PATH"].startswith("/opt/venv/bin:")
    for usual in ("/usr/bin/vllm", "/usr/local/bin/vllm"):
        assert "PATH" not in plan_of("vllm", exec=usual).environment
    assert "PATH" not in plan_of("vllm", exec="/opt/a:b/vllm").environment  # no PATH can name that


# ------------------------------------------------------------------------------------------------------------ llama.cpp


def test_llama_server() -> None:
    plan = plan_of("llamacpp", "gguf", port=8080)
    assert plan.argv == (
        "/usr/bin/llama-server", "-m", "/models/m.gguf", "--host", "127.0.0.1", "--port", "8080", "--alias", "gguf", "-c", "4096",
    )  # fmt: skip
    assert plan.writes == ()


def test_llama_server_is_never_a_router() -> None:
    """With neither -m nor -hf it calls itself healthy and has no model; nor may a variable give it another one."""
    for path in ("/models/m.gguf", "org/name:Q4_K_M"):
        plan = plan_of("llamacpp", path=path)
        assert after(plan, "-m" if path.startswith("/") else "-hf") == path
        assert set(plan.argv) & {"-m", "-hf"} == {"-m" if path.startswith("/") else "-hf"}
        assert {"LLAMA_ARG_MODEL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_PORT", "LLAMA_ARG_HOST"} <= set(
            plan.unset_environment
        )


def test_llama_server_from_the_hub_writes_its_cache() -> None:
    plan = plan_of("llamacpp", path="org/name")
    assert plan.writes == (HOME / ".cache/llama.cpp",)
    assert plan.environment["LLAMA_CACHE"] == str(HOME / ".cache/llama.cpp")


def test_llama_server_on_gpus() -> None:
    assert after(plan_of("llamacpp", gpus=()), "--n-gpu-layers") == "0"
    assert after(plan_of("llamacpp", gpus=("0", "1"), tensor_parallel=2), "--split-mode") == "row"
    assert not {"--n-gpu-layers", "--split-mode"} & set(plan_of("llamacpp", gpus=("0", "1")).argv)


@pytest.mark.parametrize(
    ("memory", "cache"),
    [(32 * GIB, None), (128 * GIB, None), (INFINITY, None), (31 * GIB, "7936"), (8 * GIB, "2048"), (GIB, "256")],
)
def test_llama_servers_prompt_cache_fits_the_limit(memory: int, cache: str | None) -> None:
    """Its default is 8 GiB beside the model."""
    assert plan_of("llamacpp", memory=memory).environment.get("LLAMA_ARG_CACHE_RAM") == cache


def test_a_gguf_file_is_looked_at(gguf: Path, tmp_path: Path) -> None:
    check("llamacpp", path=str(gguf))
    check("llamacpp", path="org/name:Q4_K_M")
    (tmp_path / "text.gguf").write_text("text")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "secret.gguf").touch(mode=0)
    os.mkfifo(tmp_path / "fifo.gguf")
    for path, message in {
        str(tmp_path / "text.gguf"): "is no GGUF file; give one, or convert",
        str(tmp_path / "empty.gguf"): "is no GGUF file",
        str(tmp_path / "secret.gguf"): "Permission denied",
        str(tmp_path / "absent.gguf"): "No such file or directory; give the path of a GGUF file",
        str(tmp_path): "Is a directory",
        str(tmp_path / "fifo.gguf"): "is no GGUF file",  # and nobody waits for what may come out of it
        "absent.gguf": "no such file here",
        "models/absent.gguf": "no such file here",
        "name": "neither a GGUF file nor a reference",
    }.items():
        with pytest.raises(InvalidConfig, match=f"path='{path}': .*{message}"):
            check("llamacpp", path=path)


# ------------------------------------------------------------------------------------------------------------- ollama


def test_ollama_is_told_by_its_environment() -> None:
    plan = plan_of("ollama", host="0.0.0.0", port=11434, max_model_len=2048)
    assert plan.argv == ("/usr/local/bin/ollama", "serve")
    assert plan.environment["OLLAMA_HOST"] == "0.0.0.0:11434"
    assert plan.environment["OLLAMA_CONTEXT_LENGTH"] == "2048"
    assert plan.environment["OLLAMA_KEEP_ALIVE"] == "-1"
    assert plan.environment["OLLAMA_MAX_LOADED_MODELS"] == "1"
    assert plan_of("ollama", host="::1").environment["OLLAMA_HOST"] == "[::1]:8000"
    assert plan.writes == (HOME / ".ollama", HOME / ".ollama/models")
    assert plan.environment["OLLAMA_MODELS"] == str(HOME / ".ollama/models")


def test_ollama_hands_no_strangers_options_to_its_llama_server() -> None:
    assert "LLAMA_ARG_MODEL" in plan_of("ollama").unset_environment


# ---------------------------------------------------------------------------------------------------------------- tgi


def test_tgi() -> None:
    plan = plan_of(
        "tgi", gpus=("0", "1"), tensor_parallel=2, host="0.0.0.0", max_model_len=2048, gpu_memory_utilization=0.8
    )
    assert plan.argv[:3] == ("/opt/tgi/bin/text-generation-launcher", "--model-id", "org/name")
    assert (after(plan, "--num-shard"), after(plan, "--cuda-memory-fraction")) == ("2", "0.8")
    assert (after(plan, "--max-total-tokens"), after(plan, "--max-input-tokens")) == ("2048", "2047")
    assert after(plan_of("tgi", max_model_len=1), "--max-input-tokens") == "1"
    assert HOME / ".cache/huggingface" in plan.writes


def test_tgi_shards_are_counted_by_us_not_by_the_gpus_it_sees() -> None:
    assert after(plan_of("tgi", gpus=("0", "1")), "--num-shard") == "1"


def test_tgi_reads_bare_names() -> None:
    assert {"PORT", "HOSTNAME", "MODEL_ID", "API_KEY", "NUM_SHARD", "QUANTIZE"} <= set(plan_of("tgi").unset_environment)


def test_tgi_instances_share_no_port_and_no_path() -> None:
    """Each launcher has three: its own, Prometheus' and the shards'; all where the kernel gives none away."""
    own: dict[str, set[str]] = {"--prometheus-port": set(), "--master-port": set(), "--shard-uds-path": set()}
    ports = [1, 80, 1023, *range(1024, 32768, 7), 32768, 65535]
    for port in ports:
        plan = plan_of("tgi", f"m{port}", port=port)
        three = [port, int(after(plan, "--prometheus-port")), int(after(plan, "--master-port"))]
        assert len(set(three)) == 3
        assert all(1024 <= derived < 32768 for derived in three[1:])
        if 1024 <= port < 32768:
            for flag, seen in own.items():
                assert after(plan, flag) not in seen
                seen.add(after(plan, flag))
    near = {port: plan_of("tgi", port=port) for port in range(8000, 8100)}
    taken = [
        *near,
        *(int(after(plan, flag)) for plan in near.values() for flag in ("--prometheus-port", "--master-port")),
    ]
    assert len(set(taken)) == 300
