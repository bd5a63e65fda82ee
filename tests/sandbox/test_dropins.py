"""What of a drop-in goes into a unit that tries a sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortexd.sandbox.dropins import lines_of, sandbox_lines
from cortexd.sandbox.places import elsewhere


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[Service]\nProtectHome=false\n", ["ProtectHome=false"]),
        ("[Service]\n ProtectHome\t=  tmpfs \r\nUMask=0077", ["ProtectHome=tmpfs", "UMask=0077"]),
        ("\ufeff[Service]\nReadWritePaths=\nReadWritePaths=/a \\\n# no\n  /b\n", ["ReadWritePaths=", "ReadWritePaths=/a    /b"]),
        ("[Service]\nReadWritePaths=/a\\\\\nUMask=0077\n", ["ReadWritePaths=/a\\\\", "UMask=0077"]),
        ("[Service]\nReadWritePaths=/a\\", ["ReadWritePaths=/a"]),
        ("[Unit]\nConflicts=cortex-other.service\nProtectHome=false\n[X-Service]\nUMask=0077\n", []),
        ("[Service]\nStandardOutput=truncate:/a\nRuntimeDirectory=mine\nExecStart=/bin/rm\nOnFailure=x\nUser=root\n", []),
        ("[Service]\nExecStart=/bin/true \\\nProtectHome=false\n", []),
        ("[Service]\n;ProtectHome=false\n# a \\\nUMask=0077\n", ["UMask=0077"]),
        ("[Service]\nReadWritePaths=/\udcff\n", []),
        ("ProtectHome=false\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_lines(text: str, found: list[str]) -> None:
    assert sandbox_lines(text) == found


def test_what_is_no_file_or_too_large_is_an_error_at_once(tmp_path: Path) -> None:
    fifo, large, good = tmp_path / "fifo", tmp_path / "large", tmp_path / "good"
    os.mkfifo(fifo)
    with large.open("wb") as file:
        file.truncate(1 << 30)
    good.write_text("[Service]\nUMask=0077\n")
    assert lines_of([str(good), str(good)]) == ["UMask=0077"] * 2
    for path, said in ((fifo, "is no regular file"), (large, "is larger than"), (tmp_path, "is no regular file")):
        with pytest.raises(OSError, match=said):
            lines_of([str(path)])


def test_a_folder_elsewhere(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "in").mkdir()
    (tmp_path / "0-link").symlink_to(tmp_path / "a")
    (tmp_path / "c").chmod(0o500)
    parents = (str(tmp_path / "none"), str(tmp_path))
    assert elsewhere([str(tmp_path / "a"), str(tmp_path / "c")], parents) == str(tmp_path / "b")
    assert elsewhere([str(tmp_path / "a/"), str(tmp_path / "b"), str(tmp_path / "c")], parents) == ""
    assert elsewhere([str(tmp_path)], parents) == ""
