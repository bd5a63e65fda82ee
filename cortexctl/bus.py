"""The connection to the user's bus.

Calls are sent all at once and their replies taken as they come; between them there is room for signals and for a
look at why the daemon does not answer. Failures are CtlErrors.

Without a library: to import one takes longer than all that a frequent verb does (docs/performance.md).
"""

from __future__ import annotations

import _socket  # what socket(3) needs; the module around it takes a millisecond to import
import os
from collections import deque
from collections.abc import Iterator, Mapping
from time import monotonic

from cortexctl.errors import CtlError, DaemonError
from cortexd import decoding, encoding
from cortexd.names import BUS_NAME

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import ModuleType
    from typing import Any, TypeVar

    K = TypeVar("K", bound=Hashable)
    Reply = tuple[Any, ...] | CtlError

CALL_TIMEOUT = 30.0
"""Seconds for an ordinary call; jobs are waited for without end."""
_LET_IN = 5.0
_TICK = 0.1
_PATIENCE = 2.0
"""Seconds without a first answer after which we look whether the daemon's unit has failed."""

_UNASKED = ("NameAcquired", "NameLost")
"""Signals that the bus sends to every client about its own name."""

PROPERTIES = "org.freedesktop.DBus.Properties"
DBUS = "org.freedesktop.DBus"


class Call:
    """A method call. In `body` a variant is a pair of signature and value."""

    __slots__ = ("body", "destination", "interface", "member", "path", "signature")

    def __init__(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        destination: str = BUS_NAME,
    ) -> None:
        self.path, self.interface, self.member = path, interface, member
        self.signature, self.body, self.destination = signature, body, destination


class Signal:
    """A signal that came in."""

    __slots__ = ("body", "member", "path")

    def __init__(self, path: str, member: str, body: tuple[Any, ...]) -> None:
        self.path, self.member, self.body = path, member, body


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
        try:
            self._hello = self._send(bus_call("Hello"))  # its answer tells nothing that is needed
        except CtlError:
            self.close()
            raise
        self._replies: dict[int, tuple[Any, ...] | DBusError] = {}
        self._answered = not autostart
        self.signals: deque[Signal] = deque()

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
        self._serial += 1
        fields = {encoding.PATH: call.path, encoding.DESTINATION: call.destination, encoding.INTERFACE: call.interface}
        fields[encoding.MEMBER] = call.member
        try:
            content = encoding.encode(call.signature, call.body)
            flags = 0 if self._autostart else encoding.NO_AUTO_START
            data = encoding.message(encoding.METHOD_CALL, flags, self._serial, fields, call.signature, content)
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
        while len(self._buffer) >= 16 and len(self._buffer) >= (size := decoding.size(self._buffer)):
            self._file(bytes(self._buffer[:size]))
            del self._buffer[:size]

    def _file(self, data: bytes) -> None:
        kind, _, _, fields, values = decoding.received(data)
        if kind == encoding.SIGNAL and fields[encoding.MEMBER] not in _UNASKED:
            self.signals.append(Signal(fields[encoding.PATH], fields[encoding.MEMBER], values))
        elif kind in (encoding.METHOD_RETURN, encoding.ERROR):
            serial = fields[encoding.REPLY_SERIAL]
            if serial == self._hello:
                return
            if kind == encoding.METHOD_RETURN:
                self._answered = self._answered or fields.get(encoding.SENDER) != DBUS
                self._replies[serial] = values
            else:
                text = values[0] if values and isinstance(values[0], str) else ""
                self._replies[serial] = DBusError(fields[encoding.ERROR_NAME], text)


def _diagnose() -> ModuleType:
    from cortexctl import diagnose

    return diagnose


def _connect(where: str) -> _socket.socket:
    """A socket on which the bus has let us in (D-Bus specification, authentication protocol)."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_LET_IN)
        sock.connect(_name(where))
        sock.sendall(b"\0AUTH EXTERNAL %b\r\n" % str(os.geteuid()).encode().hex().encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            if not (more := sock.recv(512)):
                raise ValueError("it closed the connection")
            answer += more
        if not answer.startswith(b"OK "):
            raise ValueError(f"it does not let this user in: {answer[:80].decode('ascii', 'replace').strip()}")
        sock.sendall(b"BEGIN\r\n")
        return sock
    except (OSError, ValueError) as e:
        sock.close()
        reason = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else str(e) or type(e).__name__
        if isinstance(e, TimeoutError | BlockingIOError):  # somebody holds the socket: systemd, or a bus that hangs
            raise DaemonError(
                "BusUnavailable",
                f"your message bus at {where} does not answer ({reason}); if it has died, systemd may take 90 s to start it "
                "again: try again then; see 'systemctl --user status dbus.service dbus.socket'",
            ) from None
    raise DaemonError(
        "BusUnavailable",
        f"cannot reach your message bus at {where} ({reason}); log in as this user (not through su or sudo), "
        "or let its manager run without a login: sudo loginctl enable-linger $USER",
    )


def _name(where: str) -> str:
    """The socket of the first address that has one (D-Bus specification, server addresses). Raises ValueError."""
    from_hex = bytes.fromhex
    for part in where.split(";"):
        transport, _, keys = part.partition(":")
        given = dict(item.partition("=")[::2] for item in keys.split(","))
        for key, before in (("path", ""), ("abstract", "\0")):
            if transport == "unix" and given.get(key):
                first, *escaped = given[key].split("%")
                name = os.fsencode(first) + b"".join(from_hex(e[:2]) + os.fsencode(e[2:]) for e in escaped)
                return before + os.fsdecode(name)
    raise ValueError("it is no address of a Unix socket")


def _lost(error: OSError | None) -> CtlError:
    reason = f" ({error.strerror})" if error and error.strerror else ""
    return DaemonError("BusUnavailable", f"the message bus closed the connection{reason}; models go on running")
