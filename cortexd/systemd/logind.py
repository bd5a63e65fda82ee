"""logind, for lingering and for the machine's sleep (org.freedesktop.login1(5)).

Asked rarely, so the connection to the system bus lasts for one question, but for that on which it tells of sleep; where
there is no system bus nothing is lost.
"""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from cortexd.bus import Bus, BusError, BusGone, BusTimeout, Signal
from cortexd.errors import UnitFailed

DESTINATION = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
MANAGER = DESTINATION + ".Manager"
NO_SUCH_USER = DESTINATION + ".NoSuchUser"
TIMEOUT = 5.0

log = logging.getLogger(__name__)


class LogindClient:
    """`Logind` (protocol.py) for the user that this process runs as."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._uid = os.getuid()
        self._listening: Bus | None = None

    async def listen(self, resumed: Callable[[], None]) -> None:
        """See Logind."""

        def on_signal(signal: Signal) -> None:
            if signal.body == [False]:
                resumed()

        rule = f"type='signal',sender='{DESTINATION}',path='{PATH}',interface='{MANAGER}',member='PrepareForSleep'"
        try:
            self._listening = await Bus.connect(self._address)
            await self._listening.subscribe(rule, on_signal)
        except (BusError, BusGone, BusTimeout) as e:
            # A gap between the clocks tells of sleep, too, at the next probe.
            log.debug("logind does not tell of sleep: %s", e)

    def close(self) -> None:
        """See Logind."""
        if self._listening is not None:
            self._listening.close()

    async def linger(self) -> bool | None:
        """See Logind."""
        try:
            async with self._bus() as bus:
                (path,) = await _call(bus, PATH, MANAGER, "GetUser", "u", self._uid)
                (linger,) = await _call(
                    bus, path, "org.freedesktop.DBus.Properties", "Get", "ss", DESTINATION + ".User", "Linger"
                )
                return bool(linger)
        except BusError as e:
            # logind has an object for every user that lingers or is logged in.
            return False if e.name == NO_SUCH_USER else None
        except (BusGone, BusTimeout):
            return None

    async def set_linger(self, enable: bool) -> None:
        """See Logind."""
        try:
            async with self._bus() as bus:
                # Not interactive: a daemon's caller may be far from any agent that could ask for a password.
                await _call(bus, PATH, MANAGER, "SetUserLinger", "ubb", self._uid, enable, False)
        except (BusError, BusGone, BusTimeout) as e:
            reason = e.message if isinstance(e, BusError) else str(e)
            command = f"loginctl {'enable' if enable else 'disable'}-linger {_user_name(self._uid)}"
            raise UnitFailed(
                f"logind did not change whether you linger: {reason}; run '{command}' (as root, if need be)"
            ) from e

    @asynccontextmanager
    async def _bus(self) -> AsyncIterator[Bus]:
        bus = await Bus.connect(self._address)
        try:
            yield bus
        finally:
            bus.close()


async def _call(bus: Bus, path: str, interface: str, member: str, signature: str, *body: Any) -> list[Any]:
    return await bus.call(DESTINATION, path, interface, member, signature, body, timeout=TIMEOUT)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
