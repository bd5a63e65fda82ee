"""One answer, in whatever pieces it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.waiter.answer import MAX_HEAD, Answer, HeadTooLong, Malformed

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def told(*pieces: bytes, end: bool = True) -> tuple[int, bytes, str]:
    """Status, body, and why there is no more of it: "" at its end, "more" where more is waited for."""
    answer, body, status = Answer(), b"", 0
    try:
        for piece in (*pieces, *([b""] if end else [])):
            answer.add(piece)
            status = answer.status() or status
            while found := answer.piece():
                body += found
            if found == b"":
                return status, body, ""
    except Malformed as e:
        return answer.head() if answer.complete_head else status, body, str(e)
    return status, body, "more"


NO_HTTP, EARLY, LONG = "the answer is no HTTP", "the answer ends too early", "the answer's headers are too long"
ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", "")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", (200, b"ok", "")),
    (b"HTTP/1.1 200 OK\ncontent-length:2\n\nok", (200, b"ok", "")),
    (b"HTTP/1.0 200\r\n\r\nuntil the end", (200, b"until the end", "")),
    (b"HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\n", (204, b"", "")),
    (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", (200, b"ok", "")),
    (CHUNKED + b"1\r\no\r\n1;a=b\r\nk\r\n0\r\nTrailer: x\r\n\r\n", (200, b"ok", "")),
    (CHUNKED + b"2\r\nok", (200, b"ok", EARLY)),
    (CHUNKED + b"2\r\nok\r\n", (200, b"ok", EARLY)),
    (CHUNKED + b"2\r\nokay\r\n", (200, b"ok", NO_HTTP)),
    (CHUNKED + b"-2\r\nok\r\n", (200, b"", NO_HTTP)),
    (CHUNKED + b"0x2\r\nok\r\n", (200, b"", NO_HTTP)),
    (
        b"HTTP/1.1 100 Continue\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        (200, b"ok", ""),
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 9000, (0, b"", LONG)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", (200, b"", NO_HTTP)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", (200, b"a", "")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", (200, b"ok", EARLY)),
    (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", (200, b"", NO_HTTP)),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n c: folded\r\n\r\n", (200, b"", NO_HTTP)),
    (b"HTTP/1.1 200 OK\r\nA: b", (200, b"", EARLY)),
    (b"HTTP/1.1 099 Odd\r\n\r\n", (0, b"", NO_HTTP)),
    (b"", (0, b"", EARLY)),
]


@pytest.mark.parametrize(("text", "expected"), ANSWERS, ids=lambda value: repr(value)[:60])
def test_an_answer_in_one_piece(text: bytes, expected: tuple[int, bytes, str]) -> None:
    assert told(text) == expected


@given(st.sampled_from(ANSWERS), st.lists(st.integers(1, 40), max_size=60))
def test_an_answer_in_pieces(answer: tuple[bytes, tuple[int, bytes, str]], sizes: list[int]) -> None:
    rest, pieces = answer[0], []
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert told(*filter(None, (*pieces, rest))) == answer[1]


@pytest.mark.parametrize(
    "text", [text[:-1] for text, (status, _, fault) in ANSWERS if not fault and status not in (204,)]
)
def test_what_is_not_over_is_waited_for(text: bytes) -> None:
    assert told(text, end=False)[2] in ("more", "")


@given(st.binary(max_size=300))
def test_nonsense_is_one_kind_of_error(text: bytes) -> None:
    told(text)
    told(b"HTTP/1.1 200 OK\r\n" + text)
    told(CHUNKED + text)


def test_the_head_has_a_bound() -> None:
    """Whatever its lines are like; none of it is read twice."""
    for line in (b"A: " + b"b" * 100_000, b"A: b\r\n" * 20_000, b"\r\n".join([b"A: " + b"b" * 60_000] * 2)):
        answer = Answer()
        answer.add(b"HTTP/1.1 200 OK\r\n" + line)
        assert answer.status() == 200
        with pytest.raises(HeadTooLong):
            answer.head()
    answer = Answer()
    answer.add(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_HEAD // 6 - 10) + b"\r\n")
    assert answer.head() == 200
