"""What cortexd sees of a start that the waiter cannot, and how it tells it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cortexd import gpus, startup
from cortexd.model import SETTINGS
from cortexd.names import hint_folder
from cortexd.startup import Sample, Startups, compare, pause, read_processes, touch
from cortexd.systemd.protocol import UnitState
from cortexd.units.render import HINT_FILE
from tests.support.fixtures import Daemon
from tests.support.wait import aio_until, until

MIB = 1 << 20


def test_the_setting_says_below_which_time_no_look_counts() -> None:
    """What is said just before a look is seen by the next but one, the first being made when the last but one was due."""
    row = SETTINGS["health.startup_stall_seconds"]
    assert row.default is not None and pause(float(str(row.default)), startup.SLOW_PERIOD) == startup.SLOW_PERIOD
    assert "below 5" in row.doc and startup.PERIOD + pause(5, startup.SLOW_PERIOD) < 5


@pytest.mark.parametrize(
    ("stall", "log", "bytes_"), [(3600, 9, 3), (36, 9, 3), (20, 5, 3), (8, 2, 2), (5, 1.25, 1.25), (0.1, 0.5, 0.5)]
)
def test_who_gives_up_soon_is_looked_at_often(stall: float, log: float, bytes_: float) -> None:
    assert (pause(stall, startup.SLOW_PERIOD), pause(stall, startup.PERIOD)) == (log, bytes_)


@pytest.mark.parametrize(
    ("new", "moved"),
    [
        (Sample(line=b"a"), False),
        (Sample(copied=MIB - 1, stored=MIB - 1, gpu=MIB - 1, line=b"a"), False),
        (Sample(copied=MIB, line=b"a"), True),
        (Sample(stored=MIB, line=b"a"), True),
        (Sample(gpu=MIB, line=b"a"), True),
        (Sample(line=b"b"), True),
    ],
)
def test_one_step(new: Sample, moved: bool) -> None:
    assert compare(Sample(line=b"a"), new)[0] is moved


def steps(*samples: Sample) -> list[bool]:
    """What each sample after the first one shows."""
    found, mark = [], samples[0]
    for sample in samples[1:]:
        moved, mark = compare(mark, sample)
        found.append(moved)
    return found


def test_what_is_read_slowly_adds_up() -> None:
    assert steps(*(Sample(stored=n * MIB // 4) for n in range(9))) == [False, False, False, True] * 2


def test_a_process_that_ends_takes_its_sum_with_it() -> None:
    assert steps(Sample(copied=90 * MIB), Sample(copied=5 * MIB), Sample(copied=6 * MIB)) == [False, True]


def test_gpu_memory_that_comes_and_goes_is_no_progress() -> None:
    assert steps(*(Sample(gpu=(9 if n % 2 else 5) * MIB) for n in range(6))) == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (b"", {}),
        (b"12, 300\n13, 5\n12, 100\n", {12: 400 * MIB, 13: 5 * MIB}),
        (b"12, [N/A]\n[Not Supported]\nNo devices were found\n\xff, 3\n, \n-1, 5\n", {}),
    ],
)
def test_what_nvidia_smi_says(output: bytes, found: dict[int, int]) -> None:
    assert gpus.parse(output) == found


def own_group() -> str:
    (path,) = (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return path


def test_bytes_of_real_processes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * MIB))
    program = "import sys; data = open(sys.argv[1], 'rb').read(); print('read', flush=True); input()"
    before, _ = read_processes(own_group())
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        after, pids = read_processes(own_group())
        process.communicate(b"\n")
    assert {os.getpid(), process.pid} <= set(pids)
    assert after.copied - before.copied >= 4 * MIB


@pytest.mark.parametrize("group", ["", "/", "/gone.service", "/../../etc"])
def test_a_control_group_that_is_gone(group: str) -> None:
    assert read_processes(group) == (Sample(), [])


def test_a_hint_goes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        touch(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


class Machine:
    """A unit that starts in this process's control group, and a journal that a test writes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(startup, "_HURRY", 0.01)
        monkeypatch.setattr(startup, "read_processes", lambda group: (Sample(), []))
        self.line = folder / "line"
        self.line.write_text("first")
        program = folder / "bin" / "journalctl"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho x >>{folder}/asked\ncat {self.line}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        self.asked = folder / "asked"
        self.hint = folder / hint_folder("m") / HINT_FILE
        self.hint.parent.mkdir(parents=True)
        self.unit = UnitState(
            unit="cortex-m.service",
            active_state="activating",
            sub_state="start-post",
            invocation_id="run",
            control_group="/x",
        )
        self.startups = Startups(folder, lambda unit: self.unit)

    async def looked(self) -> None:
        """Wait for two more looks at the journal."""
        count = self.asked.stat().st_size if self.asked.exists() else 0
        await aio_until(lambda: self.asked.exists() and self.asked.stat().st_size >= count + 4, "two looks")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


