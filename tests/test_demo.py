"""What the README and docs/ tell people to run, run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("found", ["cortexd.service", "cortex-mine.service"])
def test_the_demo_keeps_its_hands_off_the_models_of_a_cortexd_that_does_not_answer(found: str) -> None:
    folder = Path.home() / ".config" / "systemd" / "user"
    folder.mkdir(parents=True, exist_ok=True)
    unit = folder / found
    unit.write_text("[Service]\nSlice=cortex.slice\nExecStart=/bin/sleep 300\n")
    running = ["systemctl", "--user", "is-active", "mine-in-the-slice.service"]
    try:
        subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
        subprocess.run(
            ["systemd-run", "--user", "--quiet", "--collect", "--slice=cortex.slice", "--unit=mine-in-the-slice", "sleep", "300"],
            check=True,
        )  # fmt: skip
        done = subprocess.run(
            [lab.PROJECT / "scripts" / "demo"],
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 1 and "does not answer" in done.stderr, done.stdout + done.stderr
        assert subprocess.run(running, check=False).returncode == 0
    finally:
        unit.unlink()
        subprocess.run(["systemctl", "--user", "stop", "mine-in-the-slice.service", "cortex.slice"], check=True)
        subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)


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
