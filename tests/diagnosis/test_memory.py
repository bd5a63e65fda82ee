"""The kernel's counters of a run's memory outlive its control group."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cortexd.systemd import memory
from cortexd.systemd.cgroup import mount_point
from cortexd.systemd.memory import MemoryEvents, MemoryWatch, parse_events
from tests.support.wait import aio_until

RUN = "a" * 32


def group(folder: Path, oom: int = 0, killed: int = 0, peak: str | None = "1048576\n") -> Path:
    """A control group's folder with these counters, in files of an ordinary file system."""
    folder.mkdir(exist_ok=True)
    (folder / "memory.events").write_text(f"low 0\nhigh 3\nmax 9\noom {oom}\noom_kill {killed}\noom_group_kill 0\n")
    if peak is not None:
        (folder / "memory.peak").write_text(peak)
    return folder


@pytest.mark.parametrize(
    ("text", "peak", "expected"),
    [
        ("low 0\nhigh 3\nmax 9\noom 1\noom_kill 2\n", "4096\n", MemoryEvents(1, 2, 3, 4096)),
        ("", "", MemoryEvents()),
        ("oom x\noom_kill -1\nhigh \n\nnonsense", "max\n", MemoryEvents()),
        ("oom 99999999999999999999999\noom_kill ²", "", MemoryEvents()),
    ],
)
def test_the_files(text: str, peak: str, expected: MemoryEvents) -> None:
    assert parse_events(text, peak) == expected


async def test_what_was_counted_last_is_kept(tmp_path: Path) -> None:
    watch = MemoryWatch()
    folder = group(tmp_path / "g")
    watch.watch(RUN, folder)
    watch.watch(RUN, tmp_path / "another")  # known already
    assert (watch.seen(RUN), watch.runs) == (MemoryEvents(0, 0, 3, 1 << 20), [RUN])
    group(folder, oom=1, killed=1)
    assert watch.seen(RUN) == MemoryEvents(1, 1, 3, 1 << 20)
    group(folder, oom=2, killed=2)
    watch.forget(RUN)
    watch.forget(RUN)
    assert (watch.seen(RUN), watch.runs) == (MemoryEvents(2, 2, 3, 1 << 20), [])
    watch.close()


async def test_no_controller_no_counters(tmp_path: Path) -> None:
    watch = MemoryWatch()
    watch.watch(RUN, tmp_path / "gone")
    watch.watch("", group(tmp_path / "g"))
    assert (watch.seen(RUN), watch.runs) == (None, [])
    watch.watch("b" * 32, group(tmp_path / "old", peak=None))  # before Linux 5.19
    assert watch.seen("b" * 32) == MemoryEvents(0, 0, 3, 0)
    watch.close()


async def test_descriptors_are_closed_and_few_runs_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_KEEP", 3)
    watch = MemoryWatch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(10):
        watch.watch(str(number), group(tmp_path / str(number)))
    watch.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [number for number in range(10) if watch.seen(str(number))] == [7, 8, 9]


async def test_it_reads_when_the_kernel_says_that_the_counters_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the kernel's wake-up, which an ordinary file does not give."""
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    registered: list[int] = []

    class Epoll:
        def fileno(self) -> int:
            return bell

        def register(self, descriptor: int, events: int) -> None:
            assert events == select.EPOLLPRI
            registered.append(descriptor)

        def unregister(self, descriptor: int) -> None:
            registered.remove(descriptor)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            os.eventfd_read(bell)
            return [(descriptor, select.EPOLLPRI) for descriptor in registered]

        def close(self) -> None:
            os.close(bell)

    monkeypatch.setattr(select, "epoll", Epoll)
    watch = MemoryWatch()
    folder = group(tmp_path / "g")
    watch.watch(RUN, folder)
    group(folder, oom=1, killed=1)
    os.eventfd_write(bell, 1)
    await aio_until(lambda: watch._seen[RUN].killed, "the reading")
    watch.close()
    assert registered == []
    assert watch.seen(RUN) == MemoryEvents(1, 1, 3, 1 << 20)


async def test_a_real_control_group_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """cgroup.events wakes as memory.events does (both are kernfs), and is there without a memory controller."""
    monkeypatch.setattr(memory, "_EVENTS", "cgroup.events")
    read: list[str] = []
    monkeypatch.setattr(memory, "parse_events", lambda text, peak: read.append(text) or MemoryEvents())
    root = mount_point(Path("/proc/self/mountinfo").read_text())
    assert root is not None
    unit = f"cortextest-memory-{os.getpid()}"
    command = ["systemd-run", "--user", "--scope", "--quiet", f"--unit={unit}", sys.executable, "-c",
               "import signal; print(open('/proc/self/cgroup').read(), flush=True); signal.pause()"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = await asyncio.to_thread(process.stdout.readline)
    while not told.startswith("0::"):
        told = await asyncio.to_thread(process.stdout.readline)
    watch = MemoryWatch()
    watch.watch(RUN, root / told.strip().removeprefix("0::/"))
    assert "populated 1" in read[-1]
    process.send_signal(signal.SIGKILL)
    # systemd may remove the empty group before it is read.
    await aio_until(lambda: "populated 0" in read[-1] or not watch.runs, "the kernel's word")
    process.wait()
    process.stdout.close()
    watch.close()
