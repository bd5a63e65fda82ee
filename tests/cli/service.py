"""A name on a bus, served by a thread of the test: what the fakes have in common, and the fake manager."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Self

from jeepney import (
    HeaderFields,
    Message,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
)
from jeepney.io.blocking import DBusConnection, prep_socket

from cortexd.errors import ERROR_PREFIX

DEADLINE = 10.0


class Asked(NamedTuple):
    """A call that came in: object path, method, arguments (variants as pairs of signature and value)."""

    path: str
    member: str
    body: tuple[Any, ...]


class Refusal(Exception):
    """An answer that is an error: its D-Bus name (without ours: the prefix is added) and text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name if "." in name else ERROR_PREFIX + name
        self.text = text


class Service(ABC):
    """A name on a bus, served on a thread of its own. A context manager: inside it, the name is owned."""

    name = ""

    def __init__(self, address: str) -> None:
        self.asked: list[Asked] = []
        self.held: set[str] = set()
        """Members that get no answer."""
        self._handled: list[str] = []
        self._owner = threading.Event()
        self._news = threading.Condition()
        self._sending = threading.Lock()
        self._connection = DBusConnection(prep_socket(address.partition("unix:path=")[2].partition(",")[0]))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._send(message_bus.RequestName(self.name))
        assert self._owner.wait(DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()
        self._thread.join(DEADLINE)
        self._connection.close()
        assert not self._thread.is_alive()

    def vanish(self) -> None:
        """Leave the bus, as a daemon does that was killed."""
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    @abstractmethod
    def reply(self, asked: Asked, interface: str, signature: str) -> tuple[str, tuple[Any, ...]]:
        """Signature and values of the answer to a call. Raises Refusal."""

    def calls(self, member: str) -> list[Asked]:
        """The calls of a method so far."""
        return [asked for asked in list(self.asked) if asked.member == member]

    def wait_for(self, member: str, count: int = 1) -> list[Asked]:
        """Block until a method was called that often and, unless it is held, answered."""
        with self._news:
            arrived = self._news.wait_for(lambda: self._handled.count(member) >= count, DEADLINE)
        assert arrived, f"{member} was not called; only {[asked.member for asked in self.asked]}"
        return self.calls(member)

    def _send(self, message: Message) -> None:
        with self._sending:
            self._connection.send(message)

    def _serve(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the connection was closed
            while True:
                message = self._connection.receive()
                if message.header.message_type is MessageType.method_call:
                    self._answer(message)
                elif message.header.message_type is MessageType.method_return:
                    self._owner.set()

    def _answer(self, message: Message) -> None:
        fields = message.header.fields
        asked = Asked(fields[HeaderFields.path], fields[HeaderFields.member], message.body)
        self.asked.append(asked)
        if asked.member not in self.held:
            try:
                interface, taken = fields[HeaderFields.interface], fields.get(HeaderFields.signature, "")
                signature, values = self.reply(asked, interface, taken)
            except Refusal as e:
                self._send(new_error(message, e.name, "s", (e.text,)))
            else:
                self._send(new_method_return(message, signature or None, values))
        with self._news:
            self._handled.append(asked.member)
            self._news.notify_all()


class FakeSystemd(Service):
    """The user's manager as far as the client looks at it: one unit with the properties that are set."""

    name = "org.freedesktop.systemd1"

    def __init__(self, address: str, **unit: str | int) -> None:
        super().__init__(address)
        self.unit: dict[str, str | int] = {
            "LoadState": "loaded",
            "ActiveState": "inactive",
            "SubState": "dead",
            "Result": "success",
            "ExecMainStatus": 0,
            "StatusText": "",
            **unit,
        }

    def reply(self, asked: Asked, interface: str, signature: str) -> tuple[str, tuple[Any, ...]]:
        """The path of the unit, or one of its properties."""
        if asked.member == "LoadUnit":
            return "o", ("/org/freedesktop/systemd1/unit/cortexd_2eservice",)
        value = self.unit[asked.body[1]]
        return "v", (("i" if isinstance(value, int) else "s", value),)
