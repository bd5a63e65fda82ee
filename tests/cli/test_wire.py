"""The decoder against jeepney's encoder."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jeepney import DBusAddress, new_signal
from jeepney.low_level import Endianness, Header

from cortexctl.wire import decode, split

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
    # jeepney reads arrays of bytes as bytes; the API has none.
    array = st.tuples(inner.filter(lambda p: p[0] != "y"), st.integers(0, 3)).map(
        lambda a: ("a" + a[0][0], [a[0][1]] * a[1], [a[0][2]] * a[1])
    )
    mapping = st.tuples(inner, st.lists(TEXT, unique=True, max_size=3)).map(
        lambda m: ("a{s" + m[0][0] + "}", dict.fromkeys(m[1], m[0][1]), dict.fromkeys(m[1], m[0][2]))
    )
    return st.one_of(variant, struct, array, mapping)


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


def test_split_takes_one_complete_type() -> None:
    assert split("aa{sv}(a(ss)i)u") == ("aa{sv}", "(a(ss)i)u")
    assert split("(a(ss)i)u") == ("(a(ss)i)", "u")
