"""The audit log's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Priority(StrEnum):
    """How much an event matters to a person."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


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
