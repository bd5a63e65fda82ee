"""`python -m bench.seam`: the same as echo.py's Notify, on cortexd's own object layer: what a signal of ours costs, and no more.

CORTEX_DBUS chooses the library (cortexd/bus.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from cortexd.api.interfaces import Interface, Method
from cortexd.api.server import Exported, Server
from cortexd.bus import Bus, Call, session_address

NAME, PATH = "org.example.Seam", "/org/example/Seam"


class Notifier(Exported):
    """Sends a signal whenever it is told to."""

    interface = Interface(NAME, {"Notify": Method("", "")}, {}, {"Notified": "ss"}, f'<interface name="{NAME}"/>')

    def __init__(self, server: Server) -> None:
        self._server = server

    def properties(self) -> Mapping[str, Any]:
        """There are none."""
        return {}

    async def Notify(self, call: Call) -> list[Any]:
        """Send it."""
        self._server.signal(PATH, self.interface, "Notified", "m0000", "ready")
        return []


async def serve() -> None:
    """Until killed."""
    bus = await Bus.connect(session_address(os.environ))
    server = Server(bus, PATH)
    server.add(PATH, Notifier(server))
    await bus.request_name(NAME)
    await bus.closed


if __name__ == "__main__":
    asyncio.run(serve())
