"""Limits of a running server are changed in the kernel at once, without a restart, and what is not in force is marked."""

import json
from typing import Any

from machine import RUNTIME, check, contains, control_group, ctl, properties, user

UNIT = "cortex-tiny.service"
MIB = 1 << 20
group = control_group(UNIT)
drop_ins = RUNTIME / "systemd" / "user.control" / f"{UNIT}.d"
run = properties(UNIT)["InvocationID"]


def kernel(file: str) -> str:
    return (group / file).read_text().strip()


def told() -> dict[str, list[str]]:
    """Each limit: asked for, in force, why they differ, remedy."""
    shown: dict[str, Any] = json.loads(ctl("show", "tiny", "--json"))[0]
    return {setting: rest for setting, *rest in shown["Limits"]}


for memory in (1200, 1500):
    ctl("set", "tiny", f"memory={memory}M", "cpu=1.25", "TasksMax=300", "CPUWeight=50", "IOWeight=70")
    for file, value in {
        "memory.max": memory * MIB,
        "memory.high": memory * MIB - memory * MIB // 8,
        "cpu.max": "125000 100000",
        "cpu.weight": 50,
        "pids.max": 300,
    }.items():
        check(f"{file} with {memory}M", kernel(file), str(value // 4096 * 4096 if file == "memory.high" else value))
    left = [path.read_text() for path in drop_ins.glob("*")]
    check(f"no drop-in is left with {memory}M", (properties(UNIT)["DropInPaths"], left), ("", []))
check("the same run", properties(UNIT)["InvocationID"], run)
check("no restart is needed", json.loads(ctl("show", "tiny", "--json"))[0]["RestartNeeded"], False)
check("all but io is in force", [setting for setting, limit in told().items() if limit[2]], ["IOWeight"])
contains("the remedy for io", told()["IOWeight"][3], "/etc/systemd/system/user@.service.d")

ctl("restart", "tiny")
group = control_group(UNIT)
check("memory.max after a restart", kernel("memory.max"), str(1500 * MIB))

# A limit above the parent's.
user("systemctl", "--user", "set-property", "--runtime", "cortex.slice", "MemoryMax=900M")
check("the parent's counts", told()["memory"][:3], ["1500M", "900M", "cortex.slice as a whole has no more"])
contains("status marks it", ctl("status", "tiny"), "memory=1500M (it is 900M): cortex.slice as a whole has no more")
user("systemctl", "--user", "set-property", "--runtime", "cortex.slice", "MemoryMax=infinity")

# A drop-in of the user's, by the very means that cortexd uses.
user("systemctl", "--user", "set-property", "--runtime", UNIT, "MemoryMax=800M")
contains(
    "what is in the way is told", ctl("set", "tiny", "memory=1300M"), f"{drop_ins}/50-MemoryMax.conf sets MemoryMax="
)
check("the user's stays", kernel("memory.max"), str(800 * MIB))
check("and is named", told()["memory"][:3], ["1300M", "800M", f"{drop_ins}/50-MemoryMax.conf says otherwise"])
user("rm", "-r", str(drop_ins))
user("systemctl", "--user", "daemon-reload")
ctl("set", "tiny", "memory=1G", "cpu=1.5", "TasksMax=512", "CPUWeight=100", "IOWeight=100")
check("memory.max in the end", kernel("memory.max"), str(1024 * MIB))
