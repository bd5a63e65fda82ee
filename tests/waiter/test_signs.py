"""What the waiter sees of a server from inside its unit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortexd.waiter.signs import GROWTH, Reading, Sign, Signs, read
from cortexd.waiter.sockets import own_group
from tests.support.wait import until


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A control group's files, as the kernel writes them."""
    (tmp_path / "memory.current").write_text("1234567890\n")
    (tmp_path / "memory.stat").write_text("anon 1\nfile 2\npgsteal 10\npgsteal_kswapd 7\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
    (tmp_path / "cgroup.procs").write_text(f"{os.getppid()}\n{os.getpid()}\n999999999\n")
    return tmp_path


def test_reads_the_control_group(group: Path) -> None:
    reading = read(5.0, group, None)
    page = os.sysconf("SC_PAGE_SIZE")
    assert (reading.when, reading.charged, reading.reclaimed, reading.cpu) == (5.0, 1234567890, 10 * page, 2.5)
    assert reading.memory == 1234567890
    # Of the others only: what the waiter itself has is no sign of the server's.
    assert reading.resident == int(Path(f"/proc/{os.getppid()}/statm").read_text().split()[1]) * page


@pytest.mark.parametrize("name", ["memory.current", "memory.stat", "cpu.stat", "cgroup.procs"])
@pytest.mark.parametrize("text", [None, "", "\n", "max\n", "nonsense\0 -1\n", "usage_usec\npgsteal x\n"])
def test_what_cannot_be_read_is_left_out(group: Path, name: str, text: str | None) -> None:
    (group / name).unlink() if text is None else (group / name).write_text(text)
    whole, reading = Reading(charged=1234567890, reclaimed=10 * 4096, cpu=2.5), read(0, group, group / "gone")
    missing = {"memory.current": "charged", "memory.stat": "reclaimed", "cpu.stat": "cpu", "cgroup.procs": "resident"}[
        name
    ]
    assert getattr(reading, missing) == 0
    assert reading.hint == 0
    for field in {"charged", "cpu"} - {missing}:
        assert getattr(reading, field) == getattr(whole, field)


def test_without_a_control_group_nothing_is_seen() -> None:
    assert read(1, None, None) == Reading(when=1)


def test_the_hint(tmp_path: Path) -> None:
    hint = tmp_path / "seen"
    before = read(0, None, hint).hint
    hint.touch()
    first = read(0, None, hint).hint
    os.utime(hint, ns=(1, first + 1))
    assert (before, read(0, None, hint).hint) == (0, first + 1)


def test_memory_of_a_real_process_is_seen() -> None:
    """With or without a memory controller."""
    group = own_group()
    assert group is not None
    signs = Signs(read(0, group, None))
    process = subprocess.Popen([sys.executable, "-c", "b = bytearray(64 << 20); input()"], stdin=subprocess.PIPE)
    try:
        until(lambda: signs.judge(read(1, group, None)) is Sign.PROGRESS, "the sign")
    finally:
        process.communicate(b"\n")


def test_cpu_time_of_a_real_process_is_seen() -> None:
    group = own_group()
    before = read(0, group, None).cpu
    subprocess.run([sys.executable, "-c", "for i in range(3_000_000): pass"], check=True)
    assert read(0, group, None).cpu > before


@pytest.mark.parametrize(
    ("new", "sign"),
    [
        (Reading(when=1), Sign.NONE),
        (Reading(when=1, charged=GROWTH - 1, resident=GROWTH - 1), Sign.NONE),
        (Reading(when=1, charged=GROWTH), Sign.PROGRESS),
        (Reading(when=1, reclaimed=GROWTH), Sign.PROGRESS),
        (Reading(when=1, resident=GROWTH), Sign.PROGRESS),
        (Reading(when=1, hint=1), Sign.PROGRESS),
        (Reading(when=1, cpu=0.09), Sign.NONE),
        (Reading(when=1, cpu=0.1), Sign.WEAK),
        (Reading(when=0, cpu=9), Sign.NONE),  # no time has passed
        (Reading(when=1, cpu=9, hint=1), Sign.PROGRESS),
    ],
)
def test_one_step(new: Reading, sign: Sign) -> None:
    assert Signs(Reading()).judge(new) is sign
