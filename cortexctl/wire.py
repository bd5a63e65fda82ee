"""D-Bus bodies as plain Python values: variants unwrapped, structs as tuples, dictionaries as dict.

jeepney's own decoder parses the signature of every variant anew and keeps the variants wrapped; for a list of
models, which is nearly all variants, this one takes a quarter of the time (1.7 ms for 100 models).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any

Reader = Callable[[bytes, int], tuple[Any, int]]
"""(buffer, position) → (value, position after it). Positions count from the body's start, which is aligned to 8."""

_FIXED = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}


def decode(signature: str, body: bytes, order: str = "<") -> tuple[Any, ...]:
    """The values of a message body. `order` is struct's sign for the byte order."""
    values, position = [], 0
    while signature:
        kind, signature = split(signature)
        value, position = reader(kind, order)(body, position)
        values.append(value)
    return tuple(values)


def split(signature: str) -> tuple[str, str]:
    """The first complete type of a signature, and the rest."""
    if signature[0] == "a":
        element, rest = split(signature[1:])
        return "a" + element, rest
    end = 1
    if signature[0] in "({":
        depth = 1
        while depth:
            depth += (signature[end] in "({") - (signature[end] in ")}")
            end += 1
    return signature[:end], signature[end:]


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


def _alignment(kind: str) -> int:
    code = kind[0]
    if code in "({":
        return 8
    if code in "soa":
        return 4
    return 4 if code == "b" else 1 if code in "gv" else Struct("=" + _FIXED[code]).size


def _fixed(code: str, order: str) -> Reader:
    packed = Struct(order + ("I" if code == "b" else _FIXED[code]))
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
    element, alignment = reader(kind[1:], order), _alignment(kind[1:])
    length = _fixed("u", order)

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        size, position = length(buffer, position)
        position += -position % alignment
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
    readers, rest = [], kind[1:-1]
    while rest:
        field, rest = split(rest)
        readers.append(reader(field, order))

    def read(buffer: bytes, position: int) -> tuple[Any, int]:
        position += -position % 8
        values = []
        for field in readers:
            value, position = field(buffer, position)
            values.append(value)
        return tuple(values), position

    return read
