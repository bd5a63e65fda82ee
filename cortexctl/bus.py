"""The connection to the user's bus, and the only module that knows jeepney.

Calls are sent all at once and their replies taken as they come; between them there is room for signals and for a
look at why the daemon does not answer. Failures are CtlErrors.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from time import monotonic
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from jeepney import HeaderFields, MessageType
from jeepney.bus import get_connectable_addresses
from jeepney.io.blocking import prep_socket
from jeepney.low_level import Header, MessageFlag, calc_msg_size
from jeepney.wrappers import DBusAddress, new_method_call

from cortexctl.errors import CtlError, DaemonError
from cortexctl.wire import decode
from cortexd.names import BUS_NAME

CALL_TIMEOUT = 30.0
"""Seconds for an ordinary call; jobs are waited for without end."""
_TICK = 0.1
_PATIENCE = 2.0
"""Seconds without a first answer after which we look whether the daemon's unit has failed."""

_UNASKED = ("NameAcquired", "NameLost")
"""Signals that the bus sends to every client about its own name."""

PROPERTIES = "org.freedesktop.DBus.Properties"
DBUS = "org.freedesktop.DBus"

K = TypeVar("K", bound=Hashable)
Reply = tuple[Any, ...] | CtlError


class Call(NamedTuple):
    """A method call. In `body` a variant is a pair of signature and value."""

    path: str
    interface: str
    member: str
    signature: str = ""
    body: tuple[Any, ...] = ()
    destination: str = BUS_NAME


class Signal(NamedTuple):
    """A signal that came in."""

    path: str
    member: str
    body: tuple[Any, ...]


class DBusError(Exception):
    """An error reply as it came: D-Bus error name and text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name
        self.text = text


def bus_call(member: str, signature: str = "", *body: Any) -> Call:
    """A call to the message bus itself."""
    return Call("/org/freedesktop/DBus", DBUS, member, signature, body, DBUS)


def address(environ: Mapping[str, str]) -> str:
    """The user's bus: as the environment says, else the socket in the runtime folder."""
    given = environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return given or f"unix:path={runtime}/bus"


