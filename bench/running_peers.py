"""supervisord, pm2 and monit at work, each with as many programs as a row wants."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.measure import run
from bench.world import World, spawn, until


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Supervisor:
    """supervisord; every program is there, and those of `running` are started with it."""

    def __init__(self, world: World) -> None:
        self._bin = world.folder / "supervisor" / "bin"
        self._folder = world.work
        self._conf, self._socket = world.work / "supervisord.conf", world.work / "supervisor.sock"

    def configure(self, programs: Mapping[str, Sequence[object]], *, running: int = 0, more: str = "") -> None:
        """Write its file."""
        text = (
            f"[unix_http_server]\nfile={self._socket}\n[supervisord]\nlogfile={self._folder}/supervisord.log\n"
            f"pidfile={self._folder}/supervisord.pid\nchildlogdir={self._folder}\nminfds=4096\n[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{self._socket}\n"
        )
        for number, (name, command) in enumerate(programs.items()):
            words = " ".join(map(str, command))
            text += f"[program:{name}]\ncommand={words}\nautostart={number < running}\nstdout_logfile=NONE\n"
            text += f"stderr_logfile=NONE\n{more}\n"
        self._conf.write_text(text)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it and wait until it answers."""
        process = spawn(self._bin / "supervisord", "-n", "-c", self._conf)
        until(self._answers, "supervisord")
        return process

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            try:
                client.connect(str(self._socket))
                body = b"<?xml version='1.0'?><methodCall><methodName>supervisor.getState</methodName></methodCall>"
                client.sendall(
                    b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
                    % len(body)
                    + body
                )
                return client.recv(64).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

    @contextmanager
    def at_work(self) -> Iterator[subprocess.Popen[bytes]]:
        """Inside, it runs."""
        process = self.start()
        try:
            yield process
        finally:
            _end(process)

    def control(self, *words: str) -> list[object]:
        """A command line of supervisorctl."""
        return [self._bin / "supervisorctl", "-c", self._conf, *words]


class Pm2:
    """pm2's daemon; apps are listed and stopped, but for the first `running`."""

    def __init__(self, world: World) -> None:
        self._program = world.folder / "npm" / "node_modules" / ".bin" / "pm2"
        self._home = world.work / "pm2"
        os.environ["PM2_HOME"] = str(self._home)
        os.environ["PM2_DISCRETE_MODE"] = "true"  # no banner

    def control(self, *words: object) -> list[object]:
        """A command line of pm2."""
        return [self._program, *words]

    @contextmanager
    def at_work(self, apps: Mapping[str, Sequence[object]], *, running: int = 0) -> Iterator[int]:
        """Inside, it runs; gives its daemon's pid."""
        self._home.mkdir(exist_ok=True)
        listed = [
            {
                "name": name, "script": str(command[0]), "args": [str(word) for word in command[1:]], "interpreter": "none",
                "autostart": number < running,
            }
            for number, (name, command) in enumerate(apps.items())
        ]  # fmt: skip
        run(self.control("ping"))
        try:
            if listed:
                file = self._home / "ecosystem.json"
                file.write_text(json.dumps({"apps": listed}))
                run(self.control("start", file))
            yield int((self._home / "pm2.pid").read_text())
        finally:
            run(self.control("kill"))
            shutil.rmtree(self._home, ignore_errors=True)


class Monit:
    """A monit with a file of its own."""

    def __init__(self, world: World) -> None:
        self._program = world.folder / "monit" / "usr" / "bin" / "monit"
        self._work = world.work

    @contextmanager
    def at_work(self, checks: str, *, every: int, name: str = "monit") -> Iterator[int]:
        """Inside, it runs; gives its pid. `every`: seconds from one cycle to the next."""
        folder = self._work / name
        folder.mkdir()
        conf: Path = folder / "rc"
        conf.write_text(
            f"set daemon {every}\nset log {folder}/log\nset pidfile {folder}/pid\nset idfile {folder}/id\n"
            f"set statefile {folder}/state\n{checks}\n"
        )
        conf.chmod(0o600)
        process = spawn(self._program, "-I", "-c", conf)
        try:
            until(lambda: "starting" in (folder / "log").read_text().lower() if (folder / "log").exists() else False,
                  "monit")  # fmt: skip
            yield process.pid
        finally:
            _end(process)
            shutil.rmtree(folder, ignore_errors=True)
