"""Whatever keeps failing ends at its budget: at once, after a load that takes a while, or after it was ready; without cortexd, too."""

from machine import check, contains, events, need, properties, register_puppet, told, until, user

FATES = {
    "crashes at once": ("crash", "--crash-after 0"),
    "dies while it loads": ("sick", "--load 60 --crash-after 4"),
    "is ready and then dies": ("weak", "--crash-after 4"),
}
for name, fate in FATES.values():
    # The pause is long enough for cortexd to hear of the end on a slow machine: what runs meanwhile is no part of the budget.
    register_puppet(name, "--set", "max_restarts=3", "--extra-args", fate, pause=4)
names = [name for name, _ in FATES.values()]
user("cortexctl", "start", "--no-block", *names)


def rest(name: str) -> tuple[str, str]:
    return str(told(name).get("State")), properties(f"cortex-{name}.service")["ActiveState"]


for what, (name, _) in FATES.items():
    given_up = until(lambda name=name: rest(name)[0] if events(name, "gave-up") else "", "failed", seconds=120)
    check(f"one that {what} is given up", given_up, "failed")
    unit = properties(f"cortex-{name}.service")
    stays = unit["SubState"] in ("dead", "failed") and unit.get("Job", "") in ("", "0")
    check(f"one that {what}: systemd has it at rest", stays, True)
    check(f"one that {what} ran as often as it may", len({e["InvocationID"] for e in events(name, "run")}), 3)
    check(f"one that {what} is given up once", len(events(name, "gave-up")), 1)
    contains(f"one that {what}: the reason", told(name)["StateReason"], "3 runs failed in a row")
ended = {name: properties(f"cortex-{name}.service")["InvocationID"] for name in names}

# While cortexd is dead, systemd's own limit holds. (With cortexd there, nothing that runs is left to be started.)
user("cortexctl", "set", "crash", "StartLimitBurst=2")
user("systemctl", "--user", "mask", "--runtime", "cortexd.service")
need("cortexd is stopped", user("systemctl", "--user", "stop", "cortexd.service").returncode, 0)
user("systemctl", "--user", "reset-failed", "cortex-crash.service")
user("systemctl", "--user", "start", "--no-block", "cortex-crash.service")


def over() -> bool:
    unit = properties("cortex-crash.service")
    return unit["InvocationID"] != ended["crash"] and unit["SubState"] == "failed"


check("without cortexd, systemd gives up", until(over, seconds=60), True)
check("after so many starts", int(properties("cortex-crash.service")["NRestarts"]) <= 2, True)
user("systemctl", "--user", "unmask", "--runtime", "cortexd.service")
need("cortexd is back", user("systemctl", "--user", "start", "cortexd.service").returncode, 0)
check("it knows that it failed", until(lambda: rest("crash")[0], "failed"), "failed")
for name in "sick", "weak":
    check(f"{name} was not started meanwhile", properties(f"cortex-{name}.service")["InvocationID"], ended[name])
user("cortexctl", "unregister", "--force", *names)
