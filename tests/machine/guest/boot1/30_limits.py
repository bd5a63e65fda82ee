"""The kernel holds the limits that the settings say: --memory 1G --cpu 1.5 and the defaults."""

from machine import check, contains, control_group, ctl

GIB = 1 << 30
group = control_group("cortex-tiny.service")
for file, limit in {
    "memory.max": GIB,
    "memory.high": GIB - min(GIB // 8, 8 * GIB),
    "cpu.max": "150000 100000",
    "cpu.weight": 100,
    "pids.max": 512,
}.items():
    check(file, (group / file).read_text().strip(), str(limit))
# A stock machine delegates cpu, memory and pids to a user's manager (user@.service), so IOWeight= does nothing.
check("io.weight is not there", (group / "io.weight").exists(), False)
contains("io.weight is reported", ctl("status", "tiny"), "IO: not available: the control group has no io controller")
