"""GGUF files, as far as a registration has to look at them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cortexd.bounded import unwaiting
from cortexd.errors import InvalidConfig

_MAGIC = b"GGUF"


def first_bytes(path: Path, size: int) -> bytes:
    """The first bytes of a regular file; of anything else none. Raises OSError."""
    with open(path, "rb", opener=unwaiting) as file:
        return file.read(size) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""


def check_gguf(path: Path) -> None:
    """Refuse a local path that is no GGUF file: InvalidConfig."""
    try:
        magic = first_bytes(path, len(_MAGIC))
    except OSError as e:
        raise InvalidConfig(f"path={str(path)!r}: {e.strerror}; give the path of a GGUF file") from None
    if magic != _MAGIC:
        raise InvalidConfig(f"path={str(path)!r}: is no GGUF file; give one, or convert the model to GGUF")
