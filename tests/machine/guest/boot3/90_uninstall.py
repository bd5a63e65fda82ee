"""Uninstalling refuses while a model is registered, and then leaves nothing but ~/.cortex."""

from machine import CLONE, check, contains, files_at_home, kept, user

refused = user("make", "uninstall", folder=CLONE)
check("uninstall refuses", refused.returncode != 0, True)
contains("uninstall names the model", refused.stdout + refused.stderr, "tiny")

check("stop", user("cortexctl", "stop", "tiny").returncode, 0)
check("unregister", user("cortexctl", "unregister", "tiny").returncode, 0)
check("uninstall", user("make", "uninstall", folder=CLONE).returncode, 0)
left = set(files_at_home()) - set(kept("home"))
check("home", sorted(path for path in left if path.split("/")[0] != ".cortex"), [])
check("units", user("systemctl", "--user", "list-units", "--all", "--no-legend", "--plain", "cortex*").stdout, "")
check("unit files", user("systemctl", "--user", "list-unit-files", "--no-legend", "cortex*").stdout, "")
names = user("busctl", "--user", "list", "--no-legend").stdout
check("bus names", [line for line in names.splitlines() if "cortex" in line], [])
