"""One line that shows, to a person at a terminal, what is being waited for."""

from __future__ import annotations

import re
import sys
import time

from cortexctl.bus import Call
from cortexctl.context import MODEL_CHANGES, Context
from cortexctl.errors import CtlError, DaemonError, Interrupted
from cortexctl.human import clean, duration
from cortexctl.output import ACTIVE, LOST, printable, width
from cortexd.names import model_path

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from cortexctl.bus import Reply
    from cortexctl.context import Info

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES = "|/-\\"
_CLEAR = "\r\x1b[K"
_ELAPSED = r"(?<=\()(\d+ min )?\d+ s, | \((\d+ min )?\d+ s\)$"
"""The seconds in the waiter's status: the line has its own."""
_LEAST = 10
"""Columns below which a reason says nothing."""
TICK = 0.1
"""Seconds between two frames."""


_WITHOUT_DAEMON = ("DaemonEnded", "DaemonUnavailable", "NotInstalled", "NoSuchJob")
"""How a wait for a job ends whose daemon has ended: meanwhile, just before it, or so that another one answers."""


class Progress:
    """Watches models while they are waited for; silent where nobody looks on."""

    def __init__(self, context: Context, doing: str, *, loads: bool = False) -> None:
        self._context = context
        self._doing = doing
        self._loads = loads
        """What is waited for is that models are loaded, which takes as long as it usually does."""
        self.shown = context.out.interactive
        self._waiting: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._usual = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        if self.shown:
            self._context.bus.watch(MODEL_CHANGES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def follow(self, waits: Mapping[str, Call]) -> Iterator[tuple[str, Reply]]:
        """Wait for all; yields each as it ends. Raises Interrupted on Ctrl-C, DaemonError where cortexd ends meanwhile and is not
        started again, or not for what would load."""
        self._waiting = {model_path(name): name for name in waits}
        if self.shown and self._loads:
            found, _ = self._context.lookup(list(waits)) if waits else ([], {})
            self.expect(found)
        try:
            for name, reply in self._context.bus.gather(waits, None, self._tick if self.shown else None):
                if isinstance(reply, CtlError) and reply.name in _WITHOUT_DAEMON:
                    yield from self._go_on()
                    return
                del self._waiting[model_path(name)]
                self.clear()
                yield name, reply
        except KeyboardInterrupt:
            self.clear()
            names = " ".join(self._waiting.values())
            look = f"'{self._context.out.program} status {names}'"
            raise Interrupted(f"interrupted; {self._doing.lower()} {names} goes on, see {look}") from None

    def expect(self, infos: Iterable[Info]) -> None:
        """Take the longest usual time to load of these models as the estimate."""
        self._usual = max((info["UsualLoadUSec"] / 1e6 for info in infos), default=0.0)

    def since(self, infos: Iterable[Info], now: float) -> None:
        """Count from when the first of these models began to start; `now` is seconds since the epoch."""
        begun = [now - info["StateChangeTimestamp"] / 1e6 for info in infos if info["State"] == "starting"]
        self._began -= max((seconds for seconds in begun if 0 < seconds < now), default=0.0)

    def note(self, path: str, changed: Mapping[str, object]) -> None:
        """Properties of a model have changed."""
        text = changed.get("StatusText") or changed.get("State")
        if text:
            self._texts[path] = clean(re.sub(_ELAPSED, "", str(text)))

    def draw(self, waiting: Mapping[str, str]) -> None:
        """Show the line now; `waiting` is object path → name of what is not done yet."""
        if not self.shown or not waiting:
            return
        elapsed = time.monotonic() - self._began
        frames = _FRAMES if printable("●") == "●" else _PLAIN_FRAMES
        frame = frames[int(elapsed / TICK) % len(frames)]
        texts = {name: self._texts.get(path, "") for path, name in waiting.items()}
        text = compose(self._doing, texts, elapsed, self._usual, (width(sys.stderr) or 80) - 1 - len(frame) - 1)
        print(f"{_CLEAR}{frame} {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def _go_on(self) -> Iterator[tuple[str, Reply]]:
        """cortexd has ended, and with it its jobs. What loads goes on, and the next cortexd, where the bus starts one, says
        what became of it; what a stop or a removal came to, its next start decides."""
        from cortexctl.waiting import settled, watch

        if not self._loads:
            raise self._without_daemon()
        try:
            watch(self._context)
            found, gone = self._context.lookup(list(self._waiting.values()))
            yield from gone.items()
            for info in settled(self._context, self, found, lambda info: info["State"] in (*ACTIVE, *LOST)):
                name, reason = info["Name"], info["StateReason"] or f"it is {info['State']}"
                del self._waiting[model_path(name)]
                yield name, ("done", []) if info["State"] in ACTIVE else CtlError("JobFailed", reason)
        except DaemonError:
            raise self._without_daemon() from None

    def _without_daemon(self) -> DaemonError:
        """What goes on is systemd's work, or is done by the next cortexd; who wants to see its end has to ask again."""
        program, names = self._context.out.program, " ".join(self._waiting.values())
        verb, does = ("wait", "waits for it") if self._loads else ("status", "shows how it is")
        return DaemonError(
            "DaemonEnded",
            f"cortexd ended meanwhile; {self._doing.lower()} {names} goes on, '{program} {verb} {names}' {does}, "
            "and 'journalctl --user -u cortexd.service' may say why cortexd ended",
        )

    def _tick(self) -> None:
        signals = self._context.bus.signals
        while signals:
            signal = signals.popleft()
            self.note(signal.path, signal.body[1] if len(signal.body) > 1 else {})
        self.draw(self._waiting)


def compose(doing: str, texts: Mapping[str, str], elapsed: float, usual: float, room: int) -> str:
    """The line in `room` columns: what and how long first, then, as far as there is room, what each model says of itself."""
    figure = _seconds(elapsed)
    if usual >= 1:
        long = f"{figure} of usually {_seconds(usual)}"
        figure = long if len(long) <= room // 2 else f"{figure} of {_seconds(usual)}"
    what = _cut(f"{doing} {', '.join(texts)}", room - len(figure) - 2)
    head = f"{what}: {figure}"
    rest = room - len(head) - len(" ()")
    if len(texts) == 1:
        reasons = "".join(texts.values())
    else:
        reasons = "; ".join(f"{name}: {text}" for name, text in texts.items() if text)
    return f"{head} ({_cut(reasons, rest)})" if reasons and rest >= _LEAST else head[: max(room, 0)]


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 60 else duration(seconds)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room - 1, 0)] + "…"
