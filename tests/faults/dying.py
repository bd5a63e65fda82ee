"""A real cortexd that dies, by SIGKILL, at the await that it is told; and the real cortexctl, both forked from one server.

What serves the method call that was armed is driven by hand: the call's own coroutine and every task that it spawns, each
step of each. Every time one of them hands something to the event loop to wait for counts; no list of functions is kept
here, so an await that is new is killed at, too.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

from cortexctl import main as cortexctl
from cortexd import app
from cortexd.api.server import Server
from cortexd.bus import Call
from cortexd.manager import Manager
from cortexd.sandbox.proving import Prover

ARMED, TRACE = "armed.json", "trace"
END = "end"
"""The trace's last line: nothing that serves the call is left."""

SENT, DONE = "sent", "done"
"""Killed when what is awaited has been asked for and not been answered; and when it has been, before anything follows."""

_serving: ContextVar[Points | None] = ContextVar("serving", default=None)


class Points:
    """The awaits of one use-case, in the order in which they come; the process does not outlive the one that is chosen."""

    def __init__(self, folder: Path, at: int, phase: str) -> None:
        self._trace = os.open(folder / TRACE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._at, self._phase = at, phase
        self._count = self._tasks = 0

    def began(self) -> None:
        """A task more."""
        self._tasks += 1

    def asked(self, label: str) -> int:
        """An await begins; returns its number."""
        self._count += 1
        self._write(f"{self._count} {label}")
        if (self._count, self._phase) == (self._at, SENT):
            # What was handed to the bus is written in the loop's next turn.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, _die)
        return self._count

    def answered(self, number: int) -> None:
        """It is over, and whoever awaited it is about to go on."""
        if (number, self._phase) == (self._at, DONE):
            _die()

    def ended(self) -> None:
        """A task less."""
        self._tasks -= 1
        if not self._tasks:
            self._write(END)

    def _write(self, line: str) -> None:
        os.write(self._trace, line.encode() + b"\n")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Watched(Coroutine[Any, Any, Any]):
    """A task's coroutine, driven step by step."""

    def __init__(self, inner: Coroutine[Any, Any, Any], points: Points) -> None:
        self._inner, self._points = inner, points
        self._waits_for = 0
        points.began()

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def _step(self, go_on: Any, *values: Any) -> Any:
        if self._waits_for:
            self._points.answered(self._waits_for)
        try:
            awaited = go_on(*values)
        except BaseException:
            self._points.ended()
            raise
        self._waits_for = self._points.asked(_where(self._inner))
        return awaited

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        raise TypeError("only a task drives it")


def _where(coroutine: Any) -> str:
    """The innermost line of cortexd's own that waits."""
    found = "?"
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        folder, _, file = frame.f_code.co_filename.rpartition("/cortexd/")
        if folder:
            found = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        coroutine = coroutine.cr_await
    return found


def _task_factory(folder: Path) -> Any:
    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, context: Any = None) -> asyncio.Task[Any]:
        points = _serving.get()
        if points is None and getattr(coroutine, "cr_code", None) is Server._answer.__code__:
            points = _armed(folder, coroutine.cr_frame.f_locals["call"])
            if points:
                context = context or copy_context()
                context.run(_serving.set, points)
        return asyncio.Task(Watched(coroutine, points) if points else coroutine, loop=loop, context=context)

    return make


def _armed(folder: Path, call: Call) -> Points | None:
    file = folder / ARMED
    if not file.exists() or (armed := json.loads(file.read_text()))["member"] != call.member:
        return None
    if "dry_run" in call.body[-1]:  # it only looks
        return None
    file.unlink()
    return Points(folder, armed["at"], armed["phase"])


def daemon(folder: Path, environment: Mapping[str, str], sandboxes: bool) -> None:
    """Be cortexd. `sandboxes`: there is a real systemd, in which models' sandboxes can be tried."""
    _become(environment, ["cortexd"], folder / "cortexd.log", folder / "cortexd.log")
    run = app.run

    async def run_watched(scope: Any) -> int:
        asyncio.get_running_loop().set_task_factory(_task_factory(folder))
        return await run(scope)

    app.run = run_watched
    if not sandboxes:
        Manager.prove = _no_proof  # type: ignore[method-assign]
        Prover.know = _no_proof  # type: ignore[assignment]
    app.main()


async def _no_proof(self: object) -> None:
    return None


def client(folder: Path, environment: Mapping[str, str], arguments: Sequence[str], typed: bytes) -> None:
    """Be cortexctl, with `typed` on its standard input."""
    _become(environment, ["cortexctl", *arguments], folder / "out", folder / "errors", anew=True)
    sys.stdin = io.TextIOWrapper(io.BytesIO(typed))
    cortexctl.main()


def _become(environment: Mapping[str, str], argv: list[str], out: Path, errors: Path, *, anew: bool = False) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(environment["HOME"])
    sys.argv = argv
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND)
    for path, number in ((out, 1), (errors, 2)):
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
