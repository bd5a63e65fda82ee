"""doctor on a machine as Debian delivers it, with cortexd as `make install` leaves it; without linger, which it mends."""

import json
import time
from pathlib import Path

from machine import RUNTIME, check, contains, lives, login, run, told, until, user

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
run("systemctl", "mask", "--runtime", "--now", "polkit.service")
done = user("cortexctl", "doctor", "--fix", "--yes")
contains("no bus", done.stdout, "cannot reach your message bus at unix:path=/run/user/1000/bus")
contains("linger is missed", done.stdout, "linger is off")
# Whether a user may do that is polkit's matter, which does not answer.
contains("a refusal is a sentence", done.stderr, "logind did not let your services linger: ")
check("a refusal is a failure", done.returncode, 1)
run("systemctl", "unmask", "--runtime", "polkit.service")

# With a session cortexd and models run, until it ends.
with login():
    until(lambda: user("cortexctl", "start", "tiny").returncode, 0)
    done = user("cortexctl", "enable", "tiny")
    contains(
        "enable says that it does not linger",
        done.stderr,
        "tiny: you do not linger: without it models start at your login",
    )
    contains("and what to do", done.stderr, "run 'loginctl enable-linger'")
    check("it is enabled all the same", done.returncode, 0)
    done = user("cortexctl", "doctor")
    contains("doctor says it", done.stdout, "! linger is off")
    check("as something to be fixed", done.returncode, 1)
    done = user("cortexctl", "doctor", "--fix", "--yes")
    check("doctor --fix mends it", (done.returncode, Path("/var/lib/systemd/linger/tester").exists()), (0, True))
    done = user("cortexctl", "doctor")
    check("all is well again", (done.returncode, done.stdout.splitlines()[-1:]), (0, ["all is well"]))
    check("enable has nothing to say any more", user("cortexctl", "enable", "tiny").stderr, "")
    before = lives("tiny")
check("the session is over, the model runs on", (told("tiny")["State"], lives("tiny")), ("ready", before))
