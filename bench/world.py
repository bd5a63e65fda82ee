"""The machine that is measured: an installed cortexd on a private `systemd --user`, with as many models as a row wants."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from bench.measure import run
from bench.peers import PROJECT
from cortexd.bus import Bus, Variant, session_address
from cortexd.names import BUS_NAME, JOB_INTERFACE, MANAGER_INTERFACE, MODEL_INTERFACE, ROOT_PATH, model_path, unit_name

T = TypeVar("T")

FIRST_PORT = 12000
_AT_ONCE = 16
"""Starts under way at a time."""
_QUIET = 5.0
"""Milliseconds of CPU time in a second of a daemon that has nothing to do."""


class World:
    """One cortexd, and the folders of its peers."""

    def __init__(self, folder: Path, *, short: bool, problems: Mapping[str, str]) -> None:
        self.folder, self.short, self.problems = folder, short, problems
        self.runs = 2 if short else 10
        self.sizes = (1, 3) if short else (1, 100, 1000)
        """Numbers of models."""
        self.home = Path.home()
        self.work = self.home / "bench"
        self.venv = folder / "venv" / "bin"
        self.units = self.home / ".config" / "systemd" / "user"
        self._loop = asyncio.new_event_loop()
        self._registered = self._running = 0

    def __enter__(self) -> Self:
        self.work.mkdir()
        shutil.copy(PROJECT / ".demo" / "tiny.gguf", self.work)
        self.server = self.work / "server"
        source = (PROJECT / "bench" / "server.py").read_text()
        self.server.write_text(f"#!{Path(sys.executable).resolve()} -IS\n{source}")
        self.server.chmod(0o755)
        os.environ["PATH"] = f"{self.venv}:{os.environ['PATH']}"
        run([PROJECT / "scripts" / "install", "--venv", self.venv.parent])
        self.bus = self.wait(Bus.connect(session_address(os.environ)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bus.close()
        self.wait(asyncio.sleep(0.1))  # the connection's tasks see its end
        self._loop.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self._loop.run_until_complete(work)

    # The daemon

    def pid(self) -> int:
        """The daemon's."""
        return int(run(["systemctl", "--user", "show", "--property=MainPID", "--value", "cortexd"]))

    def restart(self) -> None:
        """A daemon that has done nothing yet."""
        run(["systemctl", "--user", "restart", "cortexd"])

    def call(self, member: str, signature: str = "", *body: Any, path: str = ROOT_PATH) -> list[Any]:
        """Call the daemon, or one of its models."""
        interface = MANAGER_INTERFACE if path == ROOT_PATH else MODEL_INTERFACE
        return self.wait(self.bus.call(BUS_NAME, path, interface, member, signature, body, timeout=300))

    # Models

    def settings(self, number: int, **more: object) -> dict[str, Any]:
        """Of a model whose server is ready at once. Health checks are off: rows that want them say so."""
        given: dict[str, object] = {
            "backend": "llamacpp", "path": self.work / "tiny.gguf", "exec": self.server, "port": FIRST_PORT + number,
            "gpus": "none", "health.enabled": "no",
        }  # fmt: skip
        given |= {name.replace("__", "."): value for name, value in more.items()}
        return {name: Variant("s", str(value)) for name, value in given.items()}

    def register(self, name: str, number: int, **more: object) -> str:
        """One model; returns its unit."""
        self.call("Register", "sa{sv}a{sv}", name, self.settings(number, **more), {})
        return unit_name(name)

    def register_all(self, names: Iterable[str], **more: object) -> None:
        """Many at once, on ports from FIRST_PORT on."""
        self.call("RegisterModels", "a(sa{sv})a{sv}", [[n, self.settings(i, **more)] for i, n in enumerate(names)], {})

    def models(self, registered: int, running: int = 0, **more: object) -> None:
        """Have exactly so many, `running` of them started."""
        self.reset()
        if registered:
            self.register_all((name(i) for i in range(registered)), **more)
        self.start(map(name, range(running)))

    def start(self, names: Iterable[str]) -> None:
        """Start models and wait until they are ready."""

        async def all_of_them() -> None:
            slots = asyncio.Semaphore(_AT_ONCE)
            await asyncio.gather(*(self._start(each, slots) for each in names))

        self.wait(all_of_them())

    async def _start(self, model: str, slots: asyncio.Semaphore) -> None:
        async with slots:
            (job,) = await self.bus.call(
                BUS_NAME, model_path(model), MODEL_INTERFACE, "Start", "a{sv}", [{}], timeout=300
            )
            await self.bus.call(BUS_NAME, job, JOB_INTERFACE, "Wait", "a{sv}", [{}], timeout=300)

    def reset(self) -> None:
        """No model, and a daemon that knows of none."""
        run(["systemctl", "--user", "stop", "cortexd"])
        run(["systemctl", "--user", "stop", "cortex-*.service", "cortex.slice"], allow=(0, 5))
        for path in self.units.glob("cortex-*.service"):
            path.unlink()
        shutil.rmtree(self.home / ".cortex", ignore_errors=True)
        run(["systemctl", "--user", "daemon-reload"])
        run(["systemctl", "--user", "reset-failed"])
        run(["systemctl", "--user", "start", "cortexd"])

    def settle(self) -> None:
        """Wait until the daemon has done what it does after it is ready, such as trying sandboxes. Raises RuntimeError where it
        never rests."""
        pid = self.pid()

        def rests() -> bool:
            before = cpu(pid)
            time.sleep(1)
            return cpu(pid) - before < _QUIET

        until(rests, "cortexd to rest")

    def hand_written(self, unit: str, text: str) -> None:
        """A unit of the user's own."""
        (self.units / unit).write_text(text)
        run(["systemctl", "--user", "daemon-reload"])


def name(number: int) -> str:
    """A model's."""
    return f"m{number:04}"


def until(condition: Callable[[], object], what: str, seconds: float = 60, every: float = 0.002) -> float:
    """Poll; returns time.monotonic() when it holds. Raises RuntimeError when the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(every)
    return time.monotonic()


def pss(pid: int) -> float:
    """MB (not MiB) of a process's proportional set size (proc_pid_smaps_rollup(5), whose kB are KiB)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def cpu(pid: int) -> float:
    """Milliseconds that a process has used: of all its threads, those that have ended, too (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2) * 1e3


def shown(unit: str, key: str) -> str:
    """A property of a unit of systemd's."""
    return run(["systemctl", "--user", "show", f"--property={key}", "--value", unit]).strip()


def spawn(*command: object, **environment: str) -> subprocess.Popen[bytes]:
    """A peer's daemon."""
    return subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )  # fmt: skip
