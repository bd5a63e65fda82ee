"""Ollama's launch plan: one server, one model, loaded and kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cortexd.backends import BACKENDS
from cortexd.backends.ollama import Ollama, shown_as, tag_of
from cortexd.errors import InvalidConfig
from tests.backends.plans import HOME, check, plan_of, spec_of


def test_ollama_is_told_by_its_environment() -> None:
    plan = plan_of("ollama", host="0.0.0.0", port=11434, max_model_len=2048)
    assert plan.argv == ("/usr/local/bin/ollama", "serve")
    assert plan.environment["OLLAMA_HOST"] == "0.0.0.0:11434"
    assert plan.environment["OLLAMA_CONTEXT_LENGTH"] == "2048"
    assert plan.environment["OLLAMA_KEEP_ALIVE"] == "-1"
    assert plan.environment["OLLAMA_MAX_LOADED_MODELS"] == "1"
    assert plan.environment["OLLAMA_NOPRUNE"] == "1"  # servers share the folder of models
    assert plan_of("ollama", host="::1").environment["OLLAMA_HOST"] == "[::1]:8000"
    assert plan.writes == (HOME / ".ollama", HOME / ".ollama/models")
    assert plan.environment["OLLAMA_MODELS"] == str(HOME / ".ollama/models")


def test_a_slow_load_has_as_long_as_the_unit_has() -> None:
    """Ollama's own limit is five minutes."""
    assert plan_of("ollama").environment["OLLAMA_LOAD_TIMEOUT"] == "3600s"
    longer = plan_of("ollama", health__startup_timeout_seconds=7200.5)
    assert longer.environment["OLLAMA_LOAD_TIMEOUT"] == "7201s"


def test_without_gpus_every_kind_is_hidden() -> None:
    environment = plan_of("ollama", gpus=()).environment
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"):
        assert environment[variable] == "-1"
    # ROCm would count within what ROCR_ leaves, so that only one of the two may name some.
    assert "ROCR_VISIBLE_DEVICES" not in plan_of("ollama", gpus=("1",)).environment


def test_ollama_hands_no_strangers_options_to_its_llama_server() -> None:
    unset = plan_of("ollama").unset_environment
    assert {"LLAMA_ARG_MODEL", "LLAMA_ARG_PORT", "LLAMA_ARG_CTX_SIZE"} <= set(unset)
    assert not {"LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET"} & set(unset)  # which it documents as its own


def test_the_waiter_loads_the_tag_or_the_file() -> None:
    assert plan_of("ollama").load == ("--load", "ollama", "--model", "llama3:8b")
    plan = plan_of("ollama", "tiny", path="/srv/tiny.gguf")
    assert plan.load == ("--load", "ollama", "--model", "cortex/tiny", "--from", "/srv/tiny.gguf")
    assert plan.reads == (Path("/srv/tiny.gguf"),)


def test_every_models_file_has_a_name_of_its_own_that_ollama_takes() -> None:
    """It tells no capitals apart, and a colon begins the tag."""
    names = ["tiny", "Tiny", "TINY", "a:b", "a-b", "a.b", "a_b", "0", "x" * 64, "X:" + "y" * 62]
    tags = [tag_of(spec_of("ollama", name, path="/m.gguf")) for name in names]
    assert len({tag.lower() for tag in tags}) == len(names)
    for tag in tags:
        Ollama().check_reference(tag)
        assert ":" not in tag and len(tag.split("/")[1]) <= 80