class Bus:
    """One connection. `autostart=False`: calls do not start the daemon. `where`: another bus than the user's."""

    def __init__(self, *, autostart: bool = True, where: str = "") -> None:
        self._socket = _connect(where or address(os.environ))
        self._autostart = autostart
        self._buffer = bytearray()
        self._serial = 0
        self._replies: dict[int, tuple[Any, ...] | DBusError] = {}
        self._answered = not autostart
        self.signals: deque[Signal] = deque()
        self.call(bus_call("Hello"))

    def close(self) -> None:
        """Leave the bus; a program that ends does so anyway."""
        self._socket.close()

    def call(self, call: Call, timeout: float = CALL_TIMEOUT) -> tuple[Any, ...]:
        """The values of the reply. Raises CtlError."""
        for _, reply in self.gather({0: call}, timeout):
            if isinstance(reply, CtlError):
                raise reply
            return reply
        raise AssertionError("gather yields once for each call")

    def gather(
        self, calls: Mapping[K, Call], timeout: float | None = CALL_TIMEOUT, tick: Callable[[], None] | None = None
    ) -> Iterator[tuple[K, Reply]]:
        """Send all calls, yield each reply or error as it comes; `tick` is called ten times a second and on signals."""
        pending = {self._send(call): (key, call) for key, call in calls.items()}
        start = monotonic()
        look = start + _PATIENCE
        while pending:
            for serial in [serial for serial in self._replies if serial in pending]:
                key, call = pending.pop(serial)
                reply = self._replies.pop(serial)
                yield key, _diagnose().explain(self, call, reply) if isinstance(reply, DBusError) else reply
            now = monotonic()
            if timeout is not None and now > start + timeout:
                for key, call in pending.values():
                    yield key, _diagnose().timed_out(self, call, timeout)
                return
            if not self._answered and now > look:
                look = now + _PATIENCE
                if (reason := _diagnose().not_starting(self)) is not None:
                    raise reason
            if pending:
                self._pump(_TICK if tick else 1.0)
            if tick:
                tick()

    def try_call(self, call: Call, timeout: float = CALL_TIMEOUT) -> tuple[Any, ...] | None:
        """The reply as it is, or None for any error: for looks that must not raise errors of their own."""
        serial = self._send(call)
        deadline = monotonic() + timeout
        while serial not in self._replies and monotonic() < deadline:
            self._pump(deadline - monotonic())
        reply = self._replies.pop(serial, None)
        return None if isinstance(reply, DBusError) else reply

    def watch(self, rule: str) -> None:
        """Have the signals that match `rule` put into `signals`."""
        self.call(bus_call("AddMatch", "s", f"type='signal',{rule}"))

    def next_signal(self, timeout: float | None) -> Signal | None:
        """The next signal, or None when `timeout` seconds (None: for ever) have passed."""
        deadline = None if timeout is None else monotonic() + timeout
        while not self.signals and (deadline is None or monotonic() < deadline):
            self._pump(CALL_TIMEOUT if deadline is None else deadline - monotonic())
        return self.signals.popleft() if self.signals else None

    def _send(self, call: Call) -> int:
        destination = DBusAddress(call.path, bus_name=call.destination, interface=call.interface)
        message = new_method_call(destination, call.member, call.signature or None, call.body)
        if not self._autostart:
            message.header.flags = MessageFlag.no_auto_start
        self._serial += 1
        try:
            data = message.serialise(serial=self._serial)
        except UnicodeEncodeError:
            raise CtlError("InvalidConfig", "an argument is not valid UTF-8") from None
        try:
            self._socket.settimeout(CALL_TIMEOUT)
            self._socket.sendall(data)
        except OSError as e:
            raise _lost(e) from None
        return self._serial

    def _pump(self, timeout: float) -> None:
        """Read once, for at most `timeout` seconds, and file what is complete."""
        try:
            self._socket.settimeout(max(timeout, 0.001))
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            return
        except OSError as e:
            raise _lost(e) from None
        if not data:
            raise _lost(None)
        self._buffer += data
        while len(self._buffer) >= 16 and len(self._buffer) >= (size := calc_msg_size(self._buffer[:16])):
            self._file(bytes(self._buffer[:size]))
            del self._buffer[:size]

    def _file(self, data: bytes) -> None:
        header, position = Header.from_buffer(data)
        fields = header.fields
        body = data[position + -position % 8 :]
        values = decode(fields.get(HeaderFields.signature, ""), body, header.endianness.struct_code())
        kind = header.message_type
        if kind is MessageType.signal and fields[HeaderFields.member] not in _UNASKED:
            self.signals.append(Signal(fields[HeaderFields.path], fields[HeaderFields.member], values))
        elif kind is MessageType.method_return:
            self._answered = self._answered or fields.get(HeaderFields.sender) != DBUS
            self._replies[fields[HeaderFields.reply_serial]] = values
        elif kind is MessageType.error:
            text = values[0] if values and isinstance(values[0], str) else ""
            self._replies[fields[HeaderFields.reply_serial]] = DBusError(fields[HeaderFields.error_name], text)


def _diagnose() -> ModuleType:
    from cortexctl import diagnose

    return diagnose


def _connect(where: str) -> Any:
    try:
        return prep_socket(next(get_connectable_addresses(where)), timeout=5.0)
    except (OSError, ValueError, RuntimeError, KeyError, StopIteration) as e:
        reason = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else str(e) or type(e).__name__
    raise DaemonError(
        "BusUnavailable",
        f"cannot reach your message bus at {where} ({reason}); log in as this user (not through su or sudo), "
        "or let its manager run without a login: sudo loginctl enable-linger $USER",
    )


def _lost(error: OSError | None) -> CtlError:
    reason = f" ({error.strerror})" if error and error.strerror else ""
    return DaemonError("BusUnavailable", f"the message bus closed the connection{reason}; models go on running")
