"""The user's systemd manager is killed: everything of theirs goes with it, and is as it should be after the next login."""

import os
import signal
from pathlib import Path

from machine import (
    UID,
    check,
    ctl,
    events,
    http,
    lives,
    login,
    need,
    properties,
    register_puppet,
    report,
    run,
    told,
    until,
    user,
    user_manager,
)

register_puppet("plain")
need("start", user("cortexctl", "start", "plain").returncode, 0)
need("enable", user("cortexctl", "enable", "tiny").returncode, 0)
service = f"user@{UID}.service"
before = lives("tiny", "plain")
main = run("systemctl", "show", "--property=MainPID", "--value", service).stdout.strip()

os.kill(int(main), signal.SIGKILL)
# What systemd does then (KillMode=mixed, no Restart=): the service fails and what is left of its processes is killed.
until(user_manager, "failed")
alive = [name for name, (_, pid, _) in before.items() if Path(f"/proc/{pid}").exists()]
check("the manager's end is the models' end, by systemd's own doing", (user_manager(), alive), ("failed", []))

with login():
    pass  # who lingers keeps the manager
check("an enabled model is ready", until(lambda: told("tiny").get("State"), "ready", seconds=60), "ready")
check("it is another run", lives("tiny")["tiny"][0] not in ("", before["tiny"][0]), True)
check("it answers", http(ctl("url", "tiny").strip() + "/health"), (200, {"status": "ok"}))
check("one that is not enabled is stopped", (told("plain")["State"], told("plain")["StateReason"]), ("stopped", ""))
report(f"# {ctl('why', 'plain').strip()}")
check("nobody failed", events("plain", "failed", "gave-up") + events("tiny", "failed", "gave-up"), [])
check("cortexd is there once", properties("cortexd.service")["ActiveState"], "active")
check("it starts", user("cortexctl", "start", "plain").returncode, 0)
user("cortexctl", "unregister", "--force", "plain")
user("cortexctl", "disable", "tiny")
