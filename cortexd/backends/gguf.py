"""GGUF files, as far as a registration has to look at them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cortexd.errors import InvalidConfig

_MAGIC = b"GGUF"


def check_gguf(path: Path) -> None:
    """Refuse a local path that is no GGUF file: InvalidConfig."""
    try:
        # A FIFO would let us wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            magic = file.read(len(_MAGIC)) if regular else b""
    except OSError as e:
        raise InvalidConfig(f"path={str(path)!r}: {e.strerror}; give the path of a GGUF file") from None
    if magic != _MAGIC:
        raise InvalidConfig(f"path={str(path)!r}: is no GGUF file; give one, or convert the model to GGUF")
