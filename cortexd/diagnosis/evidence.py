"""What is known of a run that is over: from systemd, the kernel, the health probes and the run's own log lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cortexd.diagnosis.finding import plain
from cortexd.events import Ending
from cortexd.kinds import size_text
from cortexd.model import ModelSpec
from cortexd.runlog import LINES, RunLog
from cortexd.states import NOT_READY
from cortexd.systemd.memory import MemoryEvents
from cortexd.systemd.protocol import UnitState

_MAX_LINE, _MAX_SHOWN = 1000, 300  # characters

_SECRET = re.compile(
    r"((?:api[_-]?key|token|secret|passwo?r?d)['\"]?\s?(?:=|:|\s)\s?\[?['\"]?)[^\s'\",\]]{4,}|\bhf_\w{8,}",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """`text` without what looks like a secret: events outlive the model, and anybody may be shown them."""
    return _SECRET.sub(lambda found: (found[1] or "") + "…", text)


@dataclass(frozen=True, slots=True)
class Line:
    """A log line without what is for terminals. `manager`: systemd said it, not the model's processes."""

    text: str
    manager: bool = False

    @property
    def shown(self) -> str:
        """As it may be kept and shown: shortened, and what looks like a secret left out."""
        return plain(masked(self.text), _MAX_SHOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One run and how it ended. `unit` is its state right after that; `ending` and `stopped_by` are of this run."""

    spec: ModelSpec
    unit: UnitState
    executable: str = ""
    """argv[0] of its server."""
    stop_seconds: int = 0
    """What its unit gives it to end after a stop."""
    ending: Ending = field(default_factory=Ending)
    stopped_by: str = ""
    """Who asked cortexd to stop this run, as the audit log names them; empty if nobody did."""
    probes: str = ""
    """The last word of the health probes about this run; empty where none failed."""
    memory: MemoryEvents | None = None
    lines: tuple[Line, ...] = ()
    lost: str = ""
    """Why lines may be missing; empty where none can be."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What a sentence about the model may name."""
        spec = self.spec
        return {
            "name": spec.name,
            "path": plain(spec.path, _MAX_SHOWN),
            "port": str(spec.port),
            "host": spec.host,
            "memory": size_text(spec.limits.memory),
            "max_model_len": str(spec.max_model_len),
            "tensor_parallel": str(spec.tensor_parallel),
        }

    def said(self, *parts: str) -> Line | None:
        """The last line of systemd's own in which all `parts` are. It only details what the unit's Result says."""
        wanted = (line for line in reversed(self.lines) if line.manager and all(part in line.text for part in parts))
        return next(wanted, None)

    @property
    def own_lines(self) -> list[Line]:
        """What the server said, oldest first: neither systemd nor the waiter, whose word is the unit's status."""
        return [line for line in self.lines if not line.manager and not line.text.startswith(NOT_READY)]


def with_status(unit: UnitState, lines: Sequence[Line]) -> UnitState:
    """The state of a unit after its run, with the waiter's last word: of a past run the log alone has that."""
    told = (line.text for line in reversed(lines) if not line.manager and line.text.startswith(NOT_READY))
    return unit if unit.status_text else replace(unit, status_text=next(told, ""))


def lines_of(log: RunLog) -> tuple[Line, ...]:
    """The last lines of a run's log. Hostile: bounded in every direction."""
    return tuple(Line(line.text[:_MAX_LINE], line.manager) for line in log.lines[-LINES:])
