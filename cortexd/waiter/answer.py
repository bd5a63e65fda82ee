"""One answer of an HTTP/1.1 server, taken apart as it comes (RFC 9112). No input or output: whoever asks gives it what it
receives, the waiter and the health probes alike. What answers is not trusted: all but the body has a bound here, and that
one is given out in pieces, so that the asker can have one."""

from __future__ import annotations

import re

MAX_HEAD = 65536
"""Bytes of all that comes before the body."""

_MAX_STATUS_LINE = 4096
_MAX_CHUNK_LINE = 1024
_STATUS_LINE = re.compile(rb"HTTP/\d\.\d +([1-9]\d\d)(?: .*)?", re.DOTALL)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Malformed(OSError):
    """It is no HTTP, or ends before its end; str() says which."""


class HeadTooLong(Malformed):
    """There is more of a head than MAX_HEAD."""


class Answer:
    """Of one request. Its parts are asked for in their order; each tells when it needs more."""

    def __init__(self) -> None:
        self._data, self._ended = bytearray(), False
        self._status, self._interim = 0, False
        self.complete_head = False
        """Whether all headers have come."""
        self._room = MAX_HEAD
        self._coding, self._length = b"", b""
        self._left: int | None = None
        """Of the body, or of the chunk; None where the connection's end is the body's, too."""
        self._chunked = self._after_chunk = False

    def add(self, data: bytes) -> None:
        """What was received; nothing at the end of the connection."""
        self._ended = not data
        self._data += data

    def status(self) -> int:
        """The status code, 0 until it has come. Interim answers (1xx) are passed over. Raises Malformed."""
        while not self._status:
            if self._interim:
                if not self._skip_headers():
                    return 0
                self._interim, self._coding, self._length = False, b"", b""
            line = self._head_line(_MAX_STATUS_LINE)
            if line is None:
                return 0
            found = _STATUS_LINE.fullmatch(line.rstrip())
            if found is None:
                raise Malformed("the answer is no HTTP")
            status = int(found[1])
            self._interim = status < 200
            self._status = 0 if self._interim else status
        return self._status

    def head(self) -> int:
        """The status code, 0 until all headers have come. Raises Malformed."""
        if not self.complete_head and self.status() and self._skip_headers():
            self.complete_head = True
            self._chunked = b"chunked" in self._coding
            if self._status in (204, 304) or self._chunked:
                self._left = 0
            elif self._length:
                self._left = _number(self._length, 10)
        return self._status if self.complete_head else 0

    def piece(self) -> bytes | None:
        """The next of the body, without its transfer coding: empty at its end, None until more has come. Raises Malformed."""
        if not self.head() or (self._chunked and not self._left and not self._next_chunk()):
            return None
        if self._left == 0:
            return b""
        if not self._data and self._ended and self._left:
            raise Malformed("the answer ends too early")
        if not self._data and not self._ended:
            return None
        taken = self._take(len(self._data) if self._left is None else min(self._left, len(self._data)))
        if self._left is not None:
            self._left -= len(taken)
        return taken

    def _next_chunk(self) -> bool:
        """Whether the size of the next chunk has come; the last one's is 0."""
        while (line := self._line(_MAX_CHUNK_LINE)) is not None:
            if not self._after_chunk:
                self._left = _number(line.partition(b";")[0], 16)
                self._chunked = self._left > 0  # what follows the last one is nobody's business
                self._after_chunk = True
                return True
            if line.strip():
                raise Malformed("the answer is no HTTP")
            self._after_chunk = False
        return False

    def _skip_headers(self) -> bool:
        """Whether the empty line has come; of what is before it, those that say how long the body is are kept."""
        while (line := self._head_line(self._room)) is not None:
            line = line.rstrip(b"\r\n")
            if not line:
                return True
            name, colon, value = line.partition(b":")
            if not colon or not _NAME.fullmatch(name):
                raise Malformed("the answer is no HTTP")
            name, value = name.lower(), value.strip()
            if name == b"transfer-encoding":
                self._coding += value.lower()
            elif name == b"content-length":
                if self._length not in (b"", value):
                    raise Malformed("the answer is no HTTP")
                self._length = value
        return False

    def _head_line(self, limit: int) -> bytes | None:
        """A line of what has MAX_HEAD of room in all."""
        line = self._line(min(limit, self._room), HeadTooLong if limit >= self._room else Malformed)
        if line is not None:
            self._room -= len(line)
        return line

    def _line(self, limit: int, fault: type[Malformed] = Malformed) -> bytes | None:
        """The next line with its end, None until that has come."""
        end = self._data.find(b"\n") + 1
        if (end or len(self._data)) > limit:
            raise fault("the answer's headers are too long" if fault is HeadTooLong else "the answer is no HTTP")
        if not end and self._ended:
            raise Malformed("the answer ends too early")
        return self._take(end) if end else None

    def _take(self, count: int) -> bytes:
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken


def _number(text: bytes, base: int) -> int:
    """A length of the protocol. More digits than these are an attack."""
    try:
        if re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text.strip()):
            return int(text, base)
    except ValueError:
        pass
    raise Malformed("the answer is no HTTP")
