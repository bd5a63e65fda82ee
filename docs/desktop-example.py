#!/usr/bin/env python3
"""Stop every model that runs, and start it again when this program ends: what a game launcher might do."""

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

bus = open_dbus_connection("SESSION")
manager = DBusAddress("/org/cortexlinux/Cortex1", "org.cortexlinux.Cortex1", "org.cortexlinux.Cortex1.Manager")
(models,) = bus.send_and_get_reply(new_method_call(manager, "ListModels", "asa{sv}", ([], {}))).body
running = [model["Name"][1] for model in models if model["State"][1] in ("ready", "busy", "degraded", "unhealthy")]
for name in running:
    bus.send_and_get_reply(new_method_call(manager, "StopModel", "s", (name,)))
input(f"stopped {', '.join(running) or 'nothing'}; press Enter to start again ")
for name in running:
    bus.send_and_get_reply(new_method_call(manager, "StartModel", "s", (name,)))
