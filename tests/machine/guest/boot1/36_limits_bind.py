"""Limits bind: a server that wants more does not get it, two that compete share as they should, the desktop keeps its own."""

from machine import (
    check,
    contains,
    control_group,
    cpu_shares,
    ctl,
    desktop_slice,
    figures,
    http,
    kept,
    need,
    properties,
    register_puppet,
    slices,
    until,
    user,
)

MIB = 1 << 20
for name in "one", "two":
    register_puppet(name, "--memory", "512M", "--cpu", "4", "--no-health-check")
need("start", user("cortexctl", "start", "one", "two").returncode, 0)
runs = {name: properties(f"cortex-{name}.service")["InvocationID"] for name in ("one", "two")}
one, two = (control_group(f"cortex-{name}.service") for name in ("one", "two"))
url = {name: ctl("url", name).strip() for name in ("one", "two")}
# A program of the user's desktop, with everything to do.
user("systemd-run", "--user", "--quiet", "--slice=app.slice", "--unit=desktop", "python3", "-c", "while True: pass")
desktop = control_group("desktop.service")


def do(name: str, deed: str, count: int = 1) -> int:
    return int(http(f"{url[name]}/{deed}?{count}")[1])


# CPUWeight, with the desktop's program held still.
user("systemctl", "--user", "kill", "--signal=STOP", "desktop.service")
ctl("set", "one", "CPUWeight=400")
do("one", "burn")
do("two", "burn")
first, second = cpu_shares(one, two, seconds=5)
check(f"CPUWeight 400:100 shares {first:.2f}:{second:.2f}", 3 < first / second < 5, True)
user("systemctl", "--user", "kill", "--signal=CONT", "desktop.service")

# The desktop: whatever models' weights are, all of them together are one of its neighbours.
(share,) = cpu_shares(desktop, seconds=3)
check(f"beside two models the desktop's program has {share:.2f} of the core", 0.4 < share < 0.6, True)
user("systemctl", "--user", "stop", "desktop.service")
do("two", "rest")

# CPUQuota, of a running server.
(share,) = cpu_shares(one, seconds=2)
check(f"alone it has {share:.2f} of the core", share > 0.7, True)
ctl("set", "one", "cpu=0.25")
throttled = figures(one / "cpu.stat")["nr_throttled"]
(share,) = cpu_shares(one, seconds=4)
check(f"CPUQuota of 0.25 leaves {share:.2f}", 0.2 < share < 0.3, True)
check("it was throttled", figures(one / "cpu.stat")["nr_throttled"] - throttled > 10, True)
do("one", "rest")
ctl("set", "one", "cpu=4")

# TasksMax: the fork that is one too many fails, and the server lives.
ctl("set", "one", "TasksMax=24")
forked = do("one", "fork", 100)
check(f"TasksMax of 24 let {forked} of 100 processes be", (one / "pids.current").read_text().strip(), "24")
check("the kernel counted it", figures(one / "pids.events")["max"] > 0, True)
check("it answers all the same", http(f"{url['one']}/health"), (200, {"status": "ok"}))
do("one", "rest")

# MemoryHigh: the kernel slows it down, and does not kill it.
ctl("set", "two", "MemoryHigh=64M")
do("two", "hold", 300)
check("MemoryHigh of 64M throttles", until(lambda: figures(two / "memory.events")["high"] > 50, seconds=60), True)
current = int((two / "memory.current").read_text()) // MIB
check(f"of 300M it got {current}M so far", 60 < current < 200, True)
check("nothing is killed", figures(two / "memory.events")["oom_kill"], 0)
ctl("set", "two", "MemoryHigh=450M")
grown = until(lambda: int((two / "memory.current").read_text()) > 300 * MIB, seconds=60)
check("with more it goes on", grown, True)

# MemoryMax, of a running server whose child outgrows it.
ctl("set", "two", "MemoryHigh=512M", "Restart=no")
do("two", "hold", 400)
check("MemoryMax kills", until(lambda: properties("cortex-two.service")["Result"], "oom-kill"), "oom-kill")
contains("why says so", ctl("why", "two"), "memory limit of 512M")
check("the other is the same run", properties("cortex-one.service")["InvocationID"], runs["one"])
check("the desktop's slices are as they were before cortexd", slices(), kept("slices"))
for name in "app", "session":
    check(f"nothing was killed in {name}.slice", figures(desktop_slice(name) / "memory.events")["oom_kill"], 0)
user("cortexctl", "unregister", "--force", "one", "two")
