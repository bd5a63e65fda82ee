"""The one module that knows the D-Bus library; everything else speaks `Bus`, `Call`, `Signal` and plain values.

Runs on dbus-next and, unchanged for its callers, on dbus-fast (the maintained fork of the same API), which is what
Python 3.15 and later install; CORTEX_DBUS=fast or =next chooses where both are there. Only the libraries' wire side is used
(connect, send, receive; of dbus-next, only the first, see transport.py): calls in both directions are matched here, because the
libraries' own object layers lose replies, leak tracebacks and hang after a disconnect. Each guard names the trap that it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cortexd import encoding

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 25.0
"""Seconds that a call waits for its reply (libdbus's default, too)."""

CONNECT_TIMEOUT = 10.0
"""Seconds within which a bus must have let us in."""

MAX_REPLY = 32 * 1024 * 1024
"""Bytes of a reply, roughly. D-Bus allows an array 64 MiB; for one byte more the bus daemon cuts the connection."""

MAX_ERROR = 4096
"""Characters of an error message, which may quote what the caller sent."""

INTERNAL_ERROR = "internal error; the daemon's log has the details"

DBUS = "org.freedesktop.DBus"
DBUS_PATH = "/org/freedesktop/DBus"


def _library() -> Any:
    wanted = os.environ.get("CORTEX_DBUS", "")
    names = {"fast": ["dbus_fast"], "next": ["dbus_next"]}.get(wanted, ["dbus_next", "dbus_fast"])
    problem: Exception | None = None
    for name in names:
        try:
            importlib.import_module(name + ".aio")
            return importlib.import_module(name)
        except (ImportError, AttributeError) as e:  # AttributeError: dbus-next on Python 3.15
            problem = e
    raise ImportError(f"neither dbus-next nor dbus-fast can be imported: {problem}")


_lib = _library()
LIBRARY: str = _lib.__name__
"""The library in use: dbus_next or dbus_fast."""


class BusGone(Exception):
    """The connection to the bus could not be made, or has ended."""


class BusTimeout(Exception):
    """No reply came within the time allowed."""


class BusError(Exception):
    """The peer answered with an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


@dataclass(frozen=True, slots=True)
class Variant:
    """A value that travels with its own signature."""

    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that arrived."""

    sender: str
    path: str
    interface: str
    member: str
    body: list[Any]


def _incoming(value: Any) -> Any:
    """dbus-fast's values to plain ones: variants unwrapped, structs as tuples."""
    if isinstance(value, _lib.Variant):
        return _incoming(value.value)
    if isinstance(value, list):
        return [_incoming(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_incoming(v) for v in value)
    if isinstance(value, dict):
        return {_incoming(k): _incoming(v) for k, v in value.items()}
    return value


def clean_text(text: str) -> str:
    """`text` without what D-Bus forbids. One NUL or lone surrogate and the bus daemon would cut the connection."""
    if "\0" in text:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _cleaned(value: Any, variant: Callable[[str, Any], Any] = Variant) -> Any:
    """`value` with all its text clean."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Variant):
        return variant(value.signature, _cleaned(value.value, variant))
    if isinstance(value, list | tuple):
        return [_cleaned(v, variant) for v in value]
    if isinstance(value, Mapping):
        return {_cleaned(k, variant): _cleaned(v, variant) for k, v in value.items()}
    return value


def _outgoing(value: Any) -> Any:
    """As the library takes it."""
    return _cleaned(value, _lib.Variant)


def _about(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, bytes | bytearray):
        return len(value)
    if isinstance(value, _lib.Variant):
        return 8 + _about(value.value)
    if isinstance(value, list):
        return 8 + sum(map(_about, value))
    if isinstance(value, dict):
        return 8 + sum(map(_about, value.keys())) + sum(map(_about, value.values()))
    return 8


def _body(message: Any) -> list[Any]:
    """The values of a message that came in."""
    return message.body if LIBRARY == "dbus_next" else _incoming(message.body)  # type: ignore[no-any-return]


_NAMES = {
    encoding.PATH: "path", encoding.INTERFACE: "interface", encoding.MEMBER: "member", encoding.ERROR_NAME: "error_name",
    encoding.REPLY_SERIAL: "reply_serial", encoding.DESTINATION: "destination",
}  # fmt: skip
"""Header fields as dbus-fast calls them."""


def _message(kind: int, serial: int, fields: Mapping[int, Any], signature: str, body: Sequence[Any]) -> Any:
    """What `Bus.send` takes: bytes, or a message of dbus-fast's. Values that do not fit the signature raise here or there."""
    if LIBRARY == "dbus_fast":
        named = {_NAMES[field]: value for field, value in fields.items()}
        kind = _lib.MessageType(kind)
        return _lib.Message(message_type=kind, serial=serial, signature=signature, body=_outgoing(list(body)), **named)
    try:
        content = encoding.encode(signature, body)
    except ValueError:  # text that D-Bus forbids, or no text at all
        content = encoding.encode(signature, _cleaned(list(body)))
    return encoding.message(kind, 0, serial, fields, signature, content)


class Call:
    """A method call that arrived; answered exactly once by `reply` or `error`."""

    def __init__(self, bus: Bus, message: Any) -> None:
        self._bus = bus
        self._message = message
        self._answered = False
        self.sender: str = message.sender or ""
        self.path: str = message.path
        self.interface: str = message.interface or ""
        self.member: str = message.member
        self.signature: str = message.signature or ""
        self.body = _body(message)

    async def room(self) -> None:
        """Before a long answer is made: wait until those before it are on their way. (Of dbus-fast's writer nobody knows.)"""
        await self._bus.room(self.sender)

    def reply(self, signature: str = "", body: Sequence[Any] = ()) -> None:
        """Answer with values of `signature`; values that do not fit it are an internal error, logged."""
        try:
            answer = self._message_back(encoding.METHOD_RETURN, {}, signature, body)
            if (len(answer) if isinstance(answer, bytearray) else _about(answer.body)) > MAX_REPLY:
                self.error(DBUS + ".Error.LimitsExceeded", "the answer is too long; ask for less")
                return
            self._send(answer)
        except Exception:
            log.exception("the reply to %s.%s does not fit its signature", self.interface, self.member)
            self._answered = False
            self.error(DBUS + ".Error.Failed", INTERNAL_ERROR)

    def error(self, name: str, message: str) -> None:
        """Answer with a named error."""
        text = message if len(message) <= MAX_ERROR else message[: MAX_ERROR - 1] + "…"
        self._send(self._message_back(encoding.ERROR, {encoding.ERROR_NAME: name}, "s", [text]))

    def _message_back(self, kind: int, fields: dict[int, Any], signature: str, body: Sequence[Any]) -> Any:
        fields[encoding.REPLY_SERIAL] = self._message.serial
        if self.sender:
            fields[encoding.DESTINATION] = self.sender
        return _message(kind, self._bus.next_serial(), fields, signature, body)

    def _send(self, answer: Any) -> None:
        if self._answered:
            return
        self._answered = True
        if not self._message.flags & encoding.NO_REPLY_EXPECTED:
            self._bus.send(answer)


class _PatientSocket:
    """A full socket buffer is "0 bytes sent": dbus-fast's writer then waits for writability.

    It takes the BlockingIOError for the end of the connection and lives on as a zombie that owns its name.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def send(self, data: Any) -> int:
        try:
            return int(self._sock.send(data))
        except BlockingIOError:
            return 0


@dataclass(frozen=True, slots=True)
class _Subscription:
    rule: dict[str, str]
    handler: Callable[[Signal], None]

    def fits(self, signal: Signal) -> bool:
        rule = self.rule
        namespace = rule.get("path_namespace")
        return (
            # Anybody can send us a signal in the bus's name; who owns another name, Peer knows.
            (rule.get("sender") != DBUS or signal.sender == DBUS)
            and rule.get("interface", signal.interface) == signal.interface
            and rule.get("member", signal.member) == signal.member
            and rule.get("path", signal.path) == signal.path
            and (namespace is None or signal.path == namespace or signal.path.startswith(namespace + "/"))
            and ("arg0" not in rule or (bool(signal.body) and signal.body[0] == rule["arg0"]))
        )


class Bus:
    """One connection to a message bus."""

    def __init__(self, library_bus: Any) -> None:
        self._bus = library_bus
        self._transport: Any = None
        """dbus-next's; dbus-fast has its own."""
        self._pending: dict[int, asyncio.Future[list[Any]]] = {}
        self._subscriptions: list[_Subscription] = []
        self._server: Callable[[Call], bool] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended, by whichever side."""

    @classmethod
    async def connect(cls, address: str) -> Bus:
        """Connect and say hello within CONNECT_TIMEOUT, or raise BusGone."""
        loop = asyncio.get_running_loop()
        # In two steps, so that the socket of a dbus-next that fails to connect can be closed.
        library_bus = _lib.aio.MessageBus.__new__(_lib.aio.MessageBus)
        try:
            library_bus.__init__(bus_address=address)
            self = cls(library_bus)
            if LIBRARY == "dbus_next":
                from cortexd.transport import Transport

                self._transport = Transport(library_bus, loop)
            library_bus.add_message_handler(self._on_message)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await library_bus.connect()
        except BaseException as e:
            _close_descriptors(library_bus)
            if isinstance(e, OSError | TimeoutError | _lib.AuthError | _lib.InvalidAddressError | EOFError):
                raise BusGone(f"no connection to the bus at {address}: {str(e) or type(e).__name__}") from e
            raise
        if LIBRARY == "dbus_fast":
            library_bus._writer.sock = _PatientSocket(library_bus._writer.sock)
        self._spawn(self._watch())
        return self

    @property
    def unique_name(self) -> str:
        """This connection's own name on the bus (":1.42")."""
        return str(self._bus.unique_name)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[Any]:
        """Call a method and return the reply's values. Raises BusError, BusTimeout (after `timeout` seconds), BusGone."""
        if self.closed.done():
            raise BusGone("the connection to the bus has ended")
        serial = self.next_serial()
        fields = {
            encoding.PATH: path, encoding.DESTINATION: destination, encoding.INTERFACE: interface, encoding.MEMBER: member
        }  # fmt: skip
        message = _message(encoding.METHOD_CALL, serial, fields, signature, body)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        problem = f"{destination} did not answer {member} within {timeout:g} s"
        overdue = loop.call_later(timeout, _expire, future, problem)
        self._pending[serial] = future
        try:
            self.send(message)
            return await future
        finally:
            overdue.cancel()
            self._pending.pop(serial, None)

    async def subscribe(self, rule: str, handler: Callable[[Signal], None]) -> None:
        """Ask the bus for signals that match `rule` and hand each to `handler`, in the order of arrival."""
        parts = dict(part.split("=", 1) for part in rule.split(",") if part)
        subscription = _Subscription({k.strip(): v.strip().strip("'") for k, v in parts.items()}, handler)
        self._subscriptions.append(subscription)  # first: signals may come before the reply is seen
        try:
            await self.call(DBUS, DBUS_PATH, DBUS, "AddMatch", "s", [rule])
        except BaseException:
            self._subscriptions.remove(subscription)
            raise

    async def on_leave(self, handler: Callable[[str], None]) -> None:
        """Call `handler` with the unique name of every connection that ends."""

        def ended(signal: Signal) -> None:
            name, _, new = signal.body
            if not new and name.startswith(":"):
                handler(name)

        await self.subscribe(
            f"type='signal',sender='{DBUS}',interface='{DBUS}',path='{DBUS_PATH}',member='NameOwnerChanged',arg2=''",
            ended,
        )

    async def request_name(self, name: str) -> bool:
        """Own `name`; False if somebody else does. (Without DO_NOT_QUEUE the request would wait in silence.)"""
        do_not_queue, primary_owner, already_owner = 0x4, 1, 4
        (reply,) = await self.call(DBUS, DBUS_PATH, DBUS, "RequestName", "su", [name, do_not_queue])
        return reply in (primary_owner, already_owner)

    def serve(self, handler: Callable[[Call], bool]) -> None:
        """Hand every method call that arrives to `handler`; where it returns False the library answers (Peer)."""
        self._server = handler

    def emit(self, path: str, interface: str, member: str, signature: str, body: Sequence[Any]) -> None:
        """Send a signal; after the end of the connection nothing happens."""
        fields = {encoding.PATH: path, encoding.INTERFACE: interface, encoding.MEMBER: member}
        self.send(_message(encoding.SIGNAL, self.next_serial(), fields, signature, body))

    def next_serial(self) -> int:
        """The number of our next message."""
        return int(self._bus.next_serial())

    def send(self, message: Any) -> None:
        """Queue what `_message` made; after the end of the connection, whose descriptor may be another file's by now,
        nothing happens."""
        if self.closed.done():
            return
        if self._transport is not None:
            self._transport.send(message)
            return
        sent = self._bus.send(message)
        if sent is not None:
            # Nobody awaits it: the connection's end is told once, by `closed`.
            sent.add_done_callback(lambda f: f.cancelled() or f.exception())

    async def room(self, client: str) -> None:
        """Wait until another answer for this client may be made."""
        if self._transport is not None:
            await self._transport.room(client)

    def close(self) -> None:
        """End the connection."""
        if not self.closed.done():
            self._bus.disconnect()
            self._end()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        try:
            await self._bus.wait_for_disconnect()
        except Exception as e:
            log.debug("the bus connection ended: %r", e)
        finally:
            self._end()
            _close_descriptors(self._bus)

    def _end(self) -> None:
        if self.closed.done():
            return
        self.closed.set_result(None)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BusGone("the connection to the bus has ended"))

    def _on_message(self, message: Any) -> bool:
        """Called by the library for every message; must not raise."""
        kind = message.message_type
        if getattr(message, "too_long", False):  # dbus-fast has read it already
            if kind == _lib.MessageType.METHOD_CALL:
                Call(self, message).error(
                    DBUS + ".Error.LimitsExceeded", "the message is too long; send less at a time"
                )
                return True
            if kind == _lib.MessageType.SIGNAL:
                return False
        if kind in (_lib.MessageType.METHOD_RETURN, _lib.MessageType.ERROR):
            future = self._pending.get(message.reply_serial)
            if future is not None and not future.done():
                if kind == _lib.MessageType.ERROR:
                    text = str(message.body[0]) if message.body else ""
                    future.set_exception(BusError(message.error_name, text))
                else:
                    future.set_result(_body(message))
            return False
        if kind == _lib.MessageType.SIGNAL:
            signal = Signal(message.sender or "", message.path, message.interface, message.member, _body(message))
            for subscription in self._subscriptions:
                if subscription.fits(signal):
                    try:
                        subscription.handler(signal)
                    except Exception:
                        log.exception("the handler of %s.%s failed", signal.interface, signal.member)
            return False
        if self._server is None:
            return False
        call = Call(self, message)
        try:
            return self._server(call)
        except Exception:  # the library would send the caller the traceback
            log.exception("%s.%s failed", call.interface, call.member)
            call.error(DBUS + ".Error.Failed", INTERNAL_ERROR)
            return True


def _expire(call: asyncio.Future[list[Any]], problem: str) -> None:
    if not call.done():
        call.set_exception(BusTimeout(problem))


def _close_descriptors(library_bus: Any) -> None:
    """Let go of the socket: dbus-next never does."""
    sock, stream = getattr(library_bus, "_sock", None), getattr(library_bus, "_stream", None)
    if sock is not None and sock.fileno() >= 0:
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock.fileno())
        loop.remove_writer(sock.fileno())
    for part in (stream, sock):
        if part is not None:
            with contextlib.suppress(OSError):
                part.close()


def session_address(environ: Mapping[str, str]) -> str:
    """The user's bus: DBUS_SESSION_BUS_ADDRESS, else the socket in XDG_RUNTIME_DIR (neither library looks there)."""
    address = environ.get("DBUS_SESSION_BUS_ADDRESS")
    if address:
        return address
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return f"unix:path={runtime}/bus"
