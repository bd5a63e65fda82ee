"""A disk that runs full: under every use-case, and when cortexd starts on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.faults import on_small_disk
from tests.support import lab
from tests.support.disk import with_small_disk


def test_full_at_every_page_of_every_use_case(tmp_path: Path) -> None:
    """Those of on_small_disk.py, where the disk is."""
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", on_small_disk.__file__]
    done = subprocess.run(
        with_small_disk(4 << 20, tmp_path, pytest_here),
        cwd=lab.PROJECT, env={**os.environ, on_small_disk.HERE: str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    sys.stdout.write(done.stdout)
