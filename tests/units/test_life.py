"""Generated units on the real user manager, with systemctl alone: no daemon of ours is there."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cortexd import waiter
from cortexd.names import unit_name
from cortexd.waiter.http import Server, http_status
from cortexd.waiter.sockets import listeners
from tests.support.units import UnitLab, free_port, make_program, systemctl
from tests.support.wait import until


def begin(name: str) -> subprocess.Popen[str]:
    """`systemctl --user start`, which blocks."""
    return subprocess.Popen(["systemctl", "--user", "start", unit_name(name)], stderr=subprocess.PIPE, text=True)


def end(start: subprocess.Popen[str]) -> int:
    """Its exit status."""
    start.communicate(timeout=20)
    return start.returncode


def until_status(lab: UnitLab, name: str, text: str) -> dict[str, str]:
    """Wait until the waiter says this."""

    def said() -> dict[str, str]:
        state = lab.state(name)
        return state if text in state["StatusText"] else {}

    return until(said, f"the status {text!r}")


def log_of(name: str) -> str:
    """The journal of a model's unit."""
    return subprocess.run(
        ["journalctl", "--user", "--output=cat", f"--unit={unit_name(name)}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


# --------------------------------------------------------------------------------------------------------------- ready


@pytest.mark.parametrize(
    ("name", "loading", "status"),
    [("late-port", [], "Connection refused"), ("late-ready", ["--fake-loading", "503"], "/health answers 503")],
)
def test_start_blocks_until_the_server_is_ready(unit_lab: UnitLab, name: str, loading: list[str], status: str) -> None:
    gate = unit_lab.gate(name)
    generated = unit_lab.define(name, "--fake-gate", str(gate), *loading)
    start = begin(name)
    state = until_status(unit_lab, name, status)
    assert state["StatusText"].startswith("Waiting for the server: /health")
    assert (state["ActiveState"], state["SubState"]) == ("activating", "start-post")
    assert start.poll() is None
    gate.write_text("open")
    assert end(start) == 0
    state = unit_lab.state(name)
    assert (state["ActiveState"], state["SubState"], state["StatusText"]) == ("active", "running", "Ready")
    assert http_status(Server("127.0.0.1", generated.spec.port), "/health", 5) == 200


@pytest.mark.parametrize(
    ("name", "host", "probe"), [("six", "::1", "::1"), ("all-six", "::", "::1"), ("all-four", "0.0.0.0", "127.0.0.1")]
)
def test_hosts(unit_lab: UnitLab, name: str, host: str, probe: str) -> None:
    generated = unit_lab.define(name, host=host)
    unit_lab.start(name)
    assert http_status(Server(probe, generated.spec.port), "/health", 5) == 200


def test_without_an_endpoint_a_start_is_over_when_it_runs(unit_lab: UnitLab) -> None:
    gate = unit_lab.gate("no-endpoint")
    generated = unit_lab.define("no-endpoint", "--fake-gate", str(gate), health__endpoint="none")
    unit_lab.start("no-endpoint")
    assert unit_lab.state("no-endpoint")["ActiveState"] == "active"
    assert listeners(generated.spec.port) == []


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_server_that_fails_fails_the_start_at_once_with_the_reason(unit_lab: UnitLab) -> None:
    unit_lab.define("fails", "--fake-exit", "3", Restart="no")
    began = time.monotonic()
    assert unit_lab.start("fails", check=False).returncode != 0
    assert time.monotonic() - began < 5  # of the 20 s that it has
    state = unit_lab.state("fails")
    assert (state["ActiveState"], state["Result"]) == ("failed", "exit-code")
    log = log_of("fails")
    assert "fake server: something went wrong" in log
    assert "the server ended" in log


def test_a_server_that_dies_while_it_loads(unit_lab: UnitLab) -> None:
    gate = unit_lab.gate("dies")
    unit_lab.define("dies", "--fake-gate", str(gate), "--fake-exit", "3", Restart="no")
    start = begin("dies")
    until_status(unit_lab, "dies", "Waiting")
    gate.write_text("open")
    assert end(start) != 0
    state = unit_lab.state("dies")
    assert (state["ActiveState"], state["Result"]) == ("failed", "exit-code")
    assert state["StatusText"] == "Not ready: the server ended while it started (/health: Connection refused)"


def test_a_server_that_ends_well_while_it_loads_has_failed_all_the_same(unit_lab: UnitLab) -> None:
    gate = unit_lab.gate("ends-well")
    unit_lab.define("ends-well", "--fake-gate", str(gate), "--fake-exit", "0", Restart="no")
    start = begin("ends-well")
    until_status(unit_lab, "ends-well", "Waiting")
    gate.write_text("open")
    assert end(start) != 0
    assert unit_lab.state("ends-well")["ActiveState"] == "failed"


def test_a_server_that_is_never_ready_is_ended_by_the_deadline(unit_lab: UnitLab) -> None:
    unit_lab.define(
        "never", "--fake-gate", str(unit_lab.gate("never")), Restart="no", health__startup_timeout_seconds=0.5
    )
    assert unit_lab.start("never", check=False).returncode != 0
    state = unit_lab.state("never")
    assert state["ActiveState"] == "failed"
    assert state["StatusText"] == "Not ready: not ready after 0.5 s (/health: Connection refused)"


def test_a_missing_executable_fails_the_start(unit_lab: UnitLab) -> None:
    program = make_program(unit_lab.folder / "gone" / "llama-server")
    unit_lab.define("no-exec", exec=str(program), Restart="no")
    program.unlink()
    assert unit_lab.start("no-exec", check=False).returncode != 0
    assert unit_lab.state("no-exec")["ActiveState"] == "failed"
    assert "status=203/EXEC" in log_of("no-exec")


def test_a_stranger_on_the_port_is_not_believed(unit_lab: UnitLab) -> None:
    """It is healthy, answers, and belongs to the same user."""
    port, stranger = free_port(), f"unit-lab-stranger-{os.getpid()}.service"
    command = ["systemd-run", "--user", "--quiet", f"--unit={stranger}", str(unit_lab.server), f"--port={port}"]
    subprocess.run(command, check=True)
    try:
        until(lambda: listeners(port), "the stranger's socket")
        unit_lab.define("pushed-out", "--fake-gate", str(unit_lab.gate("pushed-out")), port=port, Restart="no")
        assert unit_lab.start("pushed-out", check=False).returncode != 0
        status = unit_lab.state("pushed-out")["StatusText"]
        assert status.startswith(f"Not ready: port {port} is held by a process outside this unit (user {os.getuid()}")
    finally:
        systemctl("stop", stranger)


def test_a_child_that_answers_for_a_dead_server_is_not_believed(unit_lab: UnitLab) -> None:
    gate = unit_lab.gate("orphan")
    unit_lab.define("orphan", "--fake-child", "--fake-gate", str(gate), "--fake-loading", "503", Restart="no")
    start = begin("orphan")
    until_status(unit_lab, "orphan", "answers 503")
    os.kill(int(unit_lab.state("orphan")["MainPID"]), 9)
    assert end(start) != 0
    assert unit_lab.state("orphan")["ActiveState"] == "failed"


# ---------------------------------------------------------------------------------------------------------------- stop


@pytest.mark.parametrize("phase", ["loading", "ready"])
def test_a_stop_ends_stopped(unit_lab: UnitLab, phase: str) -> None:
    name = f"stop-{phase}"
    gate = unit_lab.gate(name)
    unit_lab.define(name, "--fake-gate", str(gate))
    start = begin(name)
    until_status(unit_lab, name, "Waiting")
    if phase == "ready":
        gate.write_text("open")
        assert end(start) == 0
    systemctl("stop", unit_name(name))
    end(start)
    state = unit_lab.state(name)
    assert (state["ActiveState"], state["Result"], state["MainPID"]) == ("inactive", "success", "0")


def test_a_stop_ends_stopped_at_whatever_moment_of_the_start(unit_lab: UnitLab) -> None:
    """The waiter may not even have been executed yet; SIGTERM then ends what is to become it."""
    unit_lab.define("stop-early", "--fake-gate", str(unit_lab.gate("stop-early")), StartLimitIntervalSec=0)
    for moment in range(12):
        systemctl("start", "--no-block", unit_name("stop-early"))
        for _ in range(moment):
            unit_lab.state("stop-early")  # takes some milliseconds
        systemctl("stop", unit_name("stop-early"))
        state = unit_lab.state("stop-early")
        assert (state["ActiveState"], state["Result"], state["MainPID"]) == ("inactive", "success", "0")


def test_a_stop_of_a_backend_that_takes_sigint(unit_lab: UnitLab) -> None:
    program = make_program(unit_lab.folder / "venv" / "bin" / "vllm")
    gate = unit_lab.gate("sigint")
    generated = unit_lab.define(
        "sigint", "--fake-gate", str(gate), backend="vllm", path="org/name", exec=str(program), gpus="0"
    )
    assert "KillSignal=SIGINT" in generated.text
    start = begin("sigint")
    until_status(unit_lab, "sigint", "Waiting")
    systemctl("stop", unit_name("sigint"))
    assert end(start) != 0
    state = unit_lab.state("sigint")
    assert (state["ActiveState"], state["Result"]) == ("inactive", "success")


def test_no_process_is_left_behind(unit_lab: UnitLab) -> None:
    """A worker that outlives the main process would keep the GPU."""
    generated = unit_lab.define("worker", "--fake-child")
    unit_lab.start("worker")
    assert listeners(generated.spec.port)
    systemctl("stop", unit_name("worker"))
    assert listeners(generated.spec.port) == []


# ------------------------------------------------------------------------------------------------------------- restart


@pytest.mark.parametrize(
    ("name", "restart", "how", "returns"),
    [
        ("killed", "on-failure", 9, True),
        ("ended-failure", "on-failure", 15, False),
        ("ended-always", "always", 15, True),
    ],
)
def test_restart(unit_lab: UnitLab, name: str, restart: str, how: int, returns: bool) -> None:
    """SIGTERM ends it with status 0, as vLLM ends when its engine is dead."""
    unit_lab.define(name, Restart=restart, RestartSec=0.1)
    unit_lab.start(name)
    first = unit_lab.state(name)["MainPID"]
    os.kill(int(first), how)
    if returns:
        until(
            lambda: unit_lab.state(name)["NRestarts"] == "1" and unit_lab.state(name)["ActiveState"] == "active",
            "its return",
        )
        assert unit_lab.state(name)["MainPID"] not in ("0", first)
    else:
        until(lambda: unit_lab.state(name)["ActiveState"] == "inactive", "its end")
        assert unit_lab.state(name)["Result"] == "success"


def test_the_start_limit_is_read(unit_lab: UnitLab) -> None:
    unit_lab.define("limited", "--fake-exit", "1", RestartSec=0, StartLimitBurst=2)
    unit_lab.start("limited", check=False)
    until(lambda: unit_lab.state("limited")["ActiveState"] == "failed", "the end of the crash loop")
    assert unit_lab.state("limited")["NRestarts"] == "2"
    assert "Start request repeated too quickly" in log_of("limited")


# ----------------------------------------------------------------------------------------------------- what it is given


def test_arguments_and_environment_arrive(unit_lab: UnitLab) -> None:
    odd = [
        "--fmt=%n %% %t",
        "$HOME ${X} $$",
        ";",
        '"quoted"',
        "it's",
        "back\\slash\\n",
        "",
        " ",
        "Grüße 世界 🦙",
        "*",
        "--",
        "|&<>",
    ]
    out = unit_lab.folder / "told"
    out.mkdir()
    unit_lab.define("told", "--fake-tell", str(out / "file"), *odd, ReadWritePaths=str(out), gpus="0,1")
    unit_lab.start("told")
    told = json.loads((out / "file").read_text())
    assert told["argv"][-len(odd) :] == odd
    environment = told["environ"]
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["HIP_VISIBLE_DEVICES"] == "0,1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_a_drop_in_that_would_break_any_python_does_not_break_the_waiter(unit_lab: UnitLab) -> None:
    trap = unit_lab.folder / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text("import os; os._exit(77)")
    unit_lab.define("trapped")
    unit_lab.drop_in("trapped", f"[Service]\nEnvironment=PYTHONPATH={trap} PYTHONHOME=/nonexistent\n")
    unit_lab.start("trapped")
    assert unit_lab.state("trapped")["StatusText"] == "Ready"


def test_variables_that_would_change_its_mind_are_kept_away(unit_lab: UnitLab) -> None:
    out = unit_lab.folder / "unset"
    out.mkdir()
    systemctl("set-environment", "LLAMA_ARG_MODEL=/other.gguf", "SOMETHING_ELSE=1")
    try:
        unit_lab.define("unset", "--fake-tell", str(out / "file"), ReadWritePaths=str(out))
        unit_lab.start("unset")
    finally:
        systemctl("unset-environment", "LLAMA_ARG_MODEL", "SOMETHING_ELSE")
    environment = json.loads((out / "file").read_text())["environ"]
    assert environment["SOMETHING_ELSE"] == "1"
    assert "LLAMA_ARG_MODEL" not in environment


# ------------------------------------------------------------------------------------------------------------- folders


def test_folders_are_there_again_at_every_start(unit_lab: UnitLab) -> None:
    folder = unit_lab.folder / "made" / "by us"
    unit_lab.define("folders", ReadWritePaths=f"'{folder}'", RestartSec=0.1, StartLimitIntervalSec=0)
    # More often than systemd's own limit of five starts in ten seconds: several models may share a folder.
    for _ in range(7):
        shutil.rmtree(folder.parent, ignore_errors=True)
        systemctl("restart", unit_name("folders"))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shutil.rmtree(folder.parent)
    os.kill(int(unit_lab.state("folders")["MainPID"]), 9)  # a restart of systemd's own is a start, too
    until(lambda: unit_lab.state("folders")["NRestarts"] == "1" and folder.is_dir(), "the folder")
    until(lambda: unit_lab.state("folders")["ActiveState"] == "active", "its return")


ODD_NAMES = ["a b", 'quote"s', "it's", "50%", "ü-世", "back\\slash", "$HOME", "a:b", ".hidden", "x;y", "{}"]


def test_folders_with_odd_names(unit_lab: UnitLab) -> None:
    folders = [unit_lab.folder / "odd" / name for name in ODD_NAMES]
    commands = {folder.name: f"touch -- {shlex.quote(str(folder / 'file'))}" for folder in folders}
    found = with_out(unit_lab, "odd-folders", commands, [str(folder) for folder in folders])
    assert found == dict.fromkeys(commands, (0, ""))
    assert all((folder / "file").exists() for folder in folders)


def test_folders_behind_a_link(unit_lab: UnitLab) -> None:
    """A cache on another disk."""
    real, link = unit_lab.folder / "disk" / "cache", unit_lab.folder / "linked"
    real.mkdir(parents=True)
    link.symlink_to(real)
    commands = {"write": f"touch {link}/file", "beside": f"touch {real.parent}/file"}
    found = with_out(unit_lab, "linked", commands, [str(link)])
    assert found["write"] == (0, "") and (real / "file").exists()
    assert found["beside"][0] != 0 and not (real.parent / "file").exists()


def test_a_folder_that_cannot_be_made_fails_the_start(unit_lab: UnitLab) -> None:
    """The disk that a link leads to is not there: better no server than one that fills the wrong one."""
    link = unit_lab.folder / "dangling"
    link.symlink_to(unit_lab.folder / "not-mounted" / "cache")
    unit_lab.define("dangling", ReadWritePaths=[str(link)])
    assert "dependency" in unit_lab.start("dangling", check=False).stderr
    assert unit_lab.state("dangling")["ActiveState"] == "inactive"
    assert not (unit_lab.folder / "not-mounted").exists()


def with_out(
    lab: UnitLab, name: str, commands: dict[str, str], writes: Sequence[str] = (), **more: Any
) -> dict[str, tuple[int, str]]:
    """Start a model that runs shell commands inside its sandbox; status and words of each."""
    out = lab.folder / f"{name}-out"
    out.mkdir()
    (out / "commands").write_text(json.dumps(commands))
    lab.define(name, "--fake-run", str(out / "commands"), ReadWritePaths=[str(out), *writes], **more)
    lab.start(name)
    found = json.loads((out / "commands.out").read_text())
    return {key: (status, text) for key, (status, text) in found.items()}


# ------------------------------------------------------------------------------------------------------------- sandbox


def outside(command: str) -> int:
    """The same command's exit status where no sandbox is."""
    return subprocess.run(command, shell=True, capture_output=True, check=False).returncode


def test_nothing_inside_reaches_the_users_bus_or_manager(unit_lab: UnitLab) -> None:
    runtime = os.environ["XDG_RUNTIME_DIR"]
    reach = {
        "busctl": "busctl --user list",
        "busctl by path": f"busctl --address=unix:path={runtime}/bus list",
        "private socket": f"test -S {runtime}/systemd/private",
        "systemctl": "systemctl --user list-units",
        "systemd-run": f"systemd-run --user touch {unit_lab.folder}/escaped",
        "socket": f"{os.path.realpath(sys.executable)} -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"{runtime}/bus\")'",
    }
    assert {name: outside(f"XDG_RUNTIME_DIR={runtime} {command}") for name, command in reach.items()} == dict.fromkeys(
        reach, 0
    )
    until((unit_lab.folder / "escaped").exists, "what systemd-run does from outside")
    (unit_lab.folder / "escaped").unlink()
    commands = {name: f"export XDG_RUNTIME_DIR={runtime}; {command}" for name, command in reach.items()}
    found = with_out(unit_lab, "caged", {**commands, "runtime": f"cd {runtime} && find . ! -name ."})
    assert [name for name in reach if found[name][0] == 0] == []
    hint = [
        "./cortexd",
        "./cortexd/progress",
        "./cortexd/progress/caged",
    ]  # its own, and empty: see tests/units/test_startup.py
    assert sorted(found["runtime"][1].split()) == [*hint, "./systemd", "./systemd/notify"]
    assert not (unit_lab.folder / "escaped").exists()
    assert unit_lab.state("caged")["StatusText"] == "Ready"  # sd_notify went through


def test_our_data_is_hidden_and_other_paths_are_read_only(unit_lab: UnitLab) -> None:
    home, data = unit_lab.scope.home, unit_lab.scope.data
    (data / "logs").mkdir(parents=True, exist_ok=True)
    (data / "secret").write_text("secret")
    # Another model's settings stand in its unit.
    reads = {
        "data": f"cat {data}/secret",
        "list": f"ls {data}/logs",
        "other models": f"ls {unit_lab.scope.unit_folder}",
    }
    writes = {
        "home": f"touch {home}/written", "units": f"touch {unit_lab.scope.unit_folder}/written.service",
        "own folder": f"touch {unit_lab.folder}/written", "shm": "touch /dev/shm/written && rm /dev/shm/written",
    }  # fmt: skip
    try:
        assert {name: outside(command) for name, command in (reads | writes).items()} == dict.fromkeys(
            reads | writes, 0
        )
        closed = {
            "usr": "touch /usr/written", "etc": "touch /etc/written", "var": "touch /var/lib/written",
            "tunables": "echo 1 >/proc/sys/kernel/printk", "groups": "mkdir /sys/fs/cgroup/written",
        }  # fmt: skip
        found = with_out(
            unit_lab, "closed", {**reads, **writes, **closed, "own out": f"touch {unit_lab.folder}/closed-out/written"}
        )
        assert sorted(name for name, (status, _) in found.items() if status == 0) == ["own out", "shm"]
        assert "secret" not in found["data"][1].replace(f"{data}/secret", "")
        assert "Read-only file system" in found["home"][1] and "Read-only file system" in found["groups"][1]
    finally:
        (data / "secret").unlink()
        for name in (home / "written", unit_lab.scope.unit_folder / "written.service", unit_lab.folder / "written"):
            name.unlink(missing_ok=True)


def test_privileges_and_kernel_features(unit_lab: UnitLab) -> None:
    out = unit_lab.folder / "privileges-out"
    commands = {
        "status": "cat /proc/self/status",
        "suid": f"touch {out}/x && chmod u+s {out}/x",
        "realtime": f"{os.path.realpath(sys.executable)} -c 'import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))'",
        "tmp": "ls -A /tmp /var/tmp && touch /tmp/mine",
        "null": "echo x >/dev/null",
    }
    Path("/tmp/of-the-machine").touch()
    found = with_out(unit_lab, "privileges", commands)
    assert "NoNewPrivs:\t1\n" in found["status"][1]
    assert "Seccomp:\t2\n" in found["status"][1]
    assert found["suid"][0] != 0 and outside(f"chmod u+s {out}/x") == 0
    assert found["realtime"][0] != 0 and "PermissionError" in found["realtime"][1]
    assert found["tmp"][0] == 0 and "of-the-machine" not in found["tmp"][1]
    assert not Path("/tmp/mine").exists()
    assert found["null"][0] == 0


def test_hardening_can_be_taken_back(unit_lab: UnitLab) -> None:
    free = {
        "home": f"touch {unit_lab.folder}/free",
        "tmp": "test -e /tmp/of-everybody",
        "suid": "touch /tmp/suid && chmod u+s /tmp/suid",
    }
    Path("/tmp/of-everybody").touch()
    found = with_out(unit_lab, "freer", free, ProtectHome="no", ProtectSystem="no", PrivateTmp="no", RestrictSUIDSGID="no",
                     NoNewPrivileges="no", RestrictRealtime="no", ProtectKernelModules="no")  # fmt: skip
    assert found == dict.fromkeys(free, (0, ""))
    assert (unit_lab.folder / "free").exists()


# ---------------------------------------------------------------------------------------------------- /tmp and the home


@pytest.mark.parametrize("root", ["/tmp", "/var/tmp"])
def test_a_model_and_a_program_in_tmp(unit_lab: UnitLab, root: str) -> None:
    """Exactly these, and read-only: what lies beside them is not seen."""
    name = f"in{root.replace('/', '-')}"
    folder = Path(root) / f"unit-lab-{os.getpid()}"
    program = make_program(folder / "llama" / "llama-server")
    (folder / "llama" / "libllama.so").touch()
    beside = Path(root) / f"beside-{os.getpid()}"
    beside.touch()
    model = folder / 'mo:del "s"' / "50% ü.gguf"
    model.parent.mkdir()
    model.write_bytes(b"GGUF" + bytes(8))
    (model.parent / "other.gguf").touch()
    commands = {"library": f"test -e {program.parent}/libllama.so", "model": f"test -s '{model}'", "other": f"ls '{model.parent}'",
                "root": f"ls -A {root}", "write": f"echo >>'{model}'", "delete": f"rm {program}"}  # fmt: skip
    found = with_out(unit_lab, name, commands, path=str(model), exec=str(program))
    shutil.rmtree(folder)
    beside.unlink()
    assert {key: status for key, (status, _) in found.items() if status} == {"write": found["write"][0], "delete": 1}
    assert found["other"][1] == f"{model.name}\n"
    assert folder.name in found["root"][1] and "beside" not in found["root"][1]


def test_the_waiter_and_its_interpreter_in_tmp(unit_lab: UnitLab) -> None:
    """As in a clone under /tmp with a virtual environment beside it."""
    clone = Path(f"/tmp/unit-lab-clone-{os.getpid()}")
    (clone / "venv" / "bin").mkdir(parents=True)
    (clone / "venv" / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    package = Path(waiter.__file__).parent
    shutil.copytree(package, clone / "cortexd" / "waiter", ignore=shutil.ignore_patterns("__pycache__"))
    tools = unit_lab.tools
    unit_lab.tools = dataclasses.replace(
        tools, python=f"{clone}/venv/bin/python", waiter=f"{clone}/cortexd/waiter/__main__.py"
    )
    try:
        generated = unit_lab.define("clone")
    finally:
        unit_lab.tools = tools
    assert f'"{clone}/cortexd/waiter"' in generated.text
    unit_lab.start("clone")
    assert unit_lab.state("clone")["StatusText"] == "Ready"
    shutil.rmtree(clone)


def test_a_script_whose_interpreter_is_in_tmp(unit_lab: UnitLab) -> None:
    pythons = Path(f"/tmp/unit-lab-pythons-{os.getpid()}")
    (pythons / "bin").mkdir(parents=True)
    (pythons / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    script = make_program(unit_lab.folder / "script" / "llama-server")
    script.write_text(script.read_text().replace(f"#!{os.path.realpath(sys.executable)}", f"#!{pythons}/bin/python3"))
    unit_lab.define("script", exec=str(script))
    unit_lab.start("script")
    shutil.rmtree(pythons)


def test_a_written_folder_in_tmp(unit_lab: UnitLab) -> None:
    folder = Path(f"/tmp/unit-lab-written-{os.getpid()}")
    found = with_out(unit_lab, "tmp-written", {"write": f"touch {folder}/file"}, [str(folder)])
    assert found["write"][0] == 0 and (folder / "file").exists()
    shutil.rmtree(folder)


def test_an_empty_home_with_what_the_model_needs(unit_lab: UnitLab) -> None:
    """vLLM writes six folders of the home; the rest of it is not even there to be read."""
    program = make_program(unit_lab.folder / "tmpfs" / "bin" / "vllm")
    (unit_lab.scope.home / "private").write_text("private")
    commands = {"cache": f"touch {unit_lab.scope.cache}/vllm/file", "home": f"ls -A {unit_lab.scope.home}", "private": "cat ~/private",
                "program": f"rm {program}"}  # fmt: skip
    found = with_out(
        unit_lab,
        "empty-home",
        commands,
        backend="vllm",
        path="org/name",
        exec=str(program),
        gpus="0",
        ProtectHome="tmpfs",
    )
    (unit_lab.scope.home / "private").unlink()
    assert found["cache"][0] == 0 and (unit_lab.scope.cache / "vllm" / "file").exists()
    assert "private" not in found["home"][1].split()
    assert found["private"][0] != 0 and found["program"][0] != 0
