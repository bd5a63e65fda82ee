"""doctor on a machine as Debian delivers it, with cortexd as `make install` leaves it; and what it says without linger."""

import json
import time

from machine import RUNTIME, check, contains, run, until, user

began = time.monotonic()
done = user("cortexctl", "doctor", "--json")
check("ends in time", time.monotonic() - began < 10, True)
rows = json.loads(done.stdout)
wrong = [row for row in rows if row["level"] in ("warning", "error")]
check("nothing is to be fixed", (wrong, done.returncode, done.stderr), ([], 0, ""))
well = {row["check"] for row in rows if row["level"] == "ok"}
for name in ("bus", "systemd", "linger", "controllers", "daemon", "units", "cgroup", "namespaces", "files", "room"):
    check(f"{name} is in order", name in well, True)
delegated = [row["remedy"] for row in rows if row["check"] == "controllers" and row["level"] == "note"]
contains("io is not delegated", delegated[0] if delegated else "", "user@.service.d/delegate.conf")

# Nobody is logged in: their manager ends with the permission to linger, and doctor finds no bus.
run("loginctl", "disable-linger", "tester")
until(lambda: RUNTIME.exists(), False)
done = user("cortexctl", "doctor", "--fix", "--yes")
contains("no bus", done.stdout, "cannot reach your message bus at unix:path=/run/user/1000/bus")
contains("linger is missed", done.stdout, "linger is off")
run("loginctl", "enable-linger", "tester")
# Whether a user may do that is polkit's matter, and there is none here.
contains("a refusal is a sentence", done.stderr, "logind did not let your services linger: ")
check("a refusal is a failure", done.returncode, 1)
until(lambda: user("cortexctl", "start", "tiny").returncode, 0)
done = user("cortexctl", "doctor")
check("all is well again", (done.returncode, done.stdout.splitlines()[-1:]), (0, ["all is well"]))
