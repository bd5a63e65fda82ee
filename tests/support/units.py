"""Generated units without the daemon: from settings to text, and onto the private user manager."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cortexd.backends import Backend, LaunchPlan, backend_of
from cortexd.checks import check_spec
from cortexd.model import DEFAULT_BACKEND, ModelSpec, build_spec, parse_settings
from cortexd.names import FOLDER_TEMPLATE, check_name, unit_name
from cortexd.registration import Caller, fill_in
from cortexd.scope import Scope, user_scope
from cortexd.units import files
from cortexd.units.render import Tools, render_folder_template, render_unit
from cortexd.units.tools import find_tools

FAKE_SERVER = Path(__file__).parent / "servers" / "fake_server.py"


@dataclass(frozen=True)
class Generated:
    """What a registration comes to."""

    spec: ModelSpec
    backend: Backend
    plan: LaunchPlan
    text: str


def generate(
    name: str,
    settings: Mapping[str, object],
    *,
    scope: Scope,
    tools: Tools,
    caller: Caller = Caller(),  # noqa: B008 - frozen
    others: Sequence[ModelSpec] = (),
) -> Generated:
    """As the catalog does it: settings → explicit → spec → checks → plan → text with its marker."""
    check_name(name)
    explicit = fill_in(parse_settings(settings), {}, caller, scope, others)
    backend = backend_of(str(explicit.get("backend", DEFAULT_BACKEND)), scope)
    gpus = explicit.get("gpus", ("0",))
    spec = build_spec(name, explicit, backend.defaults(len(gpus) if isinstance(gpus, tuple) else 0))
    check_spec(spec, backend, scope)
    plan = backend.plan(spec, scope.with_environment(spec.env))
    backend.check_plan(spec, plan)
    return Generated(spec, backend, plan, files.with_marker(render_unit(spec, plan, scope, tools)))


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`systemctl --user`, to its end."""
    done = subprocess.run(["systemctl", "--user", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert not check or done.returncode == 0, f"systemctl --user {arguments}: {done.returncode}\n{done.stderr}"
    return done


def properties(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit as `systemctl show` writes them."""
    wanted = [f"--property={name}" for name in names]
    return dict(line.split("=", 1) for line in systemctl("show", unit, *wanted).stdout.splitlines() if "=" in line)


def make_program(path: Path, source: Path = FAKE_SERVER) -> Path:
    """A Python file as an executable of this interpreter's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{os.path.realpath(sys.executable)} -I\n{source.read_text()}")
    path.chmod(0o755)
    return path


def free_port() -> int:
    """A port that nobody has, and that few would come upon: other sessions' tests may run beside this one."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)):
                return port


def systemd_version() -> str:
    """That of this machine's systemd."""
    return subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


class UnitLab:
    """Generated units of fake servers on this session's own (private) user manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Not under /tmp; the servers see it, and may not write it unless told so."""
        self.scope = user_scope(os.environ)
        self.tools = find_tools(systemd_version())
        self.names: list[str] = []
        self.server = make_program(folder / "llama-server")
        self.model = folder / "model.gguf"
        self.model.write_bytes(b"GGUF" + bytes(60))
        files.write(self.scope.unit_folder / FOLDER_TEMPLATE, files.with_marker(render_folder_template(self.tools)))

    def define(self, name: str, *fake: str, reload: bool = True, **settings: object) -> Generated:
        """Write a unit of a fake llama-server and reload; `fake` are more arguments for it."""
        given: dict[str, object] = {
            "path": str(self.model), "backend": "llamacpp", "exec": str(self.server), "port": free_port(), "gpus": "none",
            "memory": "1G", "extra_args": shlex.join(fake), "health.startup_timeout_seconds": 20,
        }  # fmt: skip
        given.update({key.replace("__", "."): value for key, value in settings.items()})
        generated = generate(name, given, scope=self.scope, tools=self.tools)
        files.write(self.scope.unit_folder / unit_name(name), generated.text)
        self.names.append(name)
        if reload:
            systemctl("daemon-reload")
        return generated

    def gate(self, name: str) -> Path:
        """A FIFO that a server waits at: whoever writes to it opens it."""
        path = self.folder / f"{name}.gate"
        os.mkfifo(path)
        return path

    def drop_in(self, name: str, text: str) -> None:
        """A drop-in of the user's."""
        folder = self.scope.unit_folder / f"{unit_name(name)}.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(text)
        systemctl("daemon-reload")

    def start(self, name: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`systemctl --user start` and nothing else."""
        return systemctl("start", unit_name(name), check=check)

    def state(self, name: str) -> dict[str, str]:
        """What systemd says of the model's unit."""
        return properties(
            unit_name(name), "LoadState", "ActiveState", "SubState", "Result", "StatusText", "MainPID", "NRestarts"
        )

    def close(self) -> None:
        """Leave nothing behind."""
        for name in self.names:
            systemctl("kill", "--signal=KILL", unit_name(name), check=False)
            systemctl("stop", unit_name(name), check=False)
            (self.scope.unit_folder / unit_name(name)).unlink(missing_ok=True)
            shutil.rmtree(self.scope.unit_folder / f"{unit_name(name)}.d", ignore_errors=True)
        (self.scope.unit_folder / FOLDER_TEMPLATE).unlink(missing_ok=True)
        systemctl("daemon-reload")
        systemctl("reset-failed")
        shutil.rmtree(self.folder)
