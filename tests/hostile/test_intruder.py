"""A hostile model server against the daemon, the user's manager, and another model: same user, real unit, real sandbox.

Each attempt is also made outside: one that fails there, too, would prove nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile import intruder
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import free_port, make_program

SECRET = "the-other-models-secret"
ABSTRACT = "@/tmp/dbus-of-an-old-session"
"""Where dbus-launch and the like have their bus, and X servers a socket, too: a name that is in no folder."""
LIFT = """mount -t cgroup2 none /mnt && mkdir /mnt/kid && { sh -c '
    echo 0 >/mnt/kid/cgroup.procs && exec unshare --cgroup sh -c "echo max >/mnt/cgroup.max.depth"'; s=$?; rmdir /mnt/kid; exit $s; }"""
"""As root of namespaces of its own: a limit of its control group, by a namespace of a group below, which `nsdelegate` takes for
its own business. This limit is there with every controller."""


@dataclass(frozen=True)
class Found:
    """Why each attempt failed ("" where it succeeded), inside the sandbox and outside."""

    inside: dict[str, str]
    outside: dict[str, str]

    def open(self, *names: str) -> set[str]:
        """Those of `names` that succeeded inside. All of them have to succeed outside."""
        failed = {name: self.outside[name] for name in names if self.outside[name]}
        assert not failed, f"fails without a sandbox, too: {failed}"
        return {name for name in names if not self.inside[name]}


def attempts(victim: int, port: int, daemon: int, terminal: str, segment: int) -> dict[str, list[str]]:
    """What is tried."""
    home, runtime = Path.home(), os.environ["XDG_RUNTIME_DIR"]
    units = home / ".config/systemd/user"
    bus = f"busctl --address=unix:path={runtime}/bus"
    return {
        "bus": ["connect", f"{runtime}/bus"],
        "private": ["connect", f"{runtime}/systemd/private"],
        "bus by environment": ["run", f"XDG_RUNTIME_DIR={runtime} systemctl --user list-units"],
        "start a unit": ["run", f"XDG_RUNTIME_DIR={runtime} systemd-run --user --wait true"],
        "the daemon": [
            "run",
            f"{bus} call org.cortexlinux.Cortex1 /org/cortexlinux/Cortex1 org.cortexlinux.Cortex1.Manager ListJobs",
        ],
        "runtime folder": ["look", f"{runtime}/systemd/units"],
        "write the runtime folder": ["write", f"{runtime}/intruder"],
        "database": ["read", f"{home}/.cortex/models.db"],
        "secrets": ["read", f"{home}/.cortex/secrets/victim/environment", SECRET],
        "write secrets": ["write", f"{home}/.cortex/secrets/victim/environment"],
        "unit of another": ["read", f"{units}/cortex-victim.service"],
        "write a unit": ["write", f"{units}/intruder.service"],
        "link a unit": ["link", f"{units}/intruder.service"],
        "write a shell start-up": ["write", f"{home}/.bashrc"],
        "write a bus service": ["write", f"{home}/.local/share/dbus-1/services/intruder.service"],
        "write an autostart": ["write", f"{home}/.config/autostart/intruder.desktop"],
        "write a backend": ["write", f"{home}/.config/cortex/backends/intruder.toml"],
        "write a key": ["write", f"{home}/.ssh/authorized_keys"],
        "environment": ["read", f"/proc/{victim}/environ", SECRET],
        "memory": ["memory", str(victim)],
        "trace": ["trace", str(victim)],
        "files that it has open": ["follow", f"/proc/{victim}/fd/0"],
        "how many files it has open": ["look", f"/proc/{victim}/fd"],
        "root": ["look", f"/proc/{victim}/root/home"],
        "memory of the daemon": ["memory", str(daemon)],
        "trace the daemon": ["trace", str(daemon)],
        "environment of the daemon": ["read", f"/proc/{daemon}/environ"],
        "root of the daemon": ["look", f"/proc/{daemon}/root/home"],
        "command line": ["read", f"/proc/{victim}/cmdline"],
        "home": ["read", f"{home}/diary"],
        "port of another": ["reach", str(port)],
        "kill another": ["signal", str(victim)],
        "kill the daemon": ["signal", str(daemon)],
        "bus by the daemon's root": ["connect", f"/proc/{daemon}/root{runtime}/bus"],
        "bus by an abstract name": ["connect", ABSTRACT],
        "limits": ["run", f"unshare --user --map-root-user --mount --cgroup sh -c {shlex.quote(LIFT)}"],
        "a namespace of control groups": ["run", "unshare --user --map-root-user --cgroup true"],
        "terminal": ["write", terminal],
        "terminals": ["look", "/dev/pts"],
        "socket in /run": ["connect", "/run/systemd/journal/stdout"],
        "socket in home": ["connect", f"{home}/listening"],
        "shared memory of System V": ["attach", str(segment)],
    }


@pytest.fixture(scope="module")
def found(shared_daemon: Daemon) -> Found:
    """A victim with a secret, an intruder beside it, and the same attempts from outside."""
    cortex, folder = Cortex(), Path.home() / "intrusion"
    program = make_program(folder / "llama-server", Path(intruder.__file__))
    (folder / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    out = folder / "out"
    out.mkdir()
    (Path.home() / "diary").write_text("private")
    for where in (".local/share/dbus-1/services", ".config/autostart", ".config/cortex/backends", ".ssh"):
        (Path.home() / where).mkdir(parents=True, exist_ok=True)

    def register(name: str, port: int, *more: str) -> None:
        cortex.run("register", name, "--path", str(folder / "model.gguf"), "--backend", "llamacpp", "--exec", str(program),
                   "--gpus", "none", "--memory", "1G", "--port", str(port), *more)  # fmt: skip

    port = free_port()
    register("victim", port)
    command = [sys.executable, "-m", "cortexctl", "secret", "set", "victim", "X_SECRET"]
    subprocess.run(command, input=SECRET.encode(), check=True, capture_output=True, cwd=lab.PROJECT)
    cortex.run("start", "victim")
    victim = int(cortex.properties("victim")["MainPID"])
    assert shared_daemon.process is not None
    bus = subprocess.Popen(["dbus-daemon", "--session", "--nofork", f"--address=unix:abstract={ABSTRACT[1:]}", "--print-address"],
                           stdout=subprocess.PIPE)  # fmt: skip
    assert bus.stdout is not None and bus.stdout.readline()  # it listens now
    mine, theirs = os.openpty()
    segment = int(
        subprocess.run(["ipcmk", "-M", "4096"], check=True, capture_output=True, text=True).stdout.split()[-1]
    )
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(Path.home() / "listening"))
    listening.listen()
    wanted = attempts(victim, port, shared_daemon.process.pid, os.ttyname(theirs), segment)
    for file in ("inside", "outside"):
        (out / f"{file}.json").write_text(json.dumps(wanted))
    subprocess.run([program, "--attempts", str(out / "outside.json")], check=True, timeout=60)
    register("intruder", free_port(), f"--extra-args=--attempts {out}/inside.json", "--set", f"ReadWritePaths={out}")
    cortex.run("start", "intruder")
    bus.kill()
    bus.communicate()
    for descriptor in (mine, theirs):
        os.close(descriptor)
    listening.close()
    subprocess.run(["ipcrm", "-m", str(segment)], check=True)
    return Found(json.loads((out / "inside.out").read_text()), json.loads((out / "outside.out").read_text()))


def test_the_bus_and_the_manager_are_out_of_reach(found: Found) -> None:
    names = ("bus", "private", "bus by environment", "bus by the daemon's root", "start a unit", "the daemon")
    assert found.open(*names) == set()
    assert found.open("runtime folder", "write the runtime folder") == set()


def test_our_files_are_out_of_reach(found: Found) -> None:
    names = ("database", "secrets", "write secrets", "unit of another", "write a unit", "link a unit")
    assert found.open(*names) == set()


def test_nothing_that_runs_later_outside_the_sandbox_can_be_written(found: Found) -> None:
    names = ("write a shell start-up", "write a bus service", "write an autostart", "write a backend", "write a key")
    assert found.open(*names) == set()


def test_another_models_process_is_out_of_reach(found: Found) -> None:
    assert found.open("environment", "memory", "trace", "files that it has open", "root") == set()


def test_the_daemons_process_is_out_of_reach(found: Found) -> None:
    names = ("memory of the daemon", "trace the daemon", "environment of the daemon", "root of the daemon")
    assert found.open(*names) == set()


def test_its_limits_are_not_its_own_to_lift(found: Found) -> None:
    assert found.open("limits", "a namespace of control groups") == set()


def test_the_users_terminals_are_out_of_reach(found: Found) -> None:
    assert found.open("terminal", "terminals") == set()


def test_the_machines_sockets_are_out_of_reach(found: Found) -> None:
    """Of journald that one by which a line comes under another unit's name."""
    assert found.open("socket in /run") == set()


def test_what_stays_open_is_what_the_documentation_says(found: Found) -> None:
    """docs/security.md, "What stays open". One of these closed would be good news, and a line less there."""
    names = (
        "home", "command line", "how many files it has open", "port of another", "kill another", "kill the daemon",
        "bus by an abstract name", "socket in home", "shared memory of System V",
    )  # fmt: skip
    assert found.open(*names) == set(names)
