"""scripts/get-vllm and scripts/tiny_llama.py, without the gigabytes: `make test-vllm` uses what they make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support import lab

SCRIPTS = lab.PROJECT / "scripts"


def get_vllm(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it with an interpreter that must not be asked."""
    return subprocess.run(
        ["env", "PYTHON=/bin/false", SCRIPTS / "get-vllm", folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_leaves_one_that_is_complete_alone(tmp_path: Path) -> None:
    (tmp_path / "vllm-0.32.0").touch()
    assert get_vllm(tmp_path).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["vllm-0.32.0"]


def test_does_not_replace_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = get_vllm(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"get-vllm: {tmp_path} has something else in it: name another folder\n"
    assert (tmp_path / "file").exists()


def test_tiny_model_is_always_the_same_and_as_long_as_its_header_says(tmp_path: Path) -> None:
    for name in "a", "b":
        subprocess.run([sys.executable, SCRIPTS / "tiny_llama.py", tmp_path / name], check=True)
    first, second = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]
    weights = first["model.safetensors"]
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert 8 + length + max(ends) == len(weights)
    configuration = json.loads(first["config.json"])
    vocabulary = json.loads(first["tokenizer.json"])["model"]["vocab"]
    assert len(set(vocabulary.values())) == configuration["vocab_size"] == header["lm_head.weight"]["shape"][0]
    embedded = header["model.embed_tokens.weight"]["data_offsets"]
    assert np.isfinite(np.frombuffer(weights[8 + length :][slice(*embedded)], "<f4")).all()
