"""Objects on the bus: routes calls, answers the standard interfaces, and tells property changes, in one place each."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from cortexd.api.interfaces import Interface
from cortexd.bus import DBUS, INTERNAL_ERROR, Bus, Call, Variant
from cortexd.errors import ERROR_PREFIX, Busy, CortexError, ShuttingDown

log = logging.getLogger(__name__)

PROPERTIES = DBUS + ".Properties"
INTROSPECTABLE = DBUS + ".Introspectable"
OBJECT_MANAGER = DBUS + ".ObjectManager"
PEER = DBUS + ".Peer"

MAX_CALLS = 8192
"""Calls that may be under way at once; one more is Busy."""

MAX_CALLS_OF_CLIENT = 2048
"""Of these, a single client's: who waits for every job twice keeps nobody else from being answered."""

_STANDARD = """<interface name="org.freedesktop.DBus.Properties">
<method name="Get"><arg name="interface" type="s" direction="in"/><arg name="name" type="s" direction="in"/><arg name="value" type="v" direction="out"/></method>
<method name="GetAll"><arg name="interface" type="s" direction="in"/><arg name="values" type="a{sv}" direction="out"/></method>
<method name="Set"><arg name="interface" type="s" direction="in"/><arg name="name" type="s" direction="in"/><arg name="value" type="v" direction="in"/></method>
<signal name="PropertiesChanged"><arg name="interface" type="s"/><arg name="changed" type="a{sv}"/><arg name="invalidated" type="as"/></signal>
</interface>
<interface name="org.freedesktop.DBus.Introspectable"><method name="Introspect"><arg name="xml" type="s" direction="out"/></method></interface>
<interface name="org.freedesktop.DBus.Peer"><method name="Ping"/><method name="GetMachineId"><arg name="id" type="s" direction="out"/></method></interface>
"""
_OBJECT_MANAGER = """<interface name="org.freedesktop.DBus.ObjectManager">
<method name="GetManagedObjects"><arg name="objects" type="a{oa{sa{sv}}}" direction="out"/></method>
<signal name="InterfacesAdded"><arg name="object" type="o"/><arg name="interfaces" type="a{sa{sv}}"/></signal>
<signal name="InterfacesRemoved"><arg name="object" type="o"/><arg name="interfaces" type="as"/></signal>
</interface>
"""


class Exported(ABC):
    """An object with one interface. Each method of the XML is a coroutine method of the same name, which gets the
    Call and the arguments and returns the list of results; a writable property has a method `set_NAME`."""

    interface: Interface

    waits: frozenset[str] = frozenset()
    """Methods that only wait, and may be given up when their caller has left."""

    @abstractmethod
    def properties(self) -> Mapping[str, Any]:
        """Every property's value; must not raise."""

    async def refresh(self) -> None:  # noqa: B027 - most objects have nothing to do here
        """Bring values up to date that change all the time and are never signalled; called before they are read."""


