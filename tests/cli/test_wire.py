"""Our encoder and decoder against jeepney's."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jeepney import DBusAddress, new_signal
from jeepney.low_level import Endianness, Header, Message

from cortexd import decoding, encoding
from cortexd.decoding import decode
from cortexd.encoding import split

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
BASIC = {
    "y": st.integers(0, 255),
    "b": st.booleans(),
    "n": st.integers(-(2**15), 2**15 - 1),
    "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "u": st.integers(0, 2**32 - 1),
    "x": st.integers(-(2**63), 2**63 - 1),
    "t": st.integers(0, 2**64 - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": st.sampled_from(["/", "/a/b_1"]),
    "g": st.sampled_from(["", "a{sv}"]),
}
Pair = tuple[str, Any, Any]
"""Signature, value as jeepney encodes it, value as it should be decoded."""


def _basic() -> st.SearchStrategy[Pair]:
    return st.sampled_from(list(BASIC)).flatmap(lambda code: BASIC[code].map(lambda value: (code, value, value)))


def _larger(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    variant = inner.map(lambda p: ("v", (p[0], p[1]), p[2]))
    struct = st.lists(inner, min_size=1, max_size=4).map(
        lambda ps: (f"({''.join(p[0] for p in ps)})", tuple(p[1] for p in ps), tuple(p[2] for p in ps))
    )
    array = st.tuples(inner, st.integers(0, 3)).map(_array)
    mapping = st.tuples(inner, st.lists(TEXT, unique=True, max_size=3)).map(
        lambda m: ("a{s" + m[0][0] + "}", dict.fromkeys(m[1], m[0][1]), dict.fromkeys(m[1], m[0][2]))
    )
    return st.one_of(variant, struct, array, mapping)


def _array(made: tuple[Pair, int]) -> Pair:
    (kind, sent, got), times = made
    if kind == "y":  # an array of bytes is bytes
        return "ay", bytes([sent] * times), bytes([got] * times)
    return "a" + kind, [sent] * times, [got] * times


@settings(deadline=None, database=None)
@given(st.lists(st.recursive(_basic(), _larger, max_leaves=12), min_size=1, max_size=5), st.sampled_from(Endianness))
def test_decode_inverts_encoding(pairs: list[Pair], order: Endianness) -> None:
    signature = "".join(pair[0] for pair in pairs)
    message = new_signal(DBusAddress("/a", interface="a.b"), "C", signature, tuple(pair[1] for pair in pairs))
    message.header.endianness = order
    data = message.serialise(serial=1)
    _, position = Header.from_buffer(data)
    body = data[position + -position % 8 :]
    assert decode(signature, body, order.struct_code()) == tuple(pair[2] for pair in pairs)


def test_nobody_fills_the_memory_with_signatures() -> None:
    for number in range(2000):
        kind = "".join("sotu"[number >> 2 * place & 3] for place in range(6))
        value = tuple({"s": "", "o": "/"}.get(code, 0) for code in kind)
        body = encoding.encode("v", [(f"({kind})", value)])
        assert decode("v", body) == (value,)
        assert len(decoding._KNOWN["<"]) <= decoding._MAX_KNOWN


def test_split_takes_one_complete_type() -> None:
    assert split("aa{sv}(a(ss)i)u") == ("aa{sv}", "(a(ss)i)u")
    assert split("(a(ss)i)u") == ("(a(ss)i)", "u")


@settings(deadline=None, database=None)
@given(st.lists(st.recursive(_basic(), _larger, max_leaves=12), max_size=5), st.booleans())
def test_encode_is_what_jeepney_reads(pairs: list[Pair], autostart: bool) -> None:
    signature = "".join(pair[0] for pair in pairs)
    fields = {encoding.PATH: "/a/b", encoding.DESTINATION: "a.b", encoding.INTERFACE: "a.b", encoding.MEMBER: "C"}
    body = tuple(pair[1] for pair in pairs)
    flags = 0 if autostart else encoding.NO_AUTO_START
    data = bytes(encoding.message(encoding.METHOD_CALL, flags, 7, fields, signature, encoding.encode(signature, body)))
    assert decoding.size(bytearray(data[:16])) == len(data)
    message = Message.from_buffer(data)
    assert message.body == body and message.header.serial == 7
    assert {
        int(field): value for field, value in message.header.fields.items() if field != encoding.SIGNATURE
    } == fields
    assert bool(message.header.flags & encoding.NO_AUTO_START) is not autostart


@settings(deadline=None, database=None)
@given(st.lists(_basic(), max_size=3), st.sampled_from(Endianness))
def test_message_is_what_jeepney_wrote(pairs: list[Pair], order: Endianness) -> None:
    signature = "".join(pair[0] for pair in pairs) or None
    sent = new_signal(DBusAddress("/a", interface="a.b"), "C", signature, tuple(pair[1] for pair in pairs))
    sent.header.endianness = order
    data = sent.serialise(serial=1)
    assert decoding.size(bytearray(data[:16])) == len(data)
    kind, flags, serial, fields, values = decoding.received(data)
    assert (kind, flags, serial, fields[encoding.MEMBER]) == (encoding.SIGNAL, sent.header.flags, 1, "C")
    assert values == tuple(pair[2] for pair in pairs)


def test_bytes() -> None:
    assert encoding.encode("ay", [b"ab"]) == b"\x02\0\0\0ab"


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("s", "\udcff"), ("s", "a\0b"), ("s", 1), ("u", -1), ("y", 256), ("t", 2**64), ("o", "no/path"), ("o", "/a/"),
        ("o", "/a//b"), ("(ss)", ("one",)), ("as", 5), ("a{sv}", {"key": "no variant"}), ("b", 2),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused(signature: str, value: Any) -> None:
    """The bus would cut the connection of whoever sends it."""
    with pytest.raises((ValueError, TypeError, AttributeError, struct.error)):
        encoding.encode(signature, [value])


def test_a_body_is_all_of_its_signature() -> None:
    with pytest.raises(ValueError, match="are not 'ss'"):
        encoding.encode("ss", ["one"])
