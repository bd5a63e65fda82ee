"""One systemd manager on a message bus: calls to it, signals from it, and whether it is there at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cortexd.bus import DBUS, DBUS_PATH, DEFAULT_TIMEOUT, Bus, BusError, BusGone, BusTimeout, Signal
from cortexd.errors import SystemdUnavailable, UnitFailed
from cortexd.systemd import wire

_TRIES = 3
ABSENCE = 10.0
"""Seconds that a manager may be off the bus; it is for a moment when it re-executes itself (daemon-reexec)."""


class Peer:
    """The owner of org.freedesktop.systemd1. The bus stays the caller's to close."""

    def __init__(self, bus: Bus, on_gone: Callable[[str], None]) -> None:
        """`on_gone` is called with the reason when the manager is not expected to return."""
        self._bus = bus
        self._owner = ""
        self._there = asyncio.Event()
        self._absence: asyncio.TimerHandle | None = None
        self._on_return: Callable[[], None] = lambda: None
        self._on_gone = on_gone

    async def attach(self, on_return: Callable[[], None]) -> None:
        """Find the manager; raises SystemdUnavailable where there is none. Later owners of its name are told by `on_return`."""
        try:
            await self._bus.subscribe(
                f"type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{wire.DESTINATION}'",
                self._owner_changed,
            )
            # A manager comes to its bus a moment after the bus itself is there.
            if not await self._find_owner():
                await self._wait_until_there()
        except (BusError, BusGone, BusTimeout) as e:
            raise SystemdUnavailable(f"no systemd manager answers on the bus: {e}") from e
        self._on_return = on_return
        self._bus.closed.add_done_callback(lambda _: self._gone("the connection to the bus has ended"))

    async def _find_owner(self) -> bool:
        try:
            (self._owner,) = await self._bus.call(DBUS, DBUS_PATH, DBUS, "GetNameOwner", "s", [wire.DESTINATION])
        except BusError as e:
            if wire.undelivered(e.name):
                return False
            raise
        self._there.set()
        return True

    async def _wait_until_there(self) -> None:
        try:
            async with asyncio.timeout(ABSENCE):
                await self._there.wait()
        except TimeoutError:
            raise SystemdUnavailable("systemd's manager is not on the bus") from None

    def detach(self) -> None:
        """Take no further notice of the manager."""
        self._owner = ""
        self._on_return = lambda: None
        self._on_gone = lambda _: None
        if self._absence:
            self._absence.cancel()

    async def subscribe(self, interface: str, member: str, where: str, handler: Callable[[Signal], None]) -> None:
        """Hand the manager's own signals to `handler`; `where` is the path part of the match rule."""

        def checked(signal: Signal) -> None:
            # Anybody on the bus can send a signal of this shape.
            if signal.sender == self._owner:
                handler(signal)

        rule = f"type='signal',sender='{wire.DESTINATION}',interface='{interface}',member='{member}',{where}"
        try:
            await self._bus.subscribe(rule, checked)
        except (BusError, BusGone, BusTimeout) as e:
            raise SystemdUnavailable(f"the bus refused signals of systemd's: {e}") from e

    async def call(
        self, path: str, interface: str, member: str, signature: str = "", *body: Any, timeout: float = DEFAULT_TIMEOUT
    ) -> list[Any]:
        """Call a method. Raises SystemdUnavailable if nobody answers, and BusError with what the manager answered. What only reads
        is asked again of a manager that re-executed itself meanwhile."""
        again = _TRIES if member in wire.READS else 0
        while True:
            if not self._there.is_set():
                await self._wait_until_there()
            try:
                return await self._bus.call(wire.DESTINATION, path, interface, member, signature, body, timeout=timeout)
            except BusError as e:
                if wire.undelivered(e.name) and not self._there.is_set():
                    continue  # sent before we knew that the manager had left the bus, for a moment or for good
                if wire.unanswered(e.name) and again:
                    again -= 1
                    continue
                if wire.unanswered(e.name):
                    raise SystemdUnavailable(f"systemd's manager went away during {member}: {e.message}") from e
                raise
            except (BusGone, BusTimeout) as e:
                raise SystemdUnavailable(f"systemd's manager does not answer: {e}") from e

    async def ask(self, what: str, member: str, signature: str = "", *body: Any, tolerate: str = "") -> list[Any]:
        """Call a method of the manager object; a refusal is UnitFailed, which says `what` was refused.

        With the error that is tolerated the answer is empty.
        """
        try:
            return await self.call(wire.MANAGER_PATH, wire.MANAGER, member, signature, *body)
        except BusError as e:
            if e.name == tolerate:
                return []
            raise UnitFailed(f"systemd refused to {what}: {e.message}") from e

    async def get(self, path: str, interface: str, name: str) -> Any:
        """One property's value; raises as `call` does."""
        (value,) = await self.call(path, wire.PROPERTIES, "Get", "ss", interface, name)
        return value

    def _owner_changed(self, signal: Signal) -> None:
        if signal.sender != DBUS:
            return
        self._owner = signal.body[2]
        if self._absence:
            self._absence.cancel()
        if self._owner:
            self._there.set()
            self._on_return()
        else:
            self._there.clear()
            reason = f"systemd's manager left the bus and was not back after {ABSENCE:g} s"
            self._absence = asyncio.get_running_loop().call_later(ABSENCE, self._gone, reason)

    def _gone(self, reason: str) -> None:
        self._on_gone(reason)
