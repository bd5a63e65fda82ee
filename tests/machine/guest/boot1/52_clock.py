"""The clock jumps a day, both ways, while models run and are probed: no restart, no failure that counts, no budget spent."""

import json
import os
import signal
import time

from machine import check, contains, ctl, events, http, lives, properties, register_puppet, run, told, until, user

quick = ("--set", "health.interval_seconds=2", "--set", "health.timeout_seconds=2")
register_puppet("probed", *quick, "--set", "max_restarts=2")
user("cortexctl", "start", "probed")
before = lives("tiny", "probed")
cortexd = properties("cortexd.service")["InvocationID"]
failed = len(events("probed", "ended", "failed"))


def fresh_probes() -> int:
    """Liveness probes that the present clock says are of the last minute."""
    history = json.loads(ctl("health", "probed", "--json"))[0]["History"]
    return len([probe for probe in history if abs(time.time() - probe[0] / 1e6) < 60])


for jump in "1 day", "-1 day", "-1 day", "1 day":
    run("date", "--set", jump)
    check(f"{jump}: probes go on", until(lambda: fresh_probes() >= 3), True)
    check(f"{jump}: all is ready", {told(name)["State"] for name in before}, {"ready"})
    check(f"{jump}: the same runs", lives(*before), before)
    check(f"{jump}: the same cortexd", properties("cortexd.service")["InvocationID"], cortexd)
    check(f"{jump}: a request is answered", http(ctl("url", "tiny").strip() + "/health")[0], 200)
check("no failure", len(events("probed", "ended", "failed")), failed)
check("no health event", events("probed", "degraded", "health-restart", "gave-up"), [])

# A real failure on the day before is one, and no more.
run("date", "--set", "-1 day")
os.kill(int(before["probed"][1]), signal.SIGKILL)
check("a real failure restarts it", until(lambda: int(properties("cortex-probed.service")["NRestarts"])), 1)
check("it is ready again", until(lambda: told("probed")["State"], "ready"), "ready")
check("it is not given up", events("probed", "gave-up"), [])
contains("the audit log has it", json.dumps(events("probed", "ended")), "SIGKILL")
run("date", "--set", "1 day")
user("cortexctl", "unregister", "--force", "probed")
