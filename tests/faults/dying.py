"""A real cortexd that dies, by SIGKILL, at the point that it is told; and the real cortexctl, both forked from one server.

What serves the method call that was armed is driven by hand: the call's own coroutine and every task that it spawns, each
step of each. No list of functions is kept here, so an await that is new is killed at, too. Points are counted as they come:

    done  something that was awaited is there, and nothing of what follows it has happened
    sent  whatever this turn of the event loop awaits has been handed out, and not been answered; all that a turn awaits
          together is one point, since it would die in the same instant
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncContextDecorator
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

from cortexctl import main as cortexctl
from cortexd import app
from cortexd.api.server import Server
from cortexd.bus import Call
from cortexd.manager import Manager
from cortexd.recovery import Recovery
from cortexd.sandbox.proving import Prover

ARMED, TRACE = "armed.json", "trace"
END = "end"
"""The trace's last line: nothing that serves the call is left."""

STARTING = "a daemon's start"
"""Armed in place of a method: from a daemon's first await until it has finished what the one before it had begun."""

SENT, DONE = "sent", "done"
AND = " & "


_serving: ContextVar[Points | None] = ContextVar("serving", default=None)


def awaits(point: str) -> set[str]:
    """Which await, or awaits of one turn, a line of the trace is about; each with its phase in front."""
    phase, _, where = point.partition(" ")
    return {f"{phase} {each}" for each in where.split(AND)}


class Points:
    """The points of one use-case, in the order in which they come; the process does not outlive the one that is chosen."""

    def __init__(self, folder: Path, at: int | str) -> None:
        self._trace = os.open(folder / TRACE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._at = at
        self._count = self._tasks = 0
        self._handed_out: list[str] = []
        self.over = False

    def began(self) -> None:
        """A task more."""
        self._tasks += 1

    def asked(self, where: str) -> None:
        """An await begins."""
        if not self._handed_out:
            # What was handed to the bus is written in the loop's next turn.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._sent)
        self._handed_out.append(where)

    def _sent(self) -> None:
        if self._tasks:
            self._come(SENT, dict.fromkeys(self._handed_out))
        self._handed_out.clear()

    def answered(self, where: str) -> None:
        """It is over, and whoever awaited it is about to go on."""
        self._come(DONE, [where])

    def ended(self) -> None:
        """A task less."""
        self._tasks -= 1
        if not self._tasks:
            self.end()

    def end(self) -> None:
        """Nothing that comes now is a part of it."""
        if not self.over:
            self._write(END)
        self.over = True

    def _come(self, phase: str, where: Iterable[str]) -> None:
        if self.over:
            return
        self._count += 1
        point = phase + " " + AND.join(where)
        self._write(point)
        if self._at == self._count or self._at in awaits(point):
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, line: str) -> None:
        os.write(self._trace, line.encode() + b"\n")


class Watched(Coroutine[Any, Any, Any]):
    """A task's coroutine, driven step by step."""

    def __init__(self, inner: Coroutine[Any, Any, Any], points: Points) -> None:
        self._inner, self._points = inner, points
        self._waits_for = ""
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
        self._waits_for = _where(self._inner)
        self._points.asked(self._waits_for)
        return awaited

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        raise TypeError("only a task drives it")


def _where(coroutine: Any) -> str:
    """The lines of cortexd's own that wait, the innermost last."""
    found = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        folder, _, file = frame.f_code.co_filename.rpartition("/cortexd/")
        if folder:
            found.append(f"{file}:{frame.f_lineno} {frame.f_code.co_name}")
        manager = frame.f_locals.get("self")  # what drives an asynchronous generator does not say which
        is_manager = isinstance(manager, AsyncContextDecorator) and hasattr(manager, "gen")
        coroutine = (
            manager.gen if is_manager else getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
        )
    return " > ".join(found) or "?"


def _task_factory(folder: Path) -> Any:
    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, context: Any = None) -> asyncio.Task[Any]:
        points = context.run(_serving.get) if context else _serving.get()
        if points and points.over:
            points = None
        if points is None and getattr(coroutine, "cr_code", None) is Server._answer.__code__:
            points = _points_of(folder, coroutine.cr_frame.f_locals["call"])
            if points:
                context = context or copy_context()
                context.run(_serving.set, points)
        return asyncio.Task(Watched(coroutine, points) if points else coroutine, loop=loop, context=context)

    return make


def _armed(folder: Path, member: str) -> Points | None:
    file = folder / ARMED
    if not file.exists() or (armed := json.loads(file.read_text()))["member"] != member:
        return None
    file.unlink()
    return Points(folder, armed["at"])


def _points_of(folder: Path, call: Call) -> Points | None:
    if call.body and "dry_run" in call.body[-1]:  # it only looks
        return None
    return _armed(folder, call.member)


def daemon(folder: Path, environment: Mapping[str, str], sandboxes: bool) -> None:
    """Be cortexd. `sandboxes`: there is a real systemd, in which models' sandboxes can be tried."""
    _become(environment, ["cortexd"], folder / "cortexd.log", folder / "cortexd.log")
    run, recover = app.run, Recovery.run

    async def run_watched(scope: Any) -> int:
        asyncio.get_running_loop().set_task_factory(_task_factory(folder))
        _serving.set(_armed(folder, STARTING))
        return await asyncio.create_task(run(scope))

    async def recover_watched(self: Recovery) -> None:
        await recover(self)
        if points := _serving.get():
            points.end()

    app.run, Recovery.run = run_watched, recover_watched  # type: ignore[method-assign]
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
