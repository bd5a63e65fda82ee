"""Bytes as D-Bus values (D-Bus specification, type system and message protocol): variants unwrapped, structs as tuples, dictionaries
as dict, arrays of bytes as bytes. For the client, and for dbus-next, whose own way to them takes five times as long.

What comes from a bus daemon is well-formed: it checks every message.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from cortexd.encoding import FIXED, SIGNATURE, alignment, split, types

TYPE_CHECKING = False  # typing takes as long to import as half of the client
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Reader = Callable[[bytes, int], tuple[Any, int]]
    """(buffer, position) → (value, position after it). Positions count from a place that is aligned to 8."""

_WORDS = {order: Struct(order + "I").unpack_from for order in "<>"}
_TEXTS, _NUMBER = frozenset((b"\1s\0", b"\1o\0")), b"\1u\0"
"""Signatures of header fields, as they are written."""

_MAX_KNOWN = 256
_KNOWN: dict[str, dict[bytes, Reader]] = {"<": {}, ">": {}}
"""Of each byte order, the readers of variants by their signature as it is written: a fifth quicker than by `reader`."""


def size(buffer: bytearray) -> int:
    """Bytes of the message that begins there, of which the first 16 are needed."""
    order = "little" if buffer[0] == 0x6C else "big"
    fields = int.from_bytes(buffer[12:16], order)  # type: ignore[arg-type]
    return 16 + fields + -fields % 8 + int.from_bytes(buffer[4:8], order)  # type: ignore[arg-type]


def received(data: bytes, body: bool = True) -> tuple[int, int, int, dict[int, Any], tuple[Any, ...]]:
    """A whole message's type, flags, serial, header fields and values; without its `body`, no values."""
    order = "<" if data[0] == 0x6C else ">"
    word = _WORDS[order]
    serial, length = word(data, 8)[0], word(data, 12)[0]
    fields: dict[int, Any] = {}
    position, end = 16, 16 + length
    while position < end:  # each a structure of byte and variant, whose value begins at the fifth byte
        code, kind = data[position], data[position + 1 : position + 4]
        begin = position + 4
        if kind in _TEXTS:
            begin, position = begin + 4, begin + 4 + word(data, begin)[0]
            fields[code] = data[begin:position].decode()
            position += 1
        elif kind == _NUMBER:
            position = begin + 4
            fields[code] = word(data, begin)[0]
        else:
            fields[code], position = reader("v", order)(data, position + 1)
        position += -position % 8
    signature = fields.get(SIGNATURE)
    values = decode(signature, data, order, end + -end % 8) if signature and body else ()
    return data[1], data[2], serial, fields, values


def decode(signature: str, data: bytes, order: str = "<", position: int = 0) -> tuple[Any, ...]:
    """The values of a message body, which begins at `position`. `order` is struct's sign for the byte order."""
    values = []
    for kind in types(signature):
        value, position = reader(kind, order)(data, position)
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
    known = _KNOWN[order]

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        end = position + 1 + buffer[position]
        kind = buffer[position + 1 : end]
        inner = known.get(kind)
        if inner is None:
            if len(known) >= _MAX_KNOWN:  # whoever calls us chooses them
                known.clear()
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
        if kind == "ay":
            return buffer[position:end], end
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
