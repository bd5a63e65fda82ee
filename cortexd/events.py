"""The audit log's words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from cortexd.kinds import ENVIRONMENT, looks_secret, redacted


class Priority(StrEnum):
    """How much an event matters to a person."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


REFUSED = "start-refused"
"""The kind of event of a start that was not tried, since something speaks against it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a model. `time` is microseconds since the epoch; `actor` is who asked, empty for us."""

    model: str
    kind: str
    message: str
    priority: Priority = Priority.INFO
    details: Mapping[str, Any] = field(default_factory=dict)
    invocation_id: str = ""
    actor: str = ""
    time: int = 0
    id: int = 0


MAX_TEXT = 4096
"""Characters of a message, and of each text of the details; more are cut off."""


def bounded(event: Event) -> Event:
    """As the audit log keeps it, whatever a caller, a server or a file has put into it."""

    def cut(value: Any) -> Any:
        long = isinstance(value, str) and len(value) > MAX_TEXT
        return value[: MAX_TEXT - 1] + "…" if long else value

    return replace(event, message=cut(event.message), details={name: cut(each) for name, each in event.details.items()})


@dataclass(frozen=True, slots=True)
class Ending:
    """That a run (its InvocationID) is being brought to its end: by cortexd (stop, gave-up, kill, health), with which signal, or
    by systemd itself, which was told to stop it (systemd)."""

    run: str = ""
    by: str = ""
    signal: int = 0
    reason: str = field(default="", compare=False)
    """Why, where it was no person's wish."""

    def stops(self, run: str) -> bool:
        """Whether it is a stop of that run: what else is done to the run then makes it nobody's failure."""
        return self.run == run and self.by in ("stop", "gave-up", "systemd")


def shown_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings, checked already, as the audit log may keep them: the log outlives the model, so what looks like a secret
    is left out."""
    return {name: _shown_env(value) if name == "env" else redacted(str(value)) for name, value in settings.items()}


def _shown_env(raw: object) -> str:
    items = ENVIRONMENT.parse(raw) if raw != "" else ()
    assert isinstance(items, tuple)
    pairs = (item.partition("=") for item in items)
    return shlex.join(f"{name}=…" if looks_secret(name, value) else f"{name}={value}" for name, _, value in pairs)
