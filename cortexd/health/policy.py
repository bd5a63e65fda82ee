"""What the outcomes of probes mean: a pure state machine, one for each run of a model.

A clock, what a round of probes found, and the run that is there go in; the new state, the decision, and what is worth
an event come out. Seconds are those of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from itertools import pairwise

from cortexd.model import PROBE_ENGINE, HealthPolicy

ENGINE_EVERY = 300.0
"""Seconds without a sign of generation after which `health.probe=engine` has a token generated."""

MIN_CPU = 0.05
"""Cores that a server uses on average when it counts as working: what idles stays below, also with many threads."""

HISTORY = 10
"""Outcomes that are remembered."""

_SUSPENDED = 1.0  # seconds; the two clocks are read one after the other
_PUNCTUAL = 0.5  # seconds; a time-out that is told later than this was told by a loop that stood still


class Outcome(StrEnum):
    """What one probe found."""

    OK = "ok"
    REFUSED = "connection-refused"
    TIMEOUT = "time-out"
    UNFINISHED = "unfinished-answer"
    SERVER_ERROR = "server-error"
    HTTP_ERROR = "http-error"
    REDIRECT = "redirect"
    WRONG = "wrong-answer"
    TOO_LONG = "too-long-answer"
    BROKEN = "broken-answer"
    STRANGER = "stranger"
    NOT_RUNNING = "not-running"
    UNASKED = "not-asked"


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

    @property
    def timed_out(self) -> bool:
        """Whether the server may only have been too busy: nothing else can be excused."""
        return self.outcome in (Outcome.TIMEOUT, Outcome.UNFINISHED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """How much a server has done so far, read at one moment; None what could not be read."""

    at: float
    cpu: int | None = None
    """CPU time used by its control group, in nanoseconds."""
    work: float | None = None
    """Tokens and completed requests, by its own count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCheck:
    """What was found when a token was to be generated."""

    probe: Probe | None = None
    """None where nothing was asked: it sleeps, it has generated meanwhile, or there is no way to ask."""
    asleep: bool = False
    work: float | None = None
    """What it has counted, at the end."""
    generated: bool = False
    """By the server's own count it has generated since the last check."""

    @property
    def alive(self) -> bool:
        """Whether the engine has shown that it generates."""
        return self.generated or (self.probe is not None and self.probe.ok)

    @property
    def failed(self) -> bool:
        """Whether it did not generate. A request that the server refuses (4xx) says nothing about its engine."""
        return self.probe is not None and self.probe.outcome not in (Outcome.OK, Outcome.HTTP_ERROR, Outcome.UNASKED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round of probes of one run."""

    at: float
    """When it began."""
    run: str
    """The run that is ready at its end; empty if there is none."""
    probe: Probe
    samples: tuple[Sample, ...] = ()
    """Taken while an answer was overdue, in their order."""
    engine: EngineCheck | None = None
    late: float = 0.0
    """Seconds from when it was due to its begin."""
    suspended: float = 0.0
    """Seconds that the machine has been suspended since its boot (CLOCK_BOOTTIME - CLOCK_MONOTONIC), at its end."""
    resumed: bool = False
    """The machine is known to have slept since the last round."""
    time: int = 0
    """Its end in microseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Past:
    """One remembered outcome. `time`: microseconds since the epoch; `asked`: http or engine; `latency`: seconds."""

    time: int
    asked: str
    outcome: Outcome
    latency: float
    meaning: str
    """ok, busy (excused), failed (counted), or void (the machine or we had slept or stalled, or we could not ask)."""


class Decision(Enum):
    """What to do after a round."""

    NOTHING = "nothing"
    RESTART = "restart"


class Change(Enum):
    """What a round changed, for an event."""

    BUSY = "busy"
    DEGRADED = "degraded"
    RECOVERED = "recovered"
    CONDEMNED = "condemned"
    AFRESH = "afresh"
    BLIND = "blind"
    """All outcomes that are remembered are void."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthState:
    """What is known of one run of one model. A new run starts with a new one. Equal are those that look the same."""

    run: str = ""
    """The run's InvocationID."""
    probed: bool = False
    failures: int = 0
    """Failed probes in a row."""
    reason: str = ""
    """Why the last one failed, or why it was excused."""
    busy: bool = False
    """The last one was excused."""
    condemned: bool = False
    """It has failed too often."""
    excused_since: float | None = field(default=None, compare=False)
    """The first time-out that CPU time alone excused, since the last sign of generation."""
    generated: float | None = field(default=None, compare=False)
    """When it last was known to generate, or to sleep, or could not be asked."""
    work: float | None = field(default=None, compare=False)
    """What it had counted then."""
    sample: Sample | None = field(default=None, compare=False)
    """The last one of the last round, if answers were overdue then, too."""
    suspended: float | None = field(default=None, compare=False)
    history: tuple[Past, ...] = field(default=(), compare=False)
    """The last outcomes, oldest first."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a round came to."""

    state: HealthState
    decision: Decision = Decision.NOTHING
    changes: tuple[Change, ...] = ()
    void: str = ""
    """Why it says nothing about the server, where it does not."""


def engine_due(state: HealthState, policy: HealthPolicy, now: float) -> bool:
    """Whether a round that begins now has to see whether the engine generates: as the judge where CPU time is no excuse
    any more, or because nothing has shown it for a while."""
    if _excuse_is_over(state, policy, now):
        return True
    if policy.probe != PROBE_ENGINE:
        return False
    # It is only put off by success: after a failure every round asks.
    return state.generated is not None and now - state.generated >= ENGINE_EVERY


def after_round(state: HealthState, policy: HealthPolicy, found: Round) -> Verdict:
    """`max_failures` failed rounds in a row condemn the run, and so does every one after them, should it live on.

    A round about a run that is gone, or not ready any more, changes nothing. A failure within a gap (the machine slept,
    or stood still) says nothing about the server: counting starts afresh. A round in which we could not ask, for want of
    descriptors or memory of our own, or stood still ourselves while the answer may have been there, says as little, and
    changes nothing either.
    """
    if not found.run or found.run != state.run:
        return Verdict(state)
    gap, ours = _gap(state, policy, found), _ours(policy, found)
    bad = ours or _bad(policy, found)
    if bad and (gap or ours):
        return _void(state, found, bad, afresh=gap)
    overdue = (*((state.sample,) if state.sample else ()), *found.samples)
    working = _worked(overdue)
    new = replace(
        _engine(state, found, working),
        probed=True,
        suspended=found.suspended,
        sample=overdue[-1] if bad and bad.timed_out and overdue else None,
    )
    if bad is None:
        new = replace(new, failures=0, reason="", busy=False, condemned=False, excused_since=None)
        recovered = (Change.RECOVERED,) if state.failures or state.busy else ()
        return Verdict(_remember(new, found, None, "ok"), changes=recovered)
    if bad.timed_out and (excuse := _excuse(state, policy, found, working, overdue)):
        alive = excuse is not _CPU
        new = replace(
            new,
            failures=0 if alive else state.failures,
            reason=f"{bad.reason}, but {excuse}",
            busy=True,
            condemned=state.condemned and not alive,
            excused_since=None if alive else found.at if state.excused_since is None else state.excused_since,
        )
        return Verdict(_remember(new, found, bad, "busy"), changes=() if state.busy else (Change.BUSY,))
    failures = state.failures + 1
    condemned = failures >= policy.max_failures
    new = replace(new, failures=failures, reason=bad.reason, busy=False, condemned=condemned)
    news = {Change.DEGRADED: failures == 1, Change.CONDEMNED: condemned and not state.condemned}
    changes = tuple(change for change, new_now in news.items() if new_now)
    decision = Decision.RESTART if condemned else Decision.NOTHING
    return Verdict(_remember(new, found, bad, "failed"), decision, changes)


def _void(state: HealthState, found: Round, bad: Probe, *, afresh: bool) -> Verdict:
    """A round that says nothing about the server."""
    new = HealthState(run=state.run, generated=found.at, history=state.history) if afresh else state
    new = _remember(replace(new, suspended=found.suspended), found, bad, "void")
    news = {
        Change.AFRESH: afresh and (state.failures or state.busy),
        Change.BLIND: _blind(new) and not _blind(state),
    }
    why = bad.reason if bad.outcome is Outcome.UNASKED else f"{bad.reason}, and the machine or cortexd stood still"
    return Verdict(new, changes=tuple(change for change, new_now in news.items() if new_now), void=why)


def _blind(state: HealthState) -> bool:
    return [past.meaning for past in state.history] == ["void"] * HISTORY


_TOKENS = "its own count of tokens and requests grows"
_ENGINE = "it generates a token when asked to"
_CPU = "it uses CPU or GPU time"


def _excuse(
    state: HealthState, policy: HealthPolicy, found: Round, working: bool, overdue: tuple[Sample, ...]
) -> str | None:
    """Why a time-out does not count, if it does not."""
    if working:
        return _TOKENS
    if found.engine is not None and found.engine.alive:
        return _ENGINE
    if _used_cpu(overdue) and not _excuse_is_over(state, policy, found.at):
        return _CPU
    return None


def _excuse_is_over(state: HealthState, policy: HealthPolicy, now: float) -> bool:
    return state.excused_since is not None and now - state.excused_since >= policy.busy_timeout


def _bad(policy: HealthPolicy, found: Round) -> Probe | None:
    """What failed; before a time-out whatever cannot be excused."""
    failed = [] if found.probe.ok else [found.probe]
    engine = found.engine
    if policy.probe == PROBE_ENGINE and engine is not None and engine.probe is not None and engine.failed:
        failed.append(engine.probe)
    return min(failed, key=lambda probe: probe.timed_out, default=None)


def _ours(policy: HealthPolicy, found: Round) -> Probe | None:
    """What failed by our own fault: we could not ask, or were not there when the answer was due."""

    def is_ours(probe: Probe) -> bool:
        late = probe.timed_out and probe.latency > policy.timeout + _PUNCTUAL
        return late or probe.outcome is Outcome.UNASKED

    asked = (found.probe, found.engine.probe if found.engine else None)
    return min((probe for probe in asked if probe and is_ours(probe)), key=lambda probe: probe.timed_out, default=None)


def _gap(state: HealthState, policy: HealthPolicy, found: Round) -> bool:
    """Whether the machine slept, or we stood still ourselves, so that the time that went by was not the server's."""
    slack = max(policy.interval, 2 * policy.timeout)
    slept = state.suspended is not None and found.suspended - state.suspended > _SUSPENDED
    return slept or found.resumed or found.late > slack or found.probe.latency > policy.timeout + slack


def _engine(state: HealthState, found: Round, working: bool) -> HealthState:
    """With what is known of the engine now."""
    engine = found.engine
    known = [sample.work for sample in found.samples if sample.work is not None]
    well = working or state.generated is None or (engine is not None and not engine.failed)
    return replace(
        state,
        generated=found.at if well else state.generated,
        work=engine.work if engine is not None else known[-1] if known else state.work,
    )


def _worked(samples: tuple[Sample, ...]) -> bool:
    """Whether its counters grew. Ones that fell have begun anew, which is no progress."""
    known = [sample.work for sample in samples if sample.work is not None]
    return any(after > before for before, after in pairwise(known))


def _used_cpu(samples: tuple[Sample, ...]) -> bool:
    """Whether it used MIN_CPU over all of that time."""
    known = [(sample.at, sample.cpu) for sample in samples if sample.cpu is not None]
    if len(known) < 2:
        return False
    (began, first), (ended, last) = known[0], known[-1]
    return ended > began and last - first >= MIN_CPU * (ended - began) * 1e9


def _remember(state: HealthState, found: Round, bad: Probe | None, meaning: str) -> HealthState:
    shown = bad or found.probe
    asked = "http" if shown is found.probe else "engine"
    past = Past(found.time, asked, shown.outcome, shown.latency, meaning)
    return replace(state, history=(*state.history, past)[-HISTORY:])
