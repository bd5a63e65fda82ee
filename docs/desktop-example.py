#!/usr/bin/env python3
# Needs jeepney: Debian's python3-jeepney, or 'pip install jeepney' in a virtual environment.
"""Stop every model that runs, and start it again when this program ends: what a game launcher might do."""

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

NAME, ROOT = "org.cortexlinux.Cortex1", "/org/cortexlinux/Cortex1"
bus = open_dbus_connection("SESSION")


def call(path, interface, member, signature, *body):
    message = new_method_call(DBusAddress(path, NAME, f"{NAME}.{interface}"), member, signature, body)
    return unwrap_msg(bus.send_and_get_reply(message))[0]


models = call(ROOT, "Manager", "ListModels", "asa{sv}", [], {})
running = [m["Name"][1] for m in models if m["State"][1] in ("ready", "busy", "degraded", "unhealthy")]
for job in [call(ROOT, "Manager", "StopModel", "s", name) for name in running]:
    call(job, "Job", "Wait", "a{sv}", {})  # memory and ports are free when it returns
try:
    input(f"stopped: {', '.join(running) or 'nothing'}; press Enter to start again ")
finally:
    for name in running:
        call(ROOT, "Manager", "StartModel", "s", name)
