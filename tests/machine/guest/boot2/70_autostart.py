"""After a reboot the model serves again, with nobody logged in."""

from machine import check, contains, ctl, http, kept, properties, sessions, until, user

check("nobody is logged in", sessions(), [])
check("model starts", until(lambda: properties("cortex-tiny.service")["ActiveState"], "active", seconds=60), "active")
check("model is another run", properties("cortex-tiny.service")["InvocationID"] != kept("run"), True)
check("model answers", http(ctl("url", "tiny").strip() + "/health"), (200, {"status": "ok"}))
status = user("cortexctl", "status", "tiny")
check("status exits", status.returncode, 0)
contains("status says", status.stdout, "ready")
