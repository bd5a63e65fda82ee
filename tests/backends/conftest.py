"""Fixtures of the tests of backends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.standins import StandIn, install
from tests.support.wait import until


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A file that begins like a model."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\3\0\0\0")
    return path


@pytest.fixture
def programs() -> Iterator[Path]:
    """A folder for programs; not under /tmp, which a model's sandbox replaces."""
    folder = Path(tempfile.mkdtemp(prefix="programs-", dir=Path.home()))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ollama(programs: Path) -> StandIn:
    """Ollama's stand-in."""
    return install(programs / "ollama", "ollama")


@pytest.fixture
def tgi(programs: Path) -> StandIn:
    """TGI's, with the programs that its launcher looks for."""
    for name in ("text-generation-server", "text-generation-router"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    return install(programs / "text-generation-launcher", "tgi")


class Gate:
    """A FIFO that a server waits at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        """Let the one through that waits there, when it does."""
        until(self._pushed, f"somebody at the gate {self.path.name}")

    def _pushed(self) -> bool:
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads
            return False
        return True


@pytest.fixture
def gate(programs: Path) -> Gate:
    """A gate."""
    return Gate(programs / "gate")
