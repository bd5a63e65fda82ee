"""Who holds GPU memory: from NVIDIA's program, and /proc."""

from __future__ import annotations

import asyncio
import os
import subprocess
from asyncio.subprocess import Process
from pathlib import Path

import pytest

from cortexd import bounded, gpus
from cortexd.gpus import Holder, Meter, Shares
from tests.support.units import properties, systemctl


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A stray of ours, a model of ours, and one that has gone."""
    for pid, comm, unit in (
        (11, "python3", "session.scope"),
        (12, "llama-server", "cortex-a.service"),
        (14, "x", "cortexd.service"),
    ):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "comm").write_text(f"{comm}\n")
        (folder / "cgroup").write_text(f"0::/user.slice/user-1.slice/user@1.service/cortex.slice/{unit}\n")
    return tmp_path


def test_a_leftover_is_named_and_a_model_is_not(proc: Path) -> None:
    held = {11: 5 << 30, 12: 20 << 30, 13: 1 << 30, 14: 6 << 30}
    assert gpus.strays(held, proc) == [Holder(14, "x", 6 << 30), Holder(11, "python3", 5 << 30)]


def test_what_belongs_to_others_is_not_ours_to_end(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1)
    assert gpus.strays({11: 5 << 30}, proc) == []


async def test_nvidias_program_is_asked_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert await gpus.memory() == {}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '11, 512'; echo '11, 512'; echo '12, [N/A]'\n")
    program.chmod(0o755)
    assert await gpus.memory() == {11: 1 << 30}
    monkeypatch.setattr(gpus, "_SECONDS", 0.1)
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    assert await gpus.memory() == {}


# As the manual pages of nvidia-smi and of the kernel's "DRM client usage stats" show them: no GPU has said this to us.
PMON = b"""# gpu        pid  type    sm   mem   enc   dec   command
# Idx          #   C/G     %     %     %     %   name
    0         11     C    45    20     -     -   python3
    1         11     C   120     3     -     -   python3
    0         12     G     -     -     -     -   Xorg
    1          -     -     -     -     -     -   -
"""
NEWER = b"""# gpu         pid   type     sm    mem    enc    dec    jpg    ofa    command
# Idx           #    C/G      %      %      %      %      %      %    name
    0          11     C      9      0      -      -      -      -    llama-server
"""
DRM = """pos:\t0
flags:\t02100002
drm-driver:\tamdgpu
drm-client-id:\t{client}
drm-pdev:\t0000:03:00.0
drm-engine-gfx:\t{gfx} ns
drm-engine-compute:\t{compute} ns
drm-engine-capacity-compute:\t2
drm-total-vram:\t4096 KiB
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [(PMON, {11: 1.45}), (NEWER, {11: 0.09}), (b"", {}), (b"Not supported\n", {}), (b"# gpu sm\n0 5\n", {}),
     (b"# sm pid\n9\n-5 11\n5 \xff\n5 12\n", {12: 0.05})],
)  # fmt: skip
def test_who_uses_nvidias_gpus(text: bytes, found: dict[int, float]) -> None:
    assert gpus.parse_shares(text) == pytest.approx(found)


def opened(proc: Path, devices: Path, pid: int, number: int, text: str, device: str = "renderD128") -> None:
    """A descriptor of a process's."""
    for name in ("fd", "fdinfo"):
        (proc / str(pid) / name).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "fd" / str(number)).unlink(missing_ok=True)
    (proc / str(pid) / "fd" / str(number)).symlink_to(devices / device if device else "/dev/null")
    (proc / str(pid) / "fdinfo" / str(number)).write_text(text)


