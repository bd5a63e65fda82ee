"""D-Bus values as bytes (D-Bus specification, type system): what dbus-next takes five times as long for, and what the client would
need a library for.

A variant is a pair of signature and value, or an object that has both. What cannot be written raises ValueError, TypeError,
AttributeError or struct.error.
"""

from __future__ import annotations

import re
from functools import lru_cache
from struct import Struct

TYPE_CHECKING = False  # typing takes as long to import as half of the client
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Writer = Callable[[bytearray, Any], None]
    """Appends a value to a buffer that begins at a multiple of 8."""

FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
"""Types of a fixed size, as struct knows them."""

PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = range(1, 9)
"""Header fields."""

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
"""Types of messages."""

NO_REPLY_EXPECTED, NO_AUTO_START = 1, 2
"""Flags."""

_PADDING = tuple(bytes(-position % 8) for position in range(8))
_FOUR = tuple(bytes(-position % 4) for position in range(4))
_LENGTH = Struct("<I").pack
_HEADER = Struct("<cBBBIII").pack
_PATH = r"/|(/[A-Za-z0-9_]+)+"


def message(kind: int, flags: int, serial: int, fields: Mapping[int, Any], signature: str, content: bytes) -> bytearray:
    """A whole message; `content` is the body of that signature, encoded."""
    out = bytearray(_HEADER(b"l", kind, flags, 1, len(content), serial, 0))
    for field, value in {**fields, SIGNATURE: signature}.items() if signature else fields.items():
        out += _PADDING[len(out) & 7]
        prefix, write = _FIELDS[field]
        out += prefix
        write(out, value)
    out[12:16] = _LENGTH(len(out) - 16)
    out += _PADDING[len(out) & 7]
    out += content
    return out


def encode(signature: str, values: Sequence[Any]) -> bytes:
    """A message body."""
    kinds = types(signature)
    if len(kinds) != len(values):
        raise ValueError(f"{len(values)} values are not {signature!r}")
    out = bytearray()
    for kind, value in zip(kinds, values, strict=True):
        writer(kind)(out, value)
    return bytes(out)


@lru_cache(maxsize=256)
def types(signature: str) -> tuple[str, ...]:
    """The complete types of a signature."""
    found = []
    while signature:
        kind, signature = split(signature)
        found.append(kind)
    return tuple(found)


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


def alignment(kind: str) -> int:
    """To a multiple of what a value of this type is aligned."""
    code = kind[0]
    if code in "({":
        return 8
    if code in "soa":
        return 4
    return 1 if code in "gv" else Struct("=" + FIXED[code]).size


@lru_cache(maxsize=256)
def writer(kind: str) -> Writer:
    """The writer of one complete type."""
    code = kind[0]
    if kind == "a{sv}":
        return _properties
    if code == "a":
        return _array(kind)
    if code in "({":
        return _struct(kind)
    return {"s": _string, "o": _path, "g": _signature, "v": _variant, "b": _boolean}.get(code) or _fixed(code)


def _string(out: bytearray, value: str) -> None:
    text = value.encode()
    if b"\0" in text:
        raise ValueError("a string with NUL")
    out += _FOUR[len(out) & 3]
    out += _LENGTH(len(text))
    out += text
    out.append(0)


@lru_cache(maxsize=4096)
def _check_path(value: str) -> None:
    if not re.fullmatch(_PATH, value):
        raise ValueError(f"{value!r} is no object path")


def _path(out: bytearray, value: str) -> None:
    _check_path(value)
    _string(out, value)


def _signature(out: bytearray, value: str) -> None:
    text = value.encode("ascii")
    out.append(len(text))
    out += text
    out.append(0)


def _variant(out: bytearray, value: Any) -> None:
    signature, content = value if type(value) is tuple else (value.signature, value.value)
    _signature(out, signature)
    writer(signature)(out, content)


def _boolean(out: bytearray, value: bool) -> None:
    if value is not True and value is not False:
        raise TypeError(f"{value!r} is no boolean")
    out += _FOUR[len(out) & 3]
    out += _LENGTH(value)


def _fixed(code: str) -> Writer:
    packed = Struct("<" + FIXED[code])
    mask, pack = packed.size - 1, packed.pack

    def write(out: bytearray, value: Any) -> None:
        out += bytes(-len(out) & mask)
        out += pack(value)

    return write


def _array(kind: str) -> Writer:
    element, mask = writer(kind[1:]), alignment(kind[1:]) - 1
    pairs = kind[1] == "{"

    def write(out: bytearray, value: Any) -> None:
        out += _FOUR[len(out) & 3]
        place = len(out)
        out += b"\0\0\0\0"
        out += bytes(-len(out) & mask)
        begin = len(out)
        if kind == "ay":
            out += bytes(value)
        else:
            for item in value.items() if pairs else value:
                element(out, item)
        out[place : place + 4] = _LENGTH(len(out) - begin)

    return write


def _struct(kind: str) -> Writer:
    writers = tuple(map(writer, types(kind[1:-1])))

    def write(out: bytearray, value: Sequence[Any]) -> None:
        if len(value) != len(writers):
            raise ValueError(f"{len(value)} values are not {kind!r}")
        out += _PADDING[len(out) & 7]
        for field, item in zip(writers, value, strict=True):
            field(out, item)

    return write


@lru_cache(maxsize=1024)
def _entry(key: str, signature: str) -> tuple[bytes, Writer]:
    """How an entry of a{sv} begins: the key and the value's signature, which are the same for every model."""
    out = bytearray()
    _string(out, key)
    _signature(out, signature)
    return bytes(out), writer(signature)


def _properties(out: bytearray, value: Mapping[str, Any]) -> None:
    """An array of entries a{sv}, which is nearly all that is ever sent."""
    out += _FOUR[len(out) & 3]
    place = len(out)
    out += b"\0\0\0\0"
    out += _PADDING[len(out) & 7]
    begin = len(out)
    for key, variant in value.items():
        signature, content = variant if type(variant) is tuple else (variant.signature, variant.value)
        prefix, write = _entry(key, signature)
        out += _PADDING[len(out) & 7]
        out += prefix
        write(out, content)
    out[place : place + 4] = _LENGTH(len(out) - begin)


_KINDS = {PATH: "o", REPLY_SERIAL: "u", SIGNATURE: "g"}
_FIELDS = {
    field: (bytes((field, 1, ord(kind), 0)), writer(kind))
    for field, kind in ((field, _KINDS.get(field, "s")) for field in range(PATH, SIGNATURE + 1))
}
"""How a header field begins, and the writer of its value."""
