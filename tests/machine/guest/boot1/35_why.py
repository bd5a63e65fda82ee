"""A server that needs more memory than its limit is killed by the kernel, and `why` says so with the figure."""

import json

from machine import HOME, check, contains, ctl, need, until, user

hog = HOME / "hog"
hog.write_text(
    "#!/usr/bin/python3\nimport sys\n"
    "if '--version' in sys.argv:\n    sys.exit(0)\n"
    "held = []\nwhile True:\n    held.append(bytearray(b'x' * (4 << 20)))\n"
)
hog.chmod(0o755)
limits = "--gpus none --memory 96M --cpu 1 --port auto --set MemoryHigh=96M --set Restart=no"
settings = f"--path {HOME}/tiny.gguf --backend llamacpp --exec {hog} {limits}"
need("register", user("cortexctl", "register", "hog", *settings.split()).returncode, 0)
contains("start tells the cause", ctl("start", "hog"), "out of memory: the kernel killed it at its memory limit")


def found() -> dict[str, object]:
    told: dict[str, object] = json.loads(ctl("why", "hog", "--json"))[0]
    return told


check("cause", until(lambda: found()["Cause"], "out-of-memory"), "out-of-memory")
contains("sentence", str(found()["Sentence"]), "memory limit of 96M")
# The control group is gone; its counters were read before, or nothing is said of them (the kernel tells of a change 10 ms
# after the one before at the earliest: CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup.c).
evidence = {row["label"]: row["text"] for row in found()["Evidence"]}  # type: ignore[attr-defined]
contains("counters", evidence.get("Memory", ""), "limit 96M")
check("no counter says 0", ": 0" in evidence.get("Memory", ": 0"), False)
contains("event", ctl("events", "hog", "--kind", "cause"), "memory limit of 96M")
user("cortexctl", "unregister", "--force", "hog")
hog.unlink()
