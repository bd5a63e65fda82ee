"""What the README and docs/ tell people to run, run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import lab
from tests.support.cortex import Cortex


def test_the_demo() -> None:
    """On a systemd of the user's own, as the tests have one, it leaves nothing behind."""
    before = set(Path.home().rglob("*"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    done = subprocess.run(
        [lab.PROJECT / "scripts" / "demo"],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("completion_tokens", "is ready at", "SIGKILL", "every step worked"):
        assert word in done.stdout
    left = {path for path in set(Path.home().rglob("*")) - before if ".cache" not in path.parts}
    assert not left
    units = subprocess.run(
        ["systemctl", "--user", "list-units", "--plain", "--no-legend", "cortex*"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert units.stdout == ""


def test_the_example_for_desktops(cortex: Cortex) -> None:
    cortex.register_tiny("game")
    cortex.run("start", "game")
    example = subprocess.Popen(
        [sys.executable, lab.PROJECT / "docs" / "desktop-example.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with example:
        assert example.stdout is not None and example.stdin is not None
        assert "game" in "".join(iter(lambda: example.stdout.read(1), ";"))
        assert cortex.properties("game")["State"] == "stopped"
        example.stdin.write("\n")
        example.stdin.close()
        assert example.wait(timeout=20) == 0
    cortex.until_state("game", "ready")