def test_who_uses_other_gpus(tmp_path: Path) -> None:
    proc, devices = tmp_path / "proc", tmp_path / "dri"
    opened(proc, devices, 11, 0, DRM.format(client=1, gfx=999, compute=1), device="")
    opened(proc, devices, 11, 3, DRM.format(client=7, gfx=10, compute=5))
    opened(proc, devices, 11, 4, DRM.format(client=7, gfx=10, compute=5))  # the same client, twice open
    opened(proc, devices, 12, 3, DRM.format(client=7, gfx=10, compute=5))  # and in its child
    opened(proc, devices, 12, 5, DRM.format(client=8, gfx=1, compute="9" * 30))  # more than there can be
    (proc / "12" / "fdinfo" / "9").write_text("no such descriptor")
    assert gpus.engine_times([11, 12, 13], proc, devices) == {}  # no such devices on this machine
    devices.mkdir()
    assert gpus.engine_times([11, 12, 13], proc, devices) == {"7 0000:03:00.0": 15, "8 0000:03:00.0": 1}
    assert gpus.engine_times([13], proc, devices) == {}


async def test_gpu_time_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    engines: dict[str, int] = {"a": 50}
    share: dict[int, float] = {}

    class Told(Shares):
        async def now(self) -> dict[int, float]:
            return share

    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "engine_times", lambda pids: dict(engines))
    meter = Meter(lambda: [1, 2], Told(), clock=lambda: now)
    seen = []

    async def look(after: float) -> None:
        nonlocal now
        now += after
        await meter.look()
        seen.append(meter.total)

    await look(0)  # what was used before is not known
    engines["a"] = 60
    await look(1)
    engines.clear()
    engines["b"] = 1000  # a new client: how long it is there is not known
    await look(1)
    share.update({1: 0.5, 3: 1.0})  # 3 is somebody else's
    await look(2)
    await look(10**6)  # asked again only after days
    assert seen == [0, 10, 10, 10 + 10**9, 10 + 31 * 10**9]


async def test_one_program_looks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that hangs would keep each of them for ever."""
    began, program = tmp_path / "began", tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho + >> {began}\nsleep 0.2\nprintf '# pid sm\\n11 50\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    shares = Shares()
    assert await asyncio.gather(*(shares.now() for _ in range(60))) == [{11: 0.5}] * 60
    assert began.read_text() == "+\n"
    assert await shares.now() == {11: 0.5}  # afresh
    assert began.read_text() == "+\n+\n"


async def test_there_is_no_second_program_while_the_first_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the driver, where no signal reaches it; here its end is what nobody sees."""
    began, program = tmp_path / "began", tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho + >> {began}\nexec sleep 100\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(gpus, "_SECONDS", 0.1)
    monkeypatch.setattr(bounded, "_DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(Process, "kill", lambda process: None)
    shares = Shares()
    assert [await shares.now() for _ in range(3)] == [{}] * 3
    assert began.read_text() == "+\n"
    monkeypatch.undo()
    hung = shares._program
    assert hung is not None and hung.returncode is None
    hung.kill()
    await hung.wait()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program.write_text("#!/bin/sh\nprintf '# pid sm\\n11 50\\n'\n")
    assert await shares.now() == {11: 0.5}


async def test_without_a_gpu_nobody_is_bothered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "DEVICES", tmp_path / "dri")

    def pids() -> list[int]:
        raise AssertionError("is asked")

    meter = Meter(pids, Shares())
    await meter.look()
    assert meter.total == 0


def test_what_a_model_opens_can_be_looked_at() -> None:
    """The kernel lets us read of a process of ours, in a user namespace of its own, too: what of Meter needs no GPU."""
    unit = f"opened-{os.getpid()}.service"
    command = ["systemd-run", "--user", "--quiet", f"--unit={unit}", "--property=PrivateUsers=yes", "--property=NoNewPrivileges=yes",
               "--property=StandardInput=file:/dev/zero", "--property=Type=exec", "sleep", "infinity"]  # fmt: skip
    subprocess.run(command, check=True)
    try:
        pid = int(properties(unit, "MainPID")["MainPID"])
        assert Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/zero")
        assert Path(f"/proc/{pid}/fdinfo/0").read_text().startswith("pos:")
    finally:
        systemctl("stop", unit)
