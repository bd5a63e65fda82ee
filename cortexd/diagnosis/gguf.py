"""Where a GGUF file has to end by its own header (ggml's docs/gguf.md; block sizes as in ggml/src/ggml-common.h).

The file may say anything: counts and lengths are believed only as far as the file reaches, and no more than
`_MAX_HEADER` bytes of it are read.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

MAGIC = b"GGUF"
_MAX_HEADER = 64 << 20  # bytes; a vocabulary of 256k words takes some ten million
_MAX_TENSORS = 1 << 20
_MAX_PAIRS = 1 << 16
_MAX_DIMENSIONS = 8  # ggml has 4
_MAX_NESTING = 4  # arrays in arrays
_DEFAULT_ALIGNMENT = 32
_CHUNK = 1 << 20

_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""

_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""Weights in a block, and bytes of one, by the tensor's type; of newer types only the beginning is checked."""


class NotGguf(Exception):
    """It does not begin as a GGUF file does."""


class Broken(Exception):
    """The header contradicts itself, or what any reader could take."""


class CutOff(Exception):
    """The file ends inside its own header."""


class TooLong(Exception):
    """The header goes on beyond what is read of it."""


class _Reader:
    """Reads on through a file; what is skipped is not read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._data, self._start, self._at = b"", 0, 0

    @property
    def position(self) -> int:
        return self._start + self._at

    def skip(self, count: int) -> None:
        """Go on by `count` bytes."""
        if count > self._size - self.position:
            raise CutOff
        if self.position + count > _MAX_HEADER:
            raise TooLong
        self._at += count

    def take(self, count: int) -> bytes:
        """The next bytes; `count` is small."""
        begin = self._at
        self.skip(count)
        if self._at > len(self._data):
            self._start += begin
            self._file.seek(self._start)
            self._data, begin, self._at = self._file.read(max(_CHUNK, count)), 0, count
            if len(self._data) < count:
                raise CutOff  # it is shorter than it was a moment ago
        return self._data[begin : begin + count]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def skip_strings(self, count: int) -> None:
        """Go past `count` strings: the bulk of a header, so that those that lie in memory whole are gone past here."""
        while count:
            at, data = self._at, self._data
            end, unpack = len(data) - 8, struct.Struct("<Q").unpack_from
            while count and at <= end:
                (length,) = unpack(data, at)
                if at + 8 + length > len(data):
                    break
                at += 8 + length
                count -= 1
            self.skip(at - self._at)
            if count:
                self.skip(self.u64())
                count -= 1


def end_of_data(file: BinaryIO, size: int) -> int:
    """The size that the header gives the file, at least; 0 where it is of a version that is not known here, or too long
    to be read. Raises NotGguf, Broken, CutOff, OSError."""
    try:
        return _end_of_data(file, size)
    except TooLong:
        return 0


def _end_of_data(file: BinaryIO, size: int) -> int:
    reader = _Reader(file, size)
    if size < len(MAGIC) or reader.take(4) != MAGIC:
        raise NotGguf
    version = reader.u32()
    if version not in (
        2,
        3,
    ):  # 1 is not read by llama.cpp any more, later ones and big-endian ones may be laid out anyhow
        return 0
    tensors, pairs = reader.u64(), reader.u64()
    if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
        raise Broken(f"its header counts {max(tensors, pairs)} entries")
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(pairs):
        key, kind = reader.take(_bounded(reader.u64(), 1 << 16)), reader.u32()
        if key == b"general.alignment" and kind == 4:
            alignment = reader.u32()
        else:
            _skip_value(reader, kind)
    if alignment <= 0 or alignment & (alignment - 1):
        raise Broken(f"its header gives an alignment of {alignment}")
    last = 0
    for _ in range(tensors):
        reader.skip(_bounded(reader.u64(), 1 << 16))
        weights = 1
        for _ in range(_bounded(reader.u32(), _MAX_DIMENSIONS)):
            weights *= reader.u64()
        per_block, block = _BLOCKS.get(reader.u32(), (1, 0))
        last = max(last, reader.u64() + -(-weights // per_block) * block)
    return -(-reader.position // alignment) * alignment + last if tensors else reader.position


def _bounded(value: int, limit: int) -> int:
    if value > limit:
        raise Broken(f"its header has a length of {value} where at most {limit} is possible")
    return value


def _skip_value(reader: _Reader, kind: int, nesting: int = 0) -> None:
    if kind == _STRING:
        reader.skip(reader.u64())
    elif kind == _ARRAY:
        if nesting >= _MAX_NESTING:
            raise Broken("its header has arrays in arrays in arrays")
        of, count = reader.u32(), reader.u64()
        if of == _STRING:
            reader.skip_strings(count)
        elif of == _ARRAY:
            for _ in range(_bounded(count, 1 << 16)):
                _skip_value(reader, of, nesting + 1)
        else:
            reader.skip(count * _size_of(of))
    else:
        reader.skip(_size_of(kind))


def _size_of(kind: int) -> int:
    if kind not in _SIZES:
        raise Broken(f"its header has a value of type {kind}, which does not exist")
    return _SIZES[kind]
