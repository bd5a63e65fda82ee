"""D-Bus messages as plain Python values: variants unwrapped, structs as tuples, dictionaries as dict; on the way out a
variant is a pair of signature and value. (D-Bus specification, type system and message protocol.)
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from cortexd.encoding import FIXED, SIGNATURE, alignment, encode, message, split, types

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Reader = Callable[[bytes, int], tuple[Any, int]]
    """(buffer, position) → (value, position after it). Positions count from a place that is aligned to 8."""

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
"""Types of messages."""

NO_AUTO_START = 2


def method_call(
    serial: int, fields: Mapping[int, str], signature: str, body: Sequence[Any], *, autostart: bool
) -> bytes:
    """A whole message. Raises UnicodeEncodeError for a string that is none."""
    content = encode(signature, body)
    return bytes(message(METHOD_CALL, 0 if autostart else NO_AUTO_START, serial, fields, signature, content))


def size(buffer: bytearray) -> int:
    """Bytes of the message that begins there, of which the first 16 are needed."""
    order = "little" if buffer[0] == 0x6C else "big"
    fields = int.from_bytes(buffer[12:16], order)  # type: ignore[arg-type]
    return 16 + fields + -fields % 8 + int.from_bytes(buffer[4:8], order)  # type: ignore[arg-type]


def received(data: bytes) -> tuple[int, dict[int, Any], tuple[Any, ...]]:
    """A whole message's type, header fields and values."""
    order = "<" if data[0] == 0x6C else ">"
    found, position = reader("a(yv)", order)(data, 12)
    fields = dict(found)
    return data[1], fields, decode(fields.get(SIGNATURE, ""), data[position + -position % 8 :], order)


def decode(signature: str, body: bytes, order: str = "<") -> tuple[Any, ...]:
    """The values of a message body. `order` is struct's sign for the byte order."""
    values, position = [], 0
    for kind in types(signature):
        value, position = reader(kind, order)(body, position)
        values.append(value)
    return tuple(values)


@lru_cache(maxsize=256)
def reader(kind: str, order: str) -> Reader:
    """The reader of one complete type."""
    code = kind[0]
    if code == "v":
        return _variant(order)
    if code == "a":
        return _dictionary(kind, order) if kind[1] == "{" else _array(kind, order)
    if code == "(":
        return _struct(kind, order)
    if code == "g":
        return _signature
    return _string(order) if code in "so" else _fixed(code, order)


def _fixed(code: str, order: str) -> Reader:
    packed = Struct(order + ("I" if code == "b" else FIXED[code]))
    size, unpack = packed.size, packed.unpack_from

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        position += -position % size
        return unpack(buffer, position)[0], position + size

    def read_boolean(buffer: bytes, position: int) -> tuple[Any, int]:
        value, position = read(buffer, position)
        return bool(value), position

    return read_boolean if code == "b" else read


def _string(order: str) -> Reader:
    unpack = Struct(order + "I").unpack_from

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        position += -position % 4
        end = position + 4 + unpack(buffer, position)[0]
        return buffer[position + 4 : end].decode(), end + 1

    return read


def _signature(buffer: bytes, position: int) -> tuple[Any, int]:
    end = position + 1 + buffer[position]
    return buffer[position + 1 : end].decode(), end + 1


def _variant(order: str) -> Reader:
    known: dict[bytes, Reader] = {}

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        end = position + 1 + buffer[position]
        kind = buffer[position + 1 : end]
        inner = known.get(kind)
        if inner is None:
            inner = known[kind] = reader(kind.decode(), order)
        return inner(buffer, end + 1)

    return read


def _array(kind: str, order: str) -> Reader:
    element, mask = reader(kind[1:], order), alignment(kind[1:]) - 1
    length = _fixed("u", order)

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        size, position = length(buffer, position)
        position += -position & mask
        end = position + size
        values = []
        while position < end:
            value, position = element(buffer, position)
            values.append(value)
        return values, position

    return read


def _dictionary(kind: str, order: str) -> Reader:
    key_kind, value_kind = split(kind[2:-1])
    read_key, read_value, length = reader(key_kind, order), reader(value_kind, order), _fixed("u", order)

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        size, position = length(buffer, position)
        position += -position % 8
        end = position + size
        values = {}
        while position < end:
            key, position = read_key(buffer, position + -position % 8)
            values[key], position = read_value(buffer, position)
        return values, position

    return read


def _struct(kind: str, order: str) -> Reader:
    readers = [reader(field, order) for field in types(kind[1:-1])]

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        position += -position % 8
        values = []
        for field in readers:
            value, position = field(buffer, position)
            values.append(value)
        return tuple(values), position

    return read
