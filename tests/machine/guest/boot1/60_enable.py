"""The last thing before the machine is powered off."""

from machine import check, keep, properties, user

check("enable", user("cortexctl", "enable", "tiny").returncode, 0)
check("unit is enabled", properties("cortex-tiny.service")["UnitFileState"], "enabled")
keep("run", properties("cortex-tiny.service")["InvocationID"])
