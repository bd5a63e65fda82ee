"""cortexctl as a test runs it: the real program, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import lab
from tests.support.wait import until


class Cortex:
    """Runs cortexctl."""

    def run(self, *arguments: str, check: bool = True, path: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command and return what it printed; a status other than 0 fails the test unless `check` is false."""
        environment = dict(os.environ)
        if path is not None:
            environment["PATH"] = path
        done = subprocess.run(
            [sys.executable, "-m", "cortexctl", *arguments],
            capture_output=True, text=True, check=False, timeout=120, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def out(self, *arguments: str) -> str:
        """What a command prints on standard output."""
        return self.run(*arguments).stdout

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.out(*arguments, "--json"))

    def fails(self, *arguments: str, status: int = 1) -> str:
        """The error of a command that must fail with this status."""
        done = self.run(*arguments, check=False)
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr

    def register_tiny(self, name: str, *more: str, model: Path = lab.TINY_GGUF) -> None:
        """Register a model that llama-server really serves."""
        self.run(
            "register", name, "--path", str(model), "--backend", "llamacpp", "--exec", str(lab.LLAMA_SERVER),
            "--gpus", "none", "--memory", "2G", "--cpu", "1", "--port", "auto", "--max-model-len", "256", *more,
        )  # fmt: skip

    def properties(self, name: str) -> dict[str, Any]:
        """Every property and setting of a model."""
        (model,) = self.json("show", name)
        return dict(model)

    def until_state(self, name: str, *states: str, deadline: float = 20.0) -> dict[str, Any]:
        """Wait until the model's State is one of `states`."""

        def reached() -> dict[str, Any] | None:
            found = self.properties(name)
            return found if found["State"] in states else None

        result = until(reached, f"state {states} of {name}", deadline)
        assert result is not None
        return result
