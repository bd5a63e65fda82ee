"""One line that shows, to a person at a terminal, what is being waited for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from cortexctl.bus import Call, Reply
from cortexctl.context import MODEL_CHANGES, Context
from cortexctl.errors import Interrupted
from cortexctl.human import clean, duration
from cortexctl.output import printable, width
from cortexd.names import model_path

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES = "|/-\\"
_CLEAR = "\r\x1b[K"


class Progress:
    """Watches models while their jobs run; silent where nobody looks on."""

    def __init__(self, context: Context, doing: str, *, loads: bool = False) -> None:
        self._context = context
        self._doing = doing
        self._loads = loads
        """What is waited for is that models are loaded, which takes as long as it usually does."""
        self._shown = context.out.interactive
        self._waiting: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._usual = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        if self._shown:
            self._context.bus.watch(MODEL_CHANGES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def follow(self, waits: Mapping[str, Call]) -> Iterator[tuple[str, Reply]]:
        """Wait for all; yields each as it ends. Raises Interrupted on Ctrl-C."""
        self._waiting = {model_path(name): name for name in waits}
        if self._shown and self._loads:
            found, _ = self._context.lookup(list(waits)) if waits else ([], {})
            self._usual = max((info["UsualLoadUSec"] / 1e6 for info in found), default=0.0)
        try:
            for name, reply in self._context.bus.gather(waits, None, self._tick if self._shown else None):
                del self._waiting[model_path(name)]
                self._clear()
                yield name, reply
        except KeyboardInterrupt:
            self._clear()
            names = " ".join(self._waiting.values())
            look = f"'{self._context.out.program} status {names}'"
            raise Interrupted(f"interrupted; {self._doing.lower()} {names} goes on, see {look}") from None

    def _clear(self) -> None:
        if self._shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        signals = self._context.bus.signals
        while signals:
            signal = signals.popleft()
            changed = signal.body[1] if len(signal.body) > 1 else {}
            text = changed.get("StatusText") or changed.get("State")
            if text:
                self._texts[signal.path] = clean(str(text))
        if not self._waiting:
            return
        elapsed = time.monotonic() - self._began
        frames = _FRAMES if printable("●") == "●" else _PLAIN_FRAMES
        named = [
            f"{name} ({self._texts[path]})" if path in self._texts else name for path, name in self._waiting.items()
        ]
        usual = f" of usually {duration(self._usual)}" if self._usual >= 1 else ""
        line = f"{frames[int(elapsed * 10) % len(frames)]} {self._doing} {', '.join(named)} … {elapsed:.0f}s{usual}"
        print(_CLEAR + line[: (width(sys.stderr) or 80) - 1], end="", file=sys.stderr, flush=True)