class Server:
    """The objects of one connection. `root` is the ObjectManager."""

    def __init__(self, bus: Bus, root: str) -> None:
        self._bus, self._root = bus, root
        self._objects: dict[str, dict[str, Exported]] = {}
        self._sent: dict[tuple[str, str], dict[str, Any]] = {}
        self._managed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[str, dict[asyncio.Task[None], bool]] = {}
        """Every client's calls under way, and whether they only wait."""
        self._closing = False
        self.missing: Callable[[str], CortexError | None] = lambda path: None
        """What to answer for a path where no object is, if it is not the bus's own UnknownObject."""
        bus.serve(self._dispatch)

    def add(self, path: str, exported: Exported, *, managed: bool = False, announced: bool = True) -> None:
        """Export an object. A managed one is the ObjectManager's, which announces it, unless nobody can know us yet."""
        name = exported.interface.name
        self._objects.setdefault(path, {})[name] = exported
        values = self._sent[path, name] = dict(exported.properties())
        if managed:
            self._managed.add(path)
        if managed and announced:
            interfaces = {name: _variants(exported, values)}
            self._bus.emit(self._root, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, interfaces])

    def remove(self, path: str) -> None:
        """Take an object away."""
        gone = self._objects.pop(path, {})
        for name in gone:
            self._sent.pop((path, name), None)
        if path in self._managed:
            self._managed.discard(path)
            self._bus.emit(self._root, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, list(gone)])

    def update(self, path: str) -> None:
        """Tell which properties of an object have another value than was last told."""
        for name, exported in self._objects.get(path, {}).items():
            now, before = dict(exported.properties()), self._sent[path, name]
            self._sent[path, name] = now
            kinds = exported.interface.properties
            changed = {
                key: Variant(kinds[key].signature, value)
                for key, value in now.items()
                if kinds[key].emits == "true" and before.get(key) != value
            }
            if changed:
                self._bus.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [name, changed, []])

    def signal(self, path: str, interface: Interface, member: str, *body: Any) -> None:
        """Send a signal of an interface."""
        self._bus.emit(path, interface.name, member, interface.signals[member], body)

    async def close(self) -> None:
        """Refuse new calls; those under way are answered with ShuttingDown."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Dispatch

    def _dispatch(self, call: Call) -> bool:
        if call.interface == PEER:
            return False  # the library answers
        theirs = self._clients.get(call.sender, {})
        try:
            if self._closing:
                raise ShuttingDown("cortexd is ending; try again in a moment")
            if len(self._tasks) >= MAX_CALLS:
                raise Busy(f"{MAX_CALLS} calls are under way; wait until some are answered")
            if len(theirs) >= MAX_CALLS_OF_CLIENT:
                raise Busy(f"{MAX_CALLS_OF_CLIENT} calls of yours are under way; wait until some are answered")
        except CortexError as e:
            call.error(e.dbus_name, str(e))
            return True
        task = asyncio.get_running_loop().create_task(self._answer(call))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        waits = any(call.member in exported.waits for exported in self._objects.get(call.path, {}).values())
        self._clients.setdefault(call.sender, {})[task] = waits
        task.add_done_callback(lambda task: self._answered(task, call.sender))
        return True

    def _answered(self, task: asyncio.Task[None], client: str) -> None:
        self._tasks.discard(task)
        del self._clients[client][task]
        if not self._clients[client]:
            del self._clients[client]

    def left(self, client: str) -> None:
        """A connection has ended: nobody waits for its jobs any more. What it asked to have changed goes on."""
        for task, waits in self._clients.get(client, {}).items():
            if waits:
                task.cancel()

    async def _answer(self, call: Call) -> None:
        """Run one call; every end of it is a reply. An error that is not ours never leaves as a traceback."""
        try:
            await call.room()
            signature, body = await self._run(call)
            call.reply(signature, body)
        except CortexError as e:
            call.error(e.dbus_name, str(e))
        except _Refused as e:
            call.error(DBUS + ".Error." + e.name, str(e))
        except asyncio.CancelledError:
            call.error(ERROR_PREFIX + "ShuttingDown", "cortexd is ending; what was asked for may go on in systemd")
        except Exception:
            log.exception("%s.%s failed", call.interface, call.member)
            call.error(DBUS + ".Error.Failed", INTERNAL_ERROR)

    async def _run(self, call: Call) -> tuple[str, list[Any]]:
        if call.interface == INTROSPECTABLE and call.member == "Introspect":
            return "s", [self._introspect(call.path)]
        interfaces = self._objects.get(call.path)
        if interfaces is None and (error := self.missing(call.path)):
            raise error
        if interfaces is None:
            raise _Refused("UnknownObject", f"there is no object {call.path}")
        if call.interface == PROPERTIES:
            return await self._properties(call, interfaces)
        if call.interface == OBJECT_MANAGER and call.member == "GetManagedObjects" and call.path == self._root:
            return "a{oa{sa{sv}}}", [{path: self._interfaces(path) for path in sorted(self._managed)}]
        for name, exported in interfaces.items():
            method = exported.interface.methods.get(call.member)
            if method is not None and call.interface in (name, ""):
                if call.signature != method.takes:
                    raise _Refused("InvalidArgs", f"{call.member} takes {method.takes!r}, not {call.signature!r}")
                return method.gives, list(await getattr(exported, call.member)(call, *call.body))
        if call.interface and call.interface not in interfaces:
            raise _Refused("UnknownInterface", f"{call.path} has no interface {call.interface}")
        raise _Refused("UnknownMethod", f"{call.path} has no method {call.interface}.{call.member}")

    async def _properties(self, call: Call, interfaces: Mapping[str, Exported]) -> tuple[str, list[Any]]:
        takes = {"Get": "ss", "GetAll": "s", "Set": "ssv"}.get(call.member)
        if takes is None:
            raise _Refused("UnknownMethod", f"{PROPERTIES} has no method {call.member}")
        if call.signature != takes:
            raise _Refused("InvalidArgs", f"{call.member} takes {takes!r}, not {call.signature!r}")
        exported = interfaces.get(call.body[0])
        if exported is None:
            raise _Refused("UnknownInterface", f"{call.path} has no interface {call.body[0]}")
        await exported.refresh()
        if call.member == "GetAll":
            return "a{sv}", [_variants(exported, exported.properties())]
        kind = exported.interface.properties.get(call.body[1])
        if kind is None:
            raise _Refused("UnknownProperty", f"{call.body[0]} has no property {call.body[1]}")
        if call.member == "Get":
            return "v", [Variant(kind.signature, exported.properties()[call.body[1]])]
        if not kind.writable:
            raise _Refused("PropertyReadOnly", f"{call.body[1]} cannot be set")
        getattr(exported, "set_" + call.body[1])(call.body[2])
        self.update(call.path)
        return "", []

    def _interfaces(self, path: str) -> dict[str, dict[str, Variant]]:
        return {name: _variants(exported, exported.properties()) for name, exported in self._objects[path].items()}

    def _introspect(self, path: str) -> str:
        interfaces = self._objects.get(path, {})
        prefix = path.rstrip("/") + "/"
        children = sorted({p[len(prefix) :].split("/")[0] for p in self._objects if p.startswith(prefix)})
        if not interfaces and not children:
            raise _Refused("UnknownObject", f"there is no object {path}")
        parts = [exported.interface.text for exported in interfaces.values()]
        if interfaces:
            parts.append(_STANDARD)
        if path == self._root:
            parts.append(_OBJECT_MANAGER)
        parts += [f'<node name="{child}"/>' for child in children]
        return "<node>\n" + "\n".join(parts) + "\n</node>\n"


def _variants(exported: Exported, values: Mapping[str, Any]) -> dict[str, Variant]:
    kinds = exported.interface.properties
    return {name: Variant(kinds[name].signature, value) for name, value in values.items()}


class _Refused(Exception):
    """An error of the bus's own (org.freedesktop.DBus.Error.NAME)."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
