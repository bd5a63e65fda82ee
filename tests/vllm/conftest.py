"""Tests on a real vLLM, which only `make test-vllm` runs: its 3.4 GB and minutes are too much for every run of all tests.

The build is one for CPUs, published under another package's name: its program `vllm` asks for the metadata of a package
that is not there, and fails; the module works. Both forms are tested.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import properties

VLLM = lab.PROJECT / ".demo" / "vllm"
START = 600.0  # seconds; the first start compiles, and others may need the processors, too

collect_ignore_glob = [] if os.environ.get("TEST_VLLM") else ["test_*.py"]


class Vllm(Cortex):
    """cortexctl, whose caller's PATH has vLLM's virtual environment."""

    def __init__(self, model: Path) -> None:
        self.model = model

    def register(self, name: str, *more: str) -> None:
        """Register a model on this build; its first found program serves it."""
        self.run(
            "register", name, "--path", str(self.model), "--gpus", "none", "--memory", "8G", "--cpu", "2", "--port", "auto",
            "--max-model-len", "4096", "--set", "RestartSec=0.1", *more, path=f"{VLLM}/bin:/usr/bin:/bin",
        )  # fmt: skip

    def start(self, name: str) -> dict[str, Any]:
        """Start a model and wait until it is ready, or will not be; returns its properties."""
        return self._wait("start", name)

    def wait(self, name: str) -> dict[str, Any]:
        """The same with a model that systemd starts."""
        return self._wait("wait", name)

    def _wait(self, verb: str, name: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "cortexctl", verb, name]
        subprocess.run(command, check=False, timeout=START, stdin=subprocess.DEVNULL)
        return self.properties(name)

    def processes(self, name: str) -> dict[int, str]:
        """Every process of a model's control group, by its command's name."""
        group = properties(f"cortex-{name}.service", "ControlGroup")["ControlGroup"]
        assert group, f"{name} does not run: {self.journal(name)[-5000:]}"
        found = {}
        for pid in Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found

    def journal(self, name: str) -> str:
        """All that a model's servers have printed."""
        command = ["journalctl", "--user", "--quiet", "--output=cat", f"--unit=cortex-{name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; it lies in /tmp, of which its server has another one."""
    assert (VLLM / "bin" / "python").exists(), "no vLLM could be had: see what scripts/get-vllm says"
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    subprocess.run([sys.executable, lab.PROJECT / "scripts" / "tiny_llama.py", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def vllm(shared_daemon: Daemon, model: Path) -> Iterator[Vllm]:
    """cortexd, and cortexctl for it."""
    yield Vllm(model)