async def test_a_new_line_is_told_and_the_same_again_is_not(machine: Machine) -> None:
    machine.startups.follow("m", machine.unit, 0.04)
    await machine.looked()
    assert not machine.hint.exists()
    machine.line.write_text("second")
    await aio_until(machine.hint.exists, "the hint")
    await machine.looked()
    told = machine.hint.stat().st_mtime_ns
    await machine.looked()
    assert machine.hint.stat().st_mtime_ns == told
    await machine.startups.close()


async def test_a_hint_goes_when_the_start_is_over(machine: Machine) -> None:
    machine.startups.follow("m", machine.unit, 0.04)
    await machine.looked()
    machine.line.write_text("second")
    await aio_until(machine.hint.exists, "the hint")
    machine.startups.follow("m", UnitState(unit=machine.unit.unit, active_state="active", sub_state="running"), 0.04)
    assert not machine.hint.exists()
    asked = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait(asked, timeout=5)
    assert all(task.done() for task in asked)  # nothing to look at: nobody looks
    await machine.startups.close()


async def test_a_unit_without_the_folder_is_no_trouble(machine: Machine) -> None:
    """Written by an older version, or just over."""
    machine.hint.parent.rmdir()
    machine.startups.follow("m", machine.unit, 0.04)
    await machine.looked()
    machine.line.write_text("second")
    await machine.looked()
    machine.hint.parent.mkdir()
    machine.line.write_text("third")
    await aio_until(machine.hint.exists, "the hint")
    await machine.startups.close()


async def test_the_most_impatient_waiter_sets_the_pace(machine: Machine) -> None:
    """Though one that has hours was there before it."""
    machine.startups.follow("m", machine.unit, 0.04)
    machine.startups.follow("patient", replace(machine.unit, unit="cortex-patient.service"), 3600)
    await machine.looked()
    machine.line.write_text("second")
    await aio_until(machine.hint.exists, "the hint")
    await machine.startups.close()


async def test_without_a_runtime_folder_nobody_looks(machine: Machine) -> None:
    startups = Startups(None, lambda unit: machine.unit)
    startups.follow("m", machine.unit, 0.04)
    assert len(asyncio.all_tasks()) == 1
    await startups.close()


def test_a_real_daemon_tells_a_real_waiter(daemon: Daemon, tmp_path: Path) -> None:
    """Of lines in the log, which nothing else shows; and the next daemon goes on with it."""
    from tests.support.cortex import Cortex

    cortex = Cortex()
    folder = Path.home() / "talks"
    folder.mkdir()
    program = folder / "llama-server"
    program.write_text(
        "#!/bin/sh\n# says how far it is, and is never ready\n"
        "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo loading shard $i; sleep 1; done\n"
    )
    program.chmod(0o755)
    (folder / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    cortex.run("register", "talks", "--backend", "llamacpp", "--path", str(folder / "m.gguf"), "--exec", str(program),
               "--gpus", "none", "--memory", "1G", "--port", "auto", "--set", "health.startup_stall_seconds=60",
               "--set", "Restart=no")  # fmt: skip
    seen = Path(os.environ["XDG_RUNTIME_DIR"], hint_folder("talks"), HINT_FILE)
    cortex.run("start", "talks", "--no-block")
    first = until(lambda: seen.exists() and seen.stat().st_mtime_ns, "the hint", deadline=30)
    daemon.kill()
    daemon.start()
    until(lambda: seen.exists() and seen.stat().st_mtime_ns > first, "the next one's hint", deadline=40)
    cortex.run("stop", "talks")
    until(lambda: not seen.exists(), "its end")
