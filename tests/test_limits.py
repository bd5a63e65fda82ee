"""What is asked for against what the kernel enforces: files of control groups in, verdicts and remedies out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cortexctl.doctor import rules_session
from cortexd.kinds import GIB, INFINITY
from cortexd.limits import (
    DELEGATE,
    DIRECTIVES,
    LIFTED,
    LIMITS,
    NOT_APPLIED,
    Verdict,
    assigned,
    is_ours,
    left_by_us,
    lowered,
    properties,
    unavailable,
    verdicts,
)
from cortexd.model import ResourceLimits
from cortexd.systemd.cgroup import limit_value, read_limits
from cortexd.systemd.protocol import UnitLimits
from cortexd.units import files
from cortexd.units.render import _limits
from tests.test_settings import spec_of

ASKED = ResourceLimits(memory=32 * GIB, memory_high=28 * GIB, cpu=1.5, tasks_max=512)
MANAGER = "user.slice/user-1000.slice/user@1000.service"
GROUP = f"/{MANAGER}/cortex.slice/cortex-a.service"
STOCK = "cpu memory pids"
"""What user@.service delegates where nobody has changed it."""


class Machine:
    """A folder as /sys/fs/cgroup is, with one running model in it."""

    def __init__(self, root: Path, delegated: str = STOCK, there: str = "cpuset cpu io memory hugetlb pids") -> None:
        self.root = root
        self.write("", "cgroup.controllers", there)
        place = Path()
        for part in GROUP.strip("/").split("/"):
            place /= part
            self.write(str(place), "cgroup.controllers", delegated)
            for file in ("memory.max", "memory.high", "cpu.max", "pids.max"):
                if file.partition(".")[0] in delegated:
                    self.write(str(place), file, "max 100000" if file == "cpu.max" else "max")
        values = {"memory.max": 32 * GIB, "memory.high": 28 * GIB, "cpu.max": "150000 100000", "cpu.weight": 100}
        for file, value in {**values, "pids.max": 512, "io.weight": "default 100\n8:0 200"}.items():
            if file.partition(".")[0] in delegated.split():
                self.write(GROUP, file, value)

    def write(self, group: str, file: str, value: object) -> None:
        folder = self.root / group.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{value}\n")

    def found(self) -> UnitLimits:
        found = read_limits(self.root, GROUP)
        assert found
        return found

    def amiss(self, asked: ResourceLimits = ASKED, **drop_ins: set[str]) -> dict[str, Verdict]:
        """What is not in force."""
        return {v.setting: v for v in verdicts(asked, self.found(), drop_ins, "a") if v.reason}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_everything_is_in_force_where_io_is_delegated(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu io memory pids")
    told = verdicts(ASKED, machine.found(), {}, "a")
    assert [(v.setting, v.requested, v.effective) for v in told] == [
        ("memory", "32G", "32G"), ("MemoryHigh", "28G", "28G"), ("cpu", "1.5", "1.5"), ("CPUWeight", "100", "100"),
        ("IOWeight", "100", "100"), ("TasksMax", "512", "512"),
    ]  # fmt: skip
    assert not any(v.reason or v.remedy for v in told)


def test_io_that_is_not_delegated_has_the_remedy_that_doctor_has(machine: Machine) -> None:
    (verdict,) = machine.amiss().values()
    reason = "the io controller is not delegated to your manager"
    assert verdict == Verdict("IOWeight", "100", "", reason, DELEGATE)
    assert (
        rules_session.unavailable is unavailable
        and "user@.service.d" in DELEGATE
        and DELEGATE.endswith("restart user@$(id -u)")
    )


def test_a_kernel_without_io_weight_is_not_told_to_delegate(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu io memory pids")
    (tmp_path / GROUP.strip("/") / "io.weight").unlink()
    assert machine.amiss()["IOWeight"].reason == "the kernel has no io.weight"


def test_controllers_that_the_hierarchy_lacks(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "hugetlb", "hugetlb")
    told = machine.amiss()
    assert list(told) == [limit.setting for limit in LIMITS]
    assert told["memory"].reason == "cgroup v2 has no memory controller here" and not told["memory"].effective
    assert "unified_cgroup_hierarchy" in told["memory"].remedy


def test_version_1() -> None:
    told = verdicts(ASKED, UnitLimits(), {}, "a")
    assert {v.reason for v in told} == {"this machine has no unified control groups (cgroup v2)"}


@pytest.mark.parametrize(
    ("group", "file", "value", "setting", "effective", "remedy"),
    [
        (f"{MANAGER}/cortex.slice", "memory.max", 8 * GIB, "memory", "8G",
         "'systemctl --user set-property cortex.slice MemoryMax=infinity'"),
        (MANAGER, "pids.max", 100, "TasksMax", "100", "'sudo systemctl set-property user@1000.service TasksMax=infinity'"),
        ("user.slice/user-1000.slice", "cpu.max", "50000 100000", "cpu", "0.5",
         "'sudo systemctl set-property user-1000.slice CPUQuota='"),
        ("user.slice", "memory.high", GIB, "MemoryHigh", "1G", "'sudo systemctl set-property user.slice MemoryHigh=infinity'"),
    ],
)  # fmt: skip
def test_a_group_around_it_that_has_less(
    machine: Machine, group: str, file: str, value: object, setting: str, effective: str, remedy: str
) -> None:
    machine.write(group, file, value)
    verdict = machine.amiss()[setting]
    assert (verdict.effective, verdict.remedy) == (effective, remedy)
    assert verdict.reason == f"{group.rpartition('/')[2]} as a whole has no more"


def test_the_least_of_those_around_it_counts(machine: Machine) -> None:
    machine.write("user.slice", "memory.max", 4 * GIB)
    machine.write(f"{MANAGER}/cortex.slice", "memory.max", 8 * GIB)
    assert machine.amiss()["memory"].effective == "4G"
    machine.write("user.slice", "memory.max", 32 * GIB)
    machine.write(f"{MANAGER}/cortex.slice", "memory.max", 64 * GIB)
    assert "memory" not in machine.amiss()


def test_no_group_around_it_is_blamed_for_what_is_looser_than_was_asked_for(machine: Machine) -> None:
    """As a server that got at its own control group leaves it."""
    for file in ("memory.max", "memory.high", "pids.max"):
        machine.write(GROUP, file, "max")
    machine.write(GROUP, "cpu.max", "max 100000")
    machine.write(f"{MANAGER}/cortex.slice", "memory.max", 64 * GIB)
    machine.write(f"{MANAGER}/cortex.slice", "cpu.max", "400000 100000")
    found = {name: (v.effective, v.reason) for name, v in machine.amiss().items() if name != "IOWeight"}
    assert found == dict.fromkeys(("memory", "MemoryHigh", "cpu", "TasksMax"), ("infinity", LIFTED))
    machine.write(f"{MANAGER}/cortex.slice", "cpu.max", "100000 100000")  # less than was asked for
    assert (machine.amiss()["cpu"].effective, machine.amiss()["cpu"].reason) == (
        "1",
        "cortex.slice as a whole has no more",
    )


def test_a_drop_in_that_says_otherwise(machine: Machine) -> None:
    machine.write(GROUP, "memory.max", 20 * GIB)
    assert machine.amiss()["memory"].reason == NOT_APPLIED
    verdict = machine.amiss(**{"/d/x.conf": {"MemoryMax"}, "/d/y.conf": {"TasksMax"}})["memory"]
    assert (verdict.requested, verdict.effective, verdict.reason) == ("32G", "20G", "/d/x.conf says otherwise")


def test_the_kernel_counts_pages_and_systemd_percent(machine: Machine) -> None:
    odd = ResourceLimits(memory=32 * GIB + 4095, memory_high=28 * GIB, cpu=1.504, tasks_max=512)
    assert set(machine.amiss(odd)) == {"IOWeight"}
    assert set(machine.amiss(ResourceLimits(memory=INFINITY, memory_high=28 * GIB, cpu=1.5, tasks_max=513))) == {
        "memory", "IOWeight", "TasksMax",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [("max\n", INFINITY), ("5", 5), ("default 200\n8:0 100\n", 200), ("150000 100000\n", 1.5), ("max 100000\n", INFINITY), ("", None),
     ("x", None), ("1 0", None), ("-1", None), ("default", None)],
)  # fmt: skip
def test_files(text: str, value: float | None) -> None:
    assert limit_value(text) == value


def test_a_group_that_is_gone(tmp_path: Path) -> None:
    assert read_limits(tmp_path, GROUP) is None


# -- changing them


def test_every_limit_of_a_unit_can_be_changed_while_it_runs() -> None:
    lines = dict(line.split("=") for line in _limits(spec_of()))
    assert set(lines) == set(DIRECTIVES) and {limit.attribute for limit in LIMITS} == set(ResourceLimits.__slots__)
    values = properties(ASKED)
    assert {limit.bus_property: value for limit, value in values.items()} == {
        "MemoryMax": 32 * GIB, "MemoryHigh": 28 * GIB, "CPUQuotaPerSecUSec": 1_500_000, "CPUWeight": 100, "IOWeight": 100, "TasksMax": 512,
    }  # fmt: skip
    for limit, value in values.items():
        assert assigned(left_by_us(limit, value)[1]) == {limit.directive}


@pytest.mark.parametrize(
    ("cpu", "said", "ours"),
    [(1.25, "125%", True), (1.25, "125.00%", True), (1.255, "125%", True), (1.255, "125.50%", True), (1.25, "126%", False),
     (1.255, "125.00%", True), (1.25, "124.99%", False), (1.25, "", False), (1.25, "1e2%", False), (1.25, "125%\nMemoryMax=1G", False)],
)  # fmt: skip
def test_whose_a_drop_in_is(cpu: float, said: str, ours: bool) -> None:
    asked = properties(ResourceLimits(memory_high=INFINITY, tasks_max=512, cpu=cpu))
    quota = next(limit for limit in LIMITS if limit.setting == "cpu")
    head = left_by_us(quota, asked[quota])[1].rpartition("=")[0]
    assert is_ours(quota, asked[quota], f"{head}={said}\n") is ours
    assert not is_ours(quota, asked[quota], f"{head}={said}\n".replace("[Service]", "[Unit]"))
    for theirs in (f"# x\n[Service]\nCPUQuota={said}\n", f"[Service]\nCPUQuota={said}\n", f"# mine\n{head}={said}\n"):
        assert not is_ours(quota, asked[quota], theirs)
    assert all(is_ours(limit, value, left_by_us(limit, value)[1]) for limit, value in asked.items())
    assert not any(is_ours(limit, value + 20_000, left_by_us(limit, value)[1]) for limit, value in asked.items())


def test_what_a_drop_in_sets() -> None:
    assert assigned("MemoryMax=1\n[Service]\n# TasksMax=1\n MemoryMax = 1G\nCPUQuota=\nNice=1\n[Unit]\nIOWeight=1\n") == {
        "MemoryMax", "CPUQuota",
    }  # fmt: skip


def test_a_digest_is_of_what_a_run_has_for_good() -> None:
    text = files.with_marker("[Service]\nMemoryMax=1G\nExecStart=/x --limit MemoryMax=1G\n")
    other = text.replace("\nMemoryMax=1G", "\nMemoryMax=2G")
    assert files.digest(text) != files.digest(other)
    assert files.digest(text, DIRECTIVES) == files.digest(other, DIRECTIVES)
    assert files.digest(text, DIRECTIVES) != files.digest(re.sub("--limit.*", "", text), DIRECTIVES)


def test_what_is_lowered_below_what_is_used() -> None:
    less = ResourceLimits(memory=8 * GIB, memory_high=7 * GIB, tasks_max=512)
    assert "memory=8G is less than the 10.0G" in lowered(ASKED, less, 10 * GIB)
    assert "MemoryHigh=7G is less than the 7.5G" in lowered(ASKED, less, 15 * GIB // 2)
    assert not lowered(ASKED, less, GIB) and not lowered(less, ASKED, 100 * GIB)
