"""cortexctl and a cortexd that is killed while a model loads, where systemd and the bus start it again as they do when it is
installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.units import properties, systemctl
from tests.support.wait import until
from tests.test_restarts import folder, register

__all__ = ["folder"]

UNIT = "cortexd.service"
ACTIVATION = "[D-BUS Service]\nName=org.cortexlinux.Cortex1\nExec=/bin/false\nSystemdService=cortexd.service\n"


def reload_bus() -> None:
    where = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ReloadConfig")
    subprocess.run(["busctl", "--user", "call", *where], check=True)


@pytest.fixture
def installed() -> Iterator[Cortex]:
    """cortexd as a unit that restarts, and that the bus starts."""
    file = Path(os.environ["XDG_RUNTIME_DIR"]) / "dbus-1" / "services" / "org.cortexlinux.Cortex1.service"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(ACTIVATION)
    reload_bus()
    subprocess.run(
        ["systemd-run", "--user", "--quiet", f"--unit={UNIT}", "--property=Type=dbus", "--property=BusName=org.cortexlinux.Cortex1",
         "--property=Restart=on-failure", "--property=RestartSec=0.5", f"--working-directory={lab.PROJECT}",
         sys.executable, "-m", "cortexd.app"], check=True,
    )  # fmt: skip
    client = Cortex()
    yield client
    client.run("unregister", "--force", "*", check=False)
    systemctl("stop", UNIT)
    file.unlink()
    reload_bus()
    shutil.rmtree(Path.home() / ".cortex")


def test_a_start_goes_on_when_cortexd_is_killed(installed: Cortex, folder: Path) -> None:
    gate = folder / "gate"
    os.mkfifo(gate)
    register(installed, "loads", folder, "--fake-gate", str(gate))
    command = [sys.executable, "-m", "cortexctl", "start", "loads"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as starting:
        installed.until_state("loads", "starting")
        run = until(lambda: properties("cortex-loads.service", "InvocationID")["InvocationID"], "its run")
        before = properties(UNIT, "MainPID")
        systemctl("kill", "--signal=KILL", UNIT)
        until(lambda: properties(UNIT, "MainPID") != before, "its end")
        installed.until_state("loads", "starting")  # there is another one
        assert properties(UNIT, "MainPID") != before and starting.poll() is None
        gate.write_text("open")
        out, errors = starting.communicate(timeout=30)
    assert (starting.returncode, errors) == (0, "")
    assert out.startswith("loads is ready at http://127.0.0.1:")
    assert properties("cortex-loads.service", "InvocationID", "NRestarts") == {"InvocationID": run, "NRestarts": "0"}
