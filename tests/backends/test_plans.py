"""What every backend's launch plan has to be: life, GPUs, flags and variables of its own alone, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cortexd.backends import BACKENDS, backend_of
from cortexd.errors import InvalidConfig
from cortexd.kinds import GIB, Value
from cortexd.scope import user_scope
from tests.backends.plans import EXECUTABLES, HOME, SCOPE, after, check, plan_of, spec_of


def test_the_four_backends() -> None:
    assert list(BACKENDS) == ["vllm", "llamacpp", "ollama", "tgi"]
    assert all(backend_of(name, SCOPE).name == name for name in BACKENDS)
    with pytest.raises(InvalidConfig, match="backend='none-such': use one of vllm, llamacpp, ollama, tgi"):
        backend_of("none-such", SCOPE)


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
    "llamacpp": {"-m", "--host", "--port", "--alias", "-c", "--metrics", "--split-mode", "--tensor-split"},
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
    common = {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM"}
    hub = {"HF_HOME", "HF_HUB_CACHE"}
    own_variables = {
        "vllm": {"PATH", "VLLM_NO_USAGE_STATS", "VLLM_CACHE_ROOT", *hub},
        "tgi": {"PATH", "HUGGINGFACE_HUB_CACHE", *hub},
        "llamacpp": {"GGML_VK_VISIBLE_DEVICES"},
        "ollama": {
            "GGML_VK_VISIBLE_DEVICES", "OLLAMA_HOST", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "OLLAMA_LOAD_TIMEOUT",
            "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MODELS", "OLLAMA_NOPRUNE",
        },
    }  # fmt: skip
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


def test_programs_beside_the_server_are_on_its_path() -> None:
    """TGI starts text-generation-server and -router by name; vLLM's compilers are in its virtual environment."""
    assert plan_of("tgi").environment["PATH"] == "/opt/tgi/bin:/usr/local/bin:/usr/bin:/bin"
    assert plan_of("vllm").environment["PATH"].startswith("/opt/venv/bin:")
    for usual in ("/usr/bin/vllm", "/usr/local/bin/vllm"):
        assert "PATH" not in plan_of("vllm", exec=usual).environment
    assert "PATH" not in plan_of("vllm", exec="/opt/a:b/vllm").environment  # no PATH can name that


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_unit_sets_it_does_not_take_away(backend: str) -> None:
    """UnsetEnvironment= comes last: it would take what Environment= gives, too."""
    for memory in (GIB, 32 * GIB):
        plan = plan_of(backend, path="org/name", memory=memory, gpus=())
        assert not set(plan.unset_environment) & set(plan.environment)
        assert len(set(plan.unset_environment)) == len(plan.unset_environment)


@pytest.mark.parametrize("backend", ["llamacpp", "tgi"])
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


@pytest.mark.parametrize(
    ("backend", "flag", "variable"),
    [
        ("vllm", "--api-key", "VLLM_API_KEY"),
        ("llamacpp", "--api-key", "LLAMA_API_KEY"),
        ("llamacpp", "--api_key", "LLAMA_API_KEY"),
        ("llamacpp", "--hf-token", "HF_TOKEN"),
        ("llamacpp", "-hft", "HF_TOKEN"),
        ("tgi", "--api-key", "API_KEY"),
        ("tgi", "--ngrok-authtoken", "NGROK_AUTHTOKEN"),
    ],
)
def test_a_secret_in_extra_args_is_refused_and_not_repeated(backend: str, flag: str, variable: str, gguf: Path) -> None:
    path: Value = str(gguf) if backend == "llamacpp" else "org/name"
    for words in (f"{flag} s3cret", f"{flag}=s3cret"):
        with pytest.raises(InvalidConfig, match=f"use 'cortexctl secret set m {variable}'") as refused:
            check(backend, path=path, extra_args=words)
        assert "s3cret" not in str(refused.value)


def test_the_servers_that_have_keys_name_their_variable() -> None:
    keys = {name: plan_of(name).api_key for name in BACKENDS}
    assert keys == {"vllm": "VLLM_API_KEY", "llamacpp": "LLAMA_API_KEY", "ollama": "", "tgi": "API_KEY"}


@pytest.mark.parametrize("backend", ["llamacpp", "ollama", "tgi"])
def test_engine_probes_are_json_for_one_token(backend: str) -> None:
    engine = plan_of(backend).engine
    assert engine is not None
    body = json.loads(engine.body)
    tokens = {
        "llamacpp": lambda: body["n_predict"],
        "ollama": lambda: body["options"]["num_predict"],
        "tgi": lambda: body["parameters"]["max_new_tokens"],
    }
    assert tokens[backend]() == 1
    assert engine.path.startswith("/")
