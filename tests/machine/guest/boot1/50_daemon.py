"""A model outlives its manager's crash, and the manager comes back to it."""

import os
import signal

from machine import check, ctl, properties, until


def run() -> tuple[str, str]:
    unit = properties("cortex-tiny.service")
    return unit["InvocationID"], unit["MainPID"]


def daemon() -> str:
    return properties("cortexd.service")["MainPID"]


model, killed = run(), daemon()
os.kill(int(killed), signal.SIGKILL)
check("daemon comes back", until(lambda: daemon() not in ("0", killed)), True)
check("daemon says", until(lambda: ctl("is-active", "tiny").strip(), "ready"), "ready")
check("model is the same run", run(), model)
