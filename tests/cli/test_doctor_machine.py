"""doctor's rules about kernel, GPUs, ports and programs, and the looks at them below a root of the test's own."""

from __future__ import annotations

import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cortexctl.doctor import bounded, look_machine, rules_machine, userns
from cortexctl.doctor.evidence import Gpus, Kernel, Listed, Model, Namespaces, Node, Program, Unseen
from cortexctl.doctor.line import Level, Line
from cortexd.backends import BACKENDS

KERNEL = Kernel(
    cgroup2=True,
    namespaces=Namespaces(obstacle="", settings={}),
    ephemeral=(32768, 60999),
    first_unprivileged=1024,
)
APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"


def only(lines: Iterable[Line]) -> Line:
    (line,) = lines
    return line


def write(root: Path, name: str, text: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_kernel_that_has_all() -> None:
    for rule in (rules_machine.control_groups, rules_machine.namespaces):
        assert only(rule(KERNEL)).level is Level.OK
    assert list(rules_machine.killers(KERNEL)) == []


def test_no_cgroup2() -> None:
    line = only(rules_machine.control_groups(replace(KERNEL, cgroup2=False)))
    assert line.level is Level.ERROR and "systemd.unified_cgroup_hierarchy=1" in line.remedy


@pytest.mark.parametrize(
    ("settings", "cause", "remedy"),
    [
        (
            {"user.max_user_namespaces": 0, APPARMOR: 1},
            "user.max_user_namespaces is 0",
            "user.max_user_namespaces=15000",
        ),
        ({"kernel.unprivileged_userns_clone": 0}, "userns_clone is 0", "kernel.unprivileged_userns_clone=1"),
        ({APPARMOR: 1, "user.max_user_namespaces": 9}, "AppArmor forbids it, as Ubuntu does", f"'{APPARMOR}=0'"),
        ({APPARMOR: 0}, "neither a kernel setting nor AppArmor", "a container"),
    ],
)
def test_why_there_are_no_namespaces(settings: dict[str, int], cause: str, remedy: str) -> None:
    seen = replace(KERNEL, namespaces=Namespaces(obstacle="mounting in it: Permission denied", settings=settings))
    line = only(rules_machine.namespaces(seen))
    assert line.level is Level.ERROR and "Permission denied" in line.text
    assert cause in line.text and remedy in line.remedy


def test_a_restriction_that_does_not_bite_is_none() -> None:
    seen = replace(KERNEL, namespaces=Namespaces(obstacle="", settings={APPARMOR: 1}))
    assert only(rules_machine.namespaces(seen)).level is Level.OK


def test_who_kills() -> None:
    lines = list(rules_machine.killers(replace(KERNEL, killers=("systemd-oomd", "nohang"))))
    assert [line.level for line in lines] == [Level.NOTE, Level.NOTE] and "oomctl" in lines[0].text


def test_the_kernel_is_read(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    write(tmp_path, "proc/sys/net/ipv4/ip_local_port_range", "10000\t20000\n")
    write(tmp_path, "proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n")
    write(tmp_path, "proc/sys/net/ipv4/ip_local_reserved_ports", "11434,12000-12010\n")
    write(tmp_path, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
    write(tmp_path, "proc/17/comm", "earlyoom\n")
    seen = look_machine.kernel(tmp_path)
    assert seen.cgroup2 and seen.ephemeral == (10000, 20000) and seen.first_unprivileged == 80
    assert seen.reserved == ((11434, 11434), (12000, 12010)) and seen.killers == ("earlyoom",)
    assert isinstance(seen.namespaces, Namespaces) and seen.namespaces.settings == {APPARMOR: 1}


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/net/ipv4/ip_local_port_range", "garbage")
    seen = look_machine.kernel(tmp_path)
    assert not seen.cgroup2 and seen.ephemeral == (32768, 60999) and seen.first_unprivileged == 1024


def test_namespaces_are_really_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine gives them, or the private manager's models would not start."""
    assert look_machine.kernel().namespaces == Namespaces(obstacle="", settings=settings_here())
    refusing = tmp_path / "refusing.py"
    refusing.write_text("print('writing its uid_map: Operation not permitted'); raise SystemExit(1)")
    monkeypatch.setattr(userns, "__file__", str(refusing))
    seen = look_machine.kernel().namespaces
    assert isinstance(seen, Namespaces) and seen.obstacle == "writing its uid_map: Operation not permitted"


def settings_here() -> dict[str, int]:
    paths = {name: Path("/proc/sys", name.replace(".", "/")) for name in look_machine.NAMESPACE_SETTINGS}
    return {name: int(path.read_text()) for name, path in paths.items() if path.exists()}


NVIDIA = tuple(Node(f"/dev/{name}", True) for name in ("nvidia0", "nvidiactl", "nvidia-uvm"))


@pytest.mark.parametrize(
    ("gpus", "level", "words"),
    [
        (Gpus(count=0), Level.NOTE, "--gpus none"),
        (Gpus(count=2, nodes=NVIDIA, nvidia_driver=True, nvidia_cards=2), Level.OK, "2 GPUs"),
        (Gpus(count=0, nvidia_driver=True, nvidia_cards=1), Level.WARNING, "no node /dev/nvidia0"),
        (Gpus(count=1, nodes=(Node("/dev/nvidia0", False, "video"),)), Level.WARNING, "may not open /dev/nvidia0"),
        (Gpus(count=None, nodes=(Node("/dev/dri/renderD128", False, "render"),)), Level.NOTE, "Vulkan"),
        (Gpus(count=None, nodes=(Node("/dev/dri/renderD128", True, "render"),)), Level.NOTE, "--gpus none"),
    ],
)
def test_gpus(gpus: Gpus, level: Level, words: str) -> None:
    line = list(rules_machine.gpus(gpus, "ann"))[-1]
    assert line.level is level and words in line.text


def test_a_card_without_a_driver_and_a_driver_without_uvm() -> None:
    first, _ = rules_machine.gpus(Gpus(count=0, nvidia_cards=1), "ann")
    assert first.level is Level.NOTE and "driver is not loaded" in first.text
    first, _ = rules_machine.gpus(Gpus(count=1, nodes=NVIDIA[:2], nvidia_driver=True), "ann")
    assert first.level is Level.WARNING and "nvidia-uvm is missing" in first.text


def test_the_groups_that_open_amds_nodes() -> None:
    nodes = (Node("/dev/kfd", False, "render"), Node("/dev/dri/renderD128", False, "video"))
    line = only(rules_machine.gpus(Gpus(count=1, nodes=nodes), "ann"))
    assert line.level is Level.WARNING and line.remedy.startswith("sudo usermod -aG render,video ann")
    line = only(rules_machine.gpus(Gpus(count=1, nodes=nodes, groups=frozenset({"render", "video"})), "ann"))
    assert line.remedy.startswith("you are in the groups render and video since")
    line = only(rules_machine.gpus(Gpus(count=1, nodes=(Node("/dev/kfd", False),)), "ann"))
    assert "udev" in line.remedy
    roots = (nodes[0], Node("/dev/dri/renderD128", False, "root"))
    assert "udev" in only(rules_machine.gpus(Gpus(count=1, nodes=roots), "ann")).remedy, "nobody joins root's group"


def test_nodes_are_found(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidiactl", "nvidia-caps/nvidia-cap1", "dri/renderD128", "dri/card0"):
        write(tmp_path, f"dev/{name}")
    (tmp_path / "dev/nvidia0").chmod(0o060)
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    seen = look_machine.gpus("nobody", tmp_path)
    assert [node.path for node in seen.nodes] == ["/dev/nvidia0", "/dev/nvidiactl", "/dev/dri/renderD128"]
    assert (seen.count, seen.nvidia_cards, seen.nvidia_driver) == (1, 1, False)
    assert not seen.nodes[0].usable and seen.nodes[0].group and seen.nodes[1].usable


def model(name: str, port: int) -> Model:
    return Model(name=name, host="127.0.0.1", port=port)


@pytest.mark.parametrize(
    ("models", "level", "words"),
    [
        ((model("a", 8000), model("b", 8001)), Level.OK, "a port of its own"),
        ((model("a", 40000),), Level.WARNING, "kernel's own range 32768-60999"),
        ((model("a", 50000),), Level.OK, "a port of its own"),
        ((model("a", 1024),), Level.OK, "a port of its own"),
        ((model("a", 443),), Level.ERROR, "only for programs of root's"),
        ((model("a", 8000), model("b", 8000)), Level.WARNING, "port 8000 is that of a and b"),
    ],
)
def test_ports(models: tuple[Model, ...], level: Level, words: str) -> None:
    line = only(rules_machine.ports(models, replace(KERNEL, reserved=((50000, 50010),))))
    assert line.level is level and words in line.text


def test_no_models_no_line() -> None:
    assert list(rules_machine.ports((), KERNEL)) == list(rules_machine.ports(None, KERNEL)) == []


def test_programs() -> None:
    found = (
        Program(name="vllm", executable="/v/bin/vllm", version="0.33.0"),
        Program(name="tgi"),
        Program(name="ollama", executable="/b/ollama", obstacle="cannot be run: Exec format error"),
        Program(name="mine", problem="/u/mine.toml: is no TOML"),
    )
    vllm, ollama, mine = rules_machine.programs(found, ())
    assert (vllm.level, vllm.text) == (Level.OK, "vllm 0.33.0 (/v/bin/vllm)")
    assert ollama.level is mine.level is Level.WARNING


def test_no_program_matters_less_where_models_name_theirs() -> None:
    none = (Program(name="vllm"),)
    assert only(rules_machine.programs(none, None)).level is Level.WARNING
    assert only(rules_machine.programs(none, (model("a", 1),))).level is Level.NOTE


def test_the_built_in_backends_are_the_daemons() -> None:
    assert {name: backend.executables for name, backend in BACKENDS.items()} == look_machine.BUILT_IN
    assert all(backend.version == ("--version",) for backend in BACKENDS.values())


def script(folder: Path, name: str, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)
    return str(folder / name)


def test_versions_are_asked_for_and_found(tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    llama = script(bin_, "llama-server", "echo 'load_backend: loaded 2.0' >&2; echo 'version: 11669 (2c4a1b)' >&2")
    vllm = script(bin_, "vllm", "exit 3")
    (tmp_path / "lib/python3.12/site-packages/vllm-0.33.0.dist-info").mkdir(parents=True)
    tgi = script(bin_, "text-generation-launcher", "echo oops; exit 3")
    listed = {row.name: row for row in look_machine.built_in(str(bin_))}
    assert {name: row.executable for name, row in listed.items()} == {
        "vllm": vllm, "llamacpp": llama, "ollama": "", "tgi": tgi
    }  # fmt: skip
    assert look_machine.program(listed["llamacpp"]).version == "11669"
    assert look_machine.program(listed["vllm"]).version == "0.33.0", "without running it"
    assert look_machine.program(listed["tgi"]).obstacle == "ended with status 3 when asked for --version: oops"
    assert look_machine.program(listed["ollama"]) == Program(name="ollama")


def test_an_unknown_program_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    other = script(tmp_path, "serve", f"touch {mark}")
    assert look_machine.program(Listed(name="mine", executable=other)) == Program(name="mine", executable=other)
    assert look_machine.program(Listed(name="vllm", executable=other)).obstacle == ""
    assert not mark.exists()


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("ollama version is 0.5.7\n", "0.5.7"),
        ("Warning: could not connect\nWarning: client version is 0.5.7\n", "0.5.7"),
        ("INFO 11-23 10:00:00 [__init__.py:244] 1.2\n0.9.1\n", "0.9.1"),
        ("text-generation-launcher 3.3.7", "3.3.7"),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_version_in(said: str, version: str) -> None:
    assert look_machine.version_in(said) == version


def test_a_program_that_hangs_is_ended_with_its_children() -> None:
    began = time.monotonic()
    status, said = bounded.run(["sh", "-c", "echo here; sleep 60 & sleep 60"], 0.3)
    assert (status, said) == (None, "here\n") and time.monotonic() - began < 5


def test_a_program_whose_child_keeps_the_pipe_is_not_waited_for() -> None:
    began = time.monotonic()
    assert bounded.run(["sh", "-c", "echo here; sleep 60 & exit 4"], 30) == (4, "here\n")
    assert time.monotonic() - began < 5


def test_a_flood_is_cut() -> None:
    status, said = bounded.run([sys.executable, "-c", "print('x' * 10_000_000)"], 20)
    assert status == 0 and len(said) == 64 << 10


def test_looks_that_hang_or_fail_come_to_nothing() -> None:
    def fail() -> Any:
        raise ValueError("no")

    began = time.monotonic()
    found = bounded.all_at_once({"a": lambda: 1, "b": fail, "c": lambda: time.sleep(60)}, 0.2)
    assert found == {"a": 1, "b": Unseen("ValueError: no"), "c": Unseen("did not answer within 0.2 s")}
    assert time.monotonic() - began < 5
