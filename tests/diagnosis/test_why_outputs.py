"""What servers print names the cause: recorded output, and hostile output."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cortexd.diagnosis import causes

OUTPUTS = sorted((Path(__file__).parent / "outputs").glob("*.txt"))
SETTINGS = {
    "name": "a", "path": "/m/x.gguf", "port": "8000", "host": "127.0.0.1", "memory": "32G", "max_model_len": "4096",
    "tensor_parallel": "8",
}  # fmt: skip


def recorded(file: Path) -> tuple[dict[str, str], list[str]]:
    """Where it is from and what it means (lines that begin with #), and the lines themselves."""
    text = file.read_text().splitlines()
    heads = (line[2:].partition(": ") for line in text if line.startswith("# "))
    return {key: value for key, _, value in heads}, [line for line in text if not line.startswith("# ")]


@pytest.mark.parametrize("file", OUTPUTS, ids=lambda file: file.stem)
def test_recorded_output(file: Path) -> None:
    expected, lines = recorded(file)
    assert expected["source"]
    found = causes.read(lines, SETTINGS)
    assert found is not None
    assert found.cause == expected["cause"]
    assert expected.get("says", "") in found.sentence
    assert found.remedy and found.line in lines


def test_the_same_among_what_else_a_server_says() -> None:
    noise = ["INFO 11-23 18:02:10 [model.py:733] Resolved architecture: LlamaForCausalLM", "    raise ValueError("] * 90
    for file in OUTPUTS:
        expected, lines = recorded(file)
        found = causes.read(
            [*noise, *lines, "RuntimeError: Engine core initialization failed. See root cause above."], SETTINGS
        )
        assert found is not None and found.cause == expected["cause"], file.stem


@pytest.mark.parametrize(
    ("line", "cause", "says"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/home/u/.cache/vllm'", "sandbox-denied", "/home/u/.cache/vllm"),
        ("OSError: [Errno 30] Read-only file system: '/home/u/.triton'", "sandbox-denied", "/home/u/.triton"),
        ("Error: mkdir /home/u/.ollama: read-only file system", "sandbox-denied", "/home/u/.ollama"),
        ("OSError: [Errno 28] No space left on device", "disk-full", "disk"),
        ("ModuleNotFoundError: No module named 'vllm'", "missing-library", "vllm"),
        ("error: unexpected argument '--bogus' found", "bad-option", "--bogus"),
        ("Error: listen tcp 10.9.9.9:11434: bind: cannot assign requested address", "address-unavailable", "127.0.0.1"),
        ("OSError: nobody/nothing is not a local folder and is not a valid model identifier listed on", "repository-unknown",
         "/m/x.gguf"),
        ("dial tcp: lookup registry.ollama.ai on 127.0.0.53:53: server misbehaving", "repository-unreachable", "downloaded"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "out-of-memory", "32G"),
    ],
)  # fmt: skip
def test_lines_of_the_system(line: str, cause: str, says: str) -> None:
    found = causes.read([line], SETTINGS)
    assert found is not None and found.cause == cause
    assert says in found.sentence


def test_what_is_no_error_names_a_cause_only_where_nothing_else_does() -> None:
    warning = "WARNING 10-10 10:22:58 _custom_ops.py:18] libcuda.so.1: cannot open shared object file"
    error = "OSError: [Errno 98] Address already in use"
    both = causes.read([error, warning], SETTINGS)
    assert both is not None and both.cause == "port-in-use"
    alone = causes.read([warning], SETTINGS)
    assert alone is not None and alone.cause == "gpu-not-visible"
    assert causes.read(["all is well", "INFO: 200 OK"], SETTINGS) is None


def test_every_pattern_has_a_sentence_and_a_remedy_that_can_be_filled_in() -> None:
    for pattern in causes.PATTERNS:
        groups = ["x"] * pattern.pattern.groups
        assert pattern.sentence.format(*groups, **SETTINGS) and pattern.remedy.format(*groups, **SETTINGS)
        assert "{" not in pattern.remedy.format(*groups, **SETTINGS)


HOSTILE = [
    "/", "'", "(", "error: argument ", "open /", "Repo id must ", "Permission denied: '", "failed to open GGUF file '",
    "Cannot access gated repo for url https://", "401 Client Error: a", "max seq len (1), (", "Free memory on device ",
    "Address already in use " * 2, 'error while handling argument "', "{0} {name} %s ", "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("seed", HOSTILE)
def test_time_grows_with_the_length_and_no_faster(seed: str) -> None:
    """A whole log of the longest lines takes well under a second of processor time; only 1000 characters are looked at."""
    lines = [(seed * 100_000)[:100_000]] * 200
    began = time.process_time()
    found = causes.read(lines, SETTINGS)
    assert time.process_time() - began < 1
    assert found is None or len(found.sentence) < 2000


def test_braces_in_a_line_are_no_format() -> None:
    found = causes.read(["unknown model architecture: '{port}{0}{nope}'"], SETTINGS)
    assert found is not None and "{port}{0}{nope}" in found.sentence
