"""What a probe's outcome means: a pure state machine, one per model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from cortexd.model import HealthPolicy


class Outcome(StrEnum):
    """What one probe found."""

    OK = "ok"
    REFUSED = "connection-refused"
    TIMEOUT = "time-out"
    HTTP_ERROR = "http-error"
    BROKEN = "broken-answer"
    NOT_RUNNING = "not-running"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One probe's result; `reason` is a sentence, `latency` seconds."""

    outcome: Outcome
    reason: str = ""
    latency: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the server is well."""
        return self.outcome is Outcome.OK


class Decision(Enum):
    """What to do after a probe."""

    NOTHING = "nothing"
    RESTART = "restart"


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthState:
    """What is known of one run of one model. A new run starts with a new one."""

    run: str = ""
    """The run's InvocationID."""
    probed: bool = False
    failures: int = 0
    """Failed probes in a row."""
    reason: str = ""
    """Why the last one failed."""


def after_probe(state: HealthState, policy: HealthPolicy, probe: Probe) -> tuple[HealthState, Decision]:
    """`max_failures` failed probes in a row condemn the run, and so does every one after them, should it live on."""
    if probe.ok:
        return replace(state, probed=True, failures=0, reason=""), Decision.NOTHING
    state = replace(state, probed=True, failures=state.failures + 1, reason=probe.reason)
    return state, Decision.RESTART if state.failures >= policy.max_failures else Decision.NOTHING
