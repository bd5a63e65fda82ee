"""llama.cpp's launch plan."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortexd.backends import BACKENDS
from cortexd.errors import InvalidConfig
from cortexd.kinds import GIB, INFINITY
from tests.backends.plans import HOME, after, check, plan_of, spec_of


def test_llama_server() -> None:
    plan = plan_of("llamacpp", "gguf", port=8080)
    assert plan.argv == (
        "/usr/bin/llama-server", "-m", "/models/m.gguf", "--host", "127.0.0.1", "--port", "8080", "--alias", "gguf", "-c", "4096",
        "--metrics",
    )  # fmt: skip
    assert plan.writes == ()


def test_llama_server_is_never_a_router() -> None:
    """With neither -m nor -hf it calls itself healthy and has no model; nor may a variable give it another one."""
    for path in ("/models/m.gguf", "org/name:Q4_K_M"):
        plan = plan_of("llamacpp", path=path)
        assert after(plan, "-m" if path.startswith("/") else "-hf") == path
        assert set(plan.argv) & {"-m", "-hf"} == {"-m" if path.startswith("/") else "-hf"}


def test_no_variable_of_the_managers_becomes_an_option() -> None:
    unset = plan_of("llamacpp").unset_environment
    assert {"LLAMA_ARG_MODEL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_PORT", "LLAMA_ARG_HOST", "LLAMA_ARG_NO_MMAP"} <= set(
        unset
    )
    assert "LLAMA_API_KEY" in unset  # a stray one would lock everybody out
    assert not {"HF_TOKEN", "LLAMA_CACHE"} & set(unset)


def test_llama_server_from_the_hub_writes_its_cache() -> None:
    plan = plan_of("llamacpp", path="org/name")
    assert plan.writes == (HOME / ".cache/llama.cpp",)
    assert plan.environment["LLAMA_CACHE"] == str(HOME / ".cache/llama.cpp")


def test_one_gpu_or_none() -> None:
    assert after(plan_of("llamacpp", gpus=()), "--n-gpu-layers") == "0"
    assert "--n-gpu-layers" not in plan_of("llamacpp").argv  # its own default is as many as fit


def test_several_gpus_share_whole_layers_unless_each_is_to_have_a_part_of_every_one() -> None:
    several = plan_of("llamacpp", gpus=("0", "1", "2"))
    assert not {"--split-mode", "--tensor-split", "--n-gpu-layers"} & set(several.argv)
    assert several.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    for gpus in (("0", "1"), ("0", "1", "2")):  # a GPU beyond tensor_parallel gets nothing
        plan = plan_of("llamacpp", gpus=gpus, tensor_parallel=2)
        assert (after(plan, "--split-mode"), after(plan, "--tensor-split")) == ("row", "1,1")


def test_vulkan_knows_gpus_by_their_numbers() -> None:
    assert plan_of("llamacpp", gpus=("1", "2")).environment["GGML_VK_VISIBLE_DEVICES"] == "1,2"
    assert plan_of("llamacpp", gpus=()).environment["GGML_VK_VISIBLE_DEVICES"] == ""
    assert "GGML_VK_VISIBLE_DEVICES" not in plan_of("llamacpp", gpus=("GPU-8a1b2c3d",)).environment


@pytest.mark.parametrize("flag", ["-sm", "--split-mode", "--split_mode", "-ts", "--tensor-split"])
def test_a_split_of_ones_own_goes_with_no_tensor_parallel(flag: str, gguf: Path) -> None:
    check("llamacpp", path=str(gguf), gpus=("0", "1"), extra_args=f"{flag} 3,1")
    with pytest.raises(InvalidConfig, match=f"extra_args='{flag}': is given by a setting; .*tensor_parallel="):
        check("llamacpp", path=str(gguf), gpus=("0", "1"), tensor_parallel=2, extra_args=f"{flag} 3,1")


@pytest.mark.parametrize("word", ["--ctx_size", "--hf_repo", "--ctx-size=5"])
def test_other_spellings_of_what_a_setting_gives(word: str, gguf: Path) -> None:
    """llama-server takes _ for - in long options."""
    with pytest.raises(InvalidConfig, match=f"extra_args='{word}': is given by a setting"):
        check("llamacpp", path=str(gguf), extra_args=f"{word} 7")


@pytest.mark.parametrize(
    ("memory", "cache"),
    [(32 * GIB, None), (128 * GIB, None), (INFINITY, None), (31 * GIB, "7936"), (8 * GIB, "2048"), (GIB, "256")],
)
def test_llama_servers_prompt_cache_fits_the_limit(memory: int, cache: str | None) -> None:
    """Its default is 8 GiB beside the model."""
    plan = plan_of("llamacpp", memory=memory)
    assert plan.environment.get("LLAMA_ARG_CACHE_RAM") == cache
    assert ("LLAMA_ARG_CACHE_RAM" in plan.unset_environment) is (cache is None)


@pytest.mark.parametrize("flag", ["--embedding", "--embeddings", "--rerank", "--reranking"])
def test_a_server_that_generates_nothing_is_not_asked_to(flag: str) -> None:
    assert plan_of("llamacpp").engine is not None
    assert plan_of("llamacpp", extra_args=flag).engine is None


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


def test_a_users_own_variable_for_gpus_contradicts_the_setting() -> None:
    spec = spec_of("llamacpp", env=("GGML_VK_VISIBLE_DEVICES=3",))
    with pytest.raises(InvalidConfig, match="env='GGML_VK_VISIBLE_DEVICES': is given by a setting; use gpus="):
        BACKENDS["llamacpp"].check_plan(spec, plan_of("llamacpp"))
