"""Clients that cost less than what they ask: prepared messages on bare sockets, one call under way on each."""

from __future__ import annotations

import os
import selectors
import socket
import time
from typing import Any

from jeepney.bus_messages import message_bus
from jeepney.io.blocking import prep_socket
from jeepney.wrappers import DBusAddress, new_method_call

_ERROR = 3
_SIGNAL = 4


class Client:
    """One connection, and one message that it sends again and again."""

    def __init__(self, address: str) -> None:
        self._socket: socket.socket = prep_socket(address)
        self._buffer = bytearray()
        self._message = b""
        self.fileno = self._socket.fileno
        self.answer(message_bus.Hello().serialise(serial=1))

    def close(self) -> None:
        """Leave the bus."""
        self._socket.close()

    def subscribe(self, rule: str) -> None:
        """Want signals that match."""
        self.answer(message_bus.AddMatch(rule).serialise(serial=1))

    def prepare(self, name: str, path: str, interface: str, member: str, signature: str = "", *body: Any) -> None:
        """The message to send from now on."""
        target = DBusAddress(path, bus_name=name, interface=interface)
        self._message = new_method_call(target, member, signature or None, body).serialise(serial=2)

    def send(self, times: int = 1) -> None:
        """Send it. Serials may be the same: nobody looks at them here."""
        for serial in range(2, 2 + times):
            self._socket.sendall(self._message[:8] + serial.to_bytes(4, "little") + self._message[12:])

    def answer(self, message: bytes = b"") -> int:
        """Wait for a reply; returns its size. Raises RuntimeError where it is an error."""
        if message:
            self._socket.sendall(message)
        while True:
            kind, size = self.receive()
            if kind == _ERROR:
                raise RuntimeError("the service answered with an error")
            if kind != _SIGNAL:
                return size

    def signals(self, count: int) -> None:
        """Wait for so many signals."""
        while count:
            count -= self.receive()[0] == _SIGNAL

    def receive(self) -> tuple[int, int]:
        """The next message's type and size."""
        while True:
            if len(self._buffer) >= 16:
                size = _size(self._buffer)
                if len(self._buffer) >= size:
                    kind = self._buffer[1]
                    del self._buffer[:size]
                    return kind, size
            data = self._socket.recv(1 << 20)
            if not data:
                raise RuntimeError("the bus closed the connection")
            self._buffer += data


def _size(buffer: bytearray) -> int:
    """Of the message that begins there (D-Bus specification, message format)."""
    body, fields = int.from_bytes(buffer[4:8], "little"), int.from_bytes(buffer[12:16], "little")
    return 16 + fields + -fields % 8 + body


def address() -> str:
    """The socket of the user's bus."""
    return os.environ["DBUS_SESSION_BUS_ADDRESS"].partition("path=")[2].partition(",")[0]


def calls_per_second(clients: list[Client], seconds: float) -> float:
    """Every client sends its message, and again when it is answered."""
    ready = selectors.DefaultSelector()
    for client in clients:
        ready.register(client, selectors.EVENT_READ)
        client.send()
    begin, count = time.perf_counter(), 0
    under_way = len(clients)
    while under_way:
        for key, _ in ready.select():
            found = key.fileobj
            assert isinstance(found, Client)
            found.answer()
            count += 1
            if time.perf_counter() - begin < seconds:
                found.send()
            else:
                under_way -= 1
    ready.close()
    return count / (time.perf_counter() - begin)
