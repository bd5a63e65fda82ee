"""The files that come with cortexd: each one's whole command line, checked against the programs' own documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.backends import library, list_backends
from cortexd.backends.custom import CustomBackend
from cortexd.errors import InvalidConfig
from cortexd.kinds import Value
from cortexd.scope import Scope, user_scope
from tests.backends_custom.forms import custom, spec_of

SCOPE: Scope = user_scope({"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1", "XDG_DATA_DIRS": "/none"})
COMMON = ["--host", "127.0.0.1", "--port", "8000"]
TWO: dict[str, Value] = {"gpus": ("0", "1"), "tensor_parallel": 2}
CPU: dict[str, Value] = {"gpus": ()}

LINES: list[tuple[str, dict[str, Value], list[str]]] = [
    (
        "sglang",
        {"exec": "/venv/bin/python"},
        ["/venv/bin/python", "-m", "sglang.launch_server", "--model-path", "org/name", "--served-model-name", "m", *COMMON,
         "--context-length", "4096", "--mem-fraction-static", "0.9", "--enable-metrics"],
    ),
    (
        "sglang",
        {"exec": "/venv/bin/python", "quantization": "awq", "max_model_len": 8192, "gpu_memory_utilization": 0.8, **TWO},
        ["/venv/bin/python", "-m", "sglang.launch_server", "--model-path", "org/name", "--served-model-name", "m", *COMMON,
         "--context-length", "8192", "--mem-fraction-static", "0.8", "--tp-size", "2", "--quantization", "awq",
         "--enable-metrics"],
    ),
    (
        "sglang",
        {"exec": "/venv/bin/python", **CPU},
        ["/venv/bin/python", "-m", "sglang.launch_server", "--model-path", "org/name", "--served-model-name", "m", *COMMON,
         "--context-length", "4096", "--mem-fraction-static", "0.9", "--device", "cpu", "--enable-metrics"],
    ),
    (
        "llamafile",
        {"path": "/m/a.gguf", "exec": "/opt/llamafile"},
        ["/bin/sh", "/opt/llamafile", "--server", "-m", "/m/a.gguf", *COMMON, "--alias", "m", "-c", "4096", "--metrics"],
    ),
    (
        "llamafile",
        {"path": "/m/a.gguf", "exec": "/opt/llamafile", **CPU},
        ["/bin/sh", "/opt/llamafile", "--server", "-m", "/m/a.gguf", *COMMON, "--alias", "m", "-c", "4096", "--metrics",
         "--gpu", "disable"],
    ),
    (
        "llamafile",
        {"path": "/m/a.gguf", "exec": "/opt/llamafile", "host": "::1", "extra_args": "--jinja", **TWO},
        ["/bin/sh", "/opt/llamafile", "--server", "-m", "/m/a.gguf", "--host", "::1", "--port", "8000", "--alias", "m",
         "-c", "4096", "--metrics", "--split-mode", "row", "--jinja"],
    ),
    (
        "tei",
        {"exec": "/opt/text-embeddings-router"},
        ["/opt/text-embeddings-router", "--model-id", "org/name", "--served-model-name", "m", "--hostname", "127.0.0.1",
         "--port", "8000", "--uds-path", "/tmp/cortex-m-8000"],
    ),
    (
        "whisper",
        {"path": "/m/ggml-base.bin", "exec": "/opt/whisper-server"},
        ["/opt/whisper-server", "-m", "/m/ggml-base.bin", *COMMON],
    ),
    (
        "whisper",
        {"path": "/m/ggml-base.bin", "exec": "/opt/whisper-server", **CPU},
        ["/opt/whisper-server", "-m", "/m/ggml-base.bin", *COMMON, "--no-gpu"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "argv"), LINES, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(LINES)])
def test_the_command_line(name: str, settings: dict[str, Value], argv: list[str]) -> None:
    backend = custom(name, SCOPE)
    assert list(backend.plan(spec_of(backend, **settings), SCOPE).argv) == argv


def test_each_file_is_one_and_no_file_is_missed() -> None:
    shipped = {path.stem for path in library.SHIPPED.iterdir()}
    assert shipped == {name for name, _, _ in LINES} == {"sglang", "llamafile", "tei", "whisper"}
    for each in list_backends(SCOPE):
        assert each.problem == "" and each.description
        if each.name in shipped:
            assert isinstance(each.backend, CustomBackend) and each.backend.endpoint == "/health"


def test_sglang_stops_on_the_signal_that_leaves_a_clean_status() -> None:
    backend = custom("sglang", SCOPE)
    plan = backend.plan(spec_of(backend), SCOPE)
    assert (plan.kill_signal, plan.stop_seconds, plan.success_exit_status) == ("SIGINT", 60, ("130",))
    assert backend.defaults(4)["TasksMax"] == 4 * 4096 and backend.defaults(0)["TasksMax"] == 4096
    with pytest.raises(InvalidConfig, match="sglang takes no file"):
        backend.check(spec_of(backend, path=__file__))


def test_llamafile_is_run_by_a_shell_and_seen_by_the_sandbox() -> None:
    backend = custom("llamafile", SCOPE)
    plan = backend.plan(spec_of(backend, path="/m/a.gguf", exec="/opt/llamafile"), SCOPE)
    assert plan.reads == (Path("/m/a.gguf"), Path("/opt/llamafile"))
    assert plan.environment["TMPDIR"] == "/tmp"
    assert plan.writes == (Path("/home/u/.llamafile"),)


def test_two_teis_collide_on_nothing() -> None:
    backend = custom("tei", SCOPE)
    plans = [backend.plan(spec_of(backend, port=port), SCOPE) for port in (8000, 8001)]
    assert {plan.environment["PROMETHEUS_PORT"] for plan in plans} == {"18000", "18001"}
    assert backend.version_command(spec_of(backend, exec="/x")) == ("/x", "--version")
    assert {plan.argv[-1] for plan in plans} == {"/tmp/cortex-m-8000", "/tmp/cortex-m-8001"}
    for key in ("API_KEY", "HF_TOKEN"):
        assert key not in plans[0].unset_environment  # they may be a secret of the model's
    with pytest.raises(InvalidConfig, match="secret set m HF_TOKEN"):
        backend.check(spec_of(backend, extra_args="--hf-token x"))


def test_whisper_takes_its_own_format_only(tmp_path: Path) -> None:
    backend = custom("whisper", SCOPE)
    model = tmp_path / "ggml-base.bin"
    model.write_bytes((0x67676D6C).to_bytes(4, "little") + bytes(8))  # GGML_FILE_MAGIC, as whisper.cpp reads it
    backend.check(spec_of(backend, path=str(model)))
    model.write_bytes(b"GGUF")
    with pytest.raises(InvalidConfig, match="does not begin with 'lmgg'"):
        backend.check(spec_of(backend, path=str(model)))
