"""What stands in the place of dbus-next's own reading and writing of messages: that takes five times as long, a task's turn and two
system calls for each, and loses the connection over a socket that is full for a moment.

The library goes on to connect, to say hello, and to answer what nobody else does (Peer).
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from dbus_next.constants import MessageType
from dbus_next.message import Message

from cortexd import decoding, encoding

MAX_UNSENT = 1 << 20
"""Bytes that wait to be sent before no further answer is made: what is asked for faster than it is read would fill the memory."""

MAX_MESSAGE = 4 << 20
"""Bytes of a message whose body is looked at, unless it is a reply, which we asked for. 4096 models with twenty settings each are
3.3 MB. Read, a message takes some twenty times its bytes, and this many of them half a second."""

_CHUNK = 1 << 16
_TYPES = {kind.value: kind for kind in MessageType}


class Received(Message):  # type: ignore[misc]
    """A message that came in, as the library knows them. The bus daemon has checked it: here nobody does again."""

    def __init__(self, data: bytes) -> None:
        self.too_long = data[1] != encoding.METHOD_RETURN and len(data) > MAX_MESSAGE
        """Its body was not looked at."""
        kind, self.flags, self.serial, fields, values = decoding.received(data, body=not self.too_long)
        self.body = [*values]
        self.message_type = _TYPES[kind]
        get = fields.get
        self.path, self.interface, self.member = get(encoding.PATH), get(encoding.INTERFACE), get(encoding.MEMBER)
        self.error_name, self.reply_serial = get(encoding.ERROR_NAME), get(encoding.REPLY_SERIAL)
        self.destination, self.sender = get(encoding.DESTINATION), get(encoding.SENDER)
        self.signature = get(encoding.SIGNATURE, "")


class Transport:
    """Of one of the library's connections, from before it connects on."""

    def __init__(self, library_bus: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._bus, self._loop = library_bus, loop
        self._socket, self._descriptor = library_bus._sock, library_bus._fd
        self._in, self._out = bytearray(), bytearray()
        self._flushing = self._full = False
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        library_bus._message_reader, library_bus._writer = self._read, self
        library_bus._auth_readline = self._read_line

    async def _read_line(self) -> str:
        """Of the authentication. At the end of the connection the library's own reads b'' again and again without yielding."""
        line = b""
        while not line.endswith(b"\r\n"):
            chunk = await self._loop.sock_recv(self._socket, 1)
            if not chunk:
                raise EOFError("the bus closed the connection during authentication")
            line += chunk
        return line[:-2].decode()

    async def room(self, client: str) -> None:
        """Wait until no more than MAX_UNSENT is to be sent: what is sent in the same turn of the loop is one answer more. Of each
        client one waits at a time, so that it is the turn of every client once, however many answers one of them wants."""
        turn = self._turns.setdefault(client, asyncio.Lock())
        async with turn:
            while len(self._out) > MAX_UNSENT:
                await self._has_room.wait()

    def send(self, data: bytes | bytearray) -> None:
        """Send a whole message; what is sent in one turn of the loop goes out together."""
        self._out += data
        if len(self._out) > MAX_UNSENT:
            self._has_room.clear()
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def schedule_write(self, message: Any = None, future: Any = None) -> None:
        """The library's own messages. It waits for none of them."""
        if message is not None:
            self.send(message._marshall())

    def _flush(self) -> None:
        if self._bus._disconnected:
            return
        try:
            del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass  # nothing was taken
        except OSError as e:
            self._bus._finalize(e)
            return
        if len(self._out) <= MAX_UNSENT:
            self._has_room.set()
        if bool(self._out) != self._full:
            self._full = not self._full
            if self._full:
                self._loop.add_writer(self._descriptor, self._flush)
            else:
                self._loop.remove_writer(self._descriptor)
        self._flushing = self._full

    def _read(self) -> None:
        """Take what has come. An error of ours here would be one of every message: the connection is ended by it."""
        try:
            data = self._socket.recv(_CHUNK)
            if not data:
                raise EOFError("the bus closed the connection")
            self._in += data
            while len(self._in) >= 16 and len(self._in) >= (size := decoding.size(self._in)):
                with memoryview(self._in) as view:
                    message = bytes(view[:size])
                del self._in[:size]
                self._bus._on_message(Received(message))
        except BlockingIOError:
            pass
        except Exception as e:
            self._bus._finalize(e)
