"""GPU time of a model's processes excuses time-outs, and no longer than it is used. The program that tells of it is a stand-in."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import properties, systemctl
from tests.support.wait import until

UNIT = "cortex-gpu.service"
PROGRAM = """#!/bin/sh
[ "$1" = pmon ] || exit 0
echo '# gpu        pid  type    sm   mem   enc   dec   command'
echo "    0 $(cat @ROW@)     -     -     -   server"
"""


def test_a_server_that_waits_for_its_gpu_is_busy(daemon: Daemon, cortex: Cortex, tmp_path: Path) -> None:
    """It is stopped, so that it uses no CPU time at all, and answers nothing."""
    row, program = tmp_path / "row", tmp_path / "nvidia-smi"
    row.write_text("1 C 0")
    program.write_text(PROGRAM.replace("@ROW@", str(row)))
    program.chmod(0o755)
    daemon.stop()
    daemon.start(PATH=f"{tmp_path}:{os.environ['PATH']}")
    quick = {"health.interval_seconds": 2, "health.timeout_seconds": 2, "health.max_failures": 2, "RestartSec": 0.2}
    cortex.register_tiny("gpu", *(word for name, value in quick.items() for word in ("--set", f"{name}={value}")))
    cortex.run("start", "gpu")
    found = properties(UNIT, "InvocationID", "MainPID")
    row.write_text(f"{found['MainPID']} C 50")
    systemctl("kill", "--signal=STOP", UNIT)
    until(lambda: cortex.properties("gpu")["Health"] == "busy", "the excuse", 30)
    assert cortex.properties("gpu")["HealthReason"] == "no answer within 2 s, but it uses CPU or GPU time"
    row.write_text(f"{found['MainPID']} C 0")
    until(lambda: properties(UNIT, "InvocationID")["InvocationID"] != found["InvocationID"], "the next run", 40)
    told = [event["Kind"] for event in cortex.json("events", "gpu")]
    assert "busy" in told and "health-restart" in told
