"""Room that is kept for the last steps: what was begun can be ended, or undone, also when the disk has run full meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

SIZE = 256 * 1024
"""Bytes: what some fifty of the largest steps add to the database's log."""


class Reserve:
    """A file beside the database that is there to be deleted. Its methods block."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".reserve")
        self.held = False
        """The room is there, as far as we know."""

    def hold(self) -> None:
        """Take the room. Raises OSError where there is none."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SIZE)
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(descriptor)
        self.held = True

    def release(self) -> bool:
        """Give the room away; False where there was none. Raises OSError."""
        self.held = False
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True