@pytest.mark.parametrize(
    "path",
    ["llama3", "llama3:8b", "qwen2.5-coder:7b-q4_K_M", "me/mine:v1", "hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M",
     "registry.ollama.ai/library/llama3:8b", "localhost:5000/team/model:1", "cloudy", "x:not-cloudy", "/any/path"],
)  # fmt: skip
def test_tags_of_any_registry(path: str) -> None:
    BACKENDS["ollama"].check_reference(path)
    assert plan_of("ollama", path=path).load[3] == ("cortex/m" if path == "/any/path" else path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a/b/c/d", "neither a GGUF file that exists nor a tag such as llama3:8b"),
        ("-option", "nor a tag"),
        ("a:b:c", "nor a tag"),
        ("llama3:", "nor a tag"),
        ("https://ollama.com/library/llama3", "nor a tag"),
        ("ünı", "nor a tag"),
        ("a b", "nor a tag"),
        ("x" * 81, "nor a tag"),
        ("gpt-oss:120b-cloud", "runs on ollama.com and not on this machine; give the tag of a local model"),
        ("kimi-k2:cloud", "runs on ollama.com"),
    ],
)
def test_what_is_no_tag_of_a_local_model(path: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=f"path='{path}': .*{message}"):
        BACKENDS["ollama"].check_reference(path)


def test_a_local_model_is_one_gguf_file(gguf: Path, tmp_path: Path) -> None:
    check("ollama", path=str(gguf))
    for path, message in ((tmp_path, "Is a directory; give the path of a GGUF file"),):
        with pytest.raises(InvalidConfig, match=message):
            check("ollama", path=str(path))
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(gguf.read_bytes())
    with pytest.raises(InvalidConfig, match="is one part of several; make one file of them with 'llama-gguf-split"):
        check("ollama", path=str(part))


def test_the_engine_probe_keeps_the_model_and_wakes_none() -> None:
    engine = plan_of("ollama", path="llama3").engine
    assert engine is not None and engine.asleep is not None
    body = json.loads(engine.body)
    assert (body["model"], body["keep_alive"], body["stream"]) == ("llama3", -1, False)
    assert set(body["options"]) == {"num_predict"}  # a num_ctx of its own would load the model anew
    path, pattern = engine.asleep
    assert path == "/api/ps"
    listed = {"models": [{"name": "other:1", "model": "other:1"}, {"name": "Llama3:latest", "model": "llama3:latest"}]}
    assert not re.search(pattern, json.dumps(listed, indent=2))
    assert not re.search(pattern, json.dumps(listed, separators=(",", ":")))
    for models in ([], [{"name": "llama3:8b"}], [{"name": "my-llama3:latest"}]):
        assert re.search(pattern, json.dumps({"models": models}))


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        ("llama3", "llama3:latest"),
        ("llama3:8b", "llama3:8b"),
        ("library/llama3", "llama3:latest"),
        ("registry.ollama.ai/library/llama3:8b", "llama3:8b"),
        ("registry.ollama.ai/me/mine", "me/mine:latest"),
        ("me/mine", "me/mine:latest"),
        ("hf.co/org/name:Q4_K_M", "hf.co/org/name:Q4_K_M"),
        ("localhost:5000/team/model", "localhost:5000/team/model:latest"),
    ],
)
def test_how_ollama_writes_a_tag(tag: str, shown: str) -> None:
    assert shown_as(tag) == shown


@pytest.mark.parametrize("variable", ["OLLAMA_KEEP_ALIVE", "OLLAMA_MAX_LOADED_MODELS"])
def test_no_variable_lets_the_model_go(variable: str) -> None:
    spec = spec_of("ollama", env=(f"{variable}=5m",))
    with pytest.raises(InvalidConfig, match=f"env='{variable}': cortexd keeps exactly one model loaded; leave it out"):
        BACKENDS["ollama"].check_plan(spec, plan_of("ollama"))


@pytest.mark.parametrize(
    ("variable", "setting"),
    [("OLLAMA_HOST", "port"), ("OLLAMA_CONTEXT_LENGTH", "max_model_len"), ("ROCR_VISIBLE_DEVICES", "gpus")],
)
def test_no_variable_contradicts_a_setting(variable: str, setting: str) -> None:
    spec = spec_of("ollama", env=(f"{variable}=7",))
    with pytest.raises(InvalidConfig, match=f"env='{variable}': is given by a setting; use {setting}="):
        BACKENDS["ollama"].check_plan(spec, plan_of("ollama"))
    BACKENDS["ollama"].check_plan(spec_of("ollama", env=("OLLAMA_FLASH_ATTENTION=1",)), plan_of("ollama"))
