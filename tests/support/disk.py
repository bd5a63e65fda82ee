"""A small disk of the test's own, which really runs full: a tmpfs in namespaces of their own, so that no privileges are needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
_MOUNT = 'mount -t tmpfs -o "size=$1,mode=700" tmpfs "$2" && shift 2 && exec "$@"'


def with_small_disk(size: int, folder: Path, command: Sequence[str]) -> list[str]:
    """A command that sees a disk of so many bytes at `folder`, and else what everybody sees; it runs as the same user."""
    enter = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    return [*enter, "sh", "-c", _MOUNT, "-", str(size), str(folder), *command]


class SmallDisk:
    """Such a disk, as what runs there sees it at `path`; from outside by the name that the kernel gives a process's root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @classmethod
    def of(cls, process: subprocess.Popen[bytes], path: Path) -> SmallDisk:
        """That of a process."""
        return cls(Path(f"/proc/{process.pid}/root{path}"))

    def leave(self, pages: int) -> None:
        """Fill it until so many pages are left."""
        self.free()
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max((self.left() - pages) * PAGE, 1))
        assert self.left() <= max(pages, 0)

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)

    def left(self) -> int:
        """Free pages."""
        return os.statvfs(self.path).f_bfree
