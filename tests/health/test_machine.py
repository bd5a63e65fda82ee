"""The state machine against a simulated server, clock and person, in whatever order hypothesis thinks of."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cortexd.budget import Budget
from cortexd.events import Event, Priority
from cortexd.health.policy import (
    ENGINE_EVERY,
    Decision,
    EngineCheck,
    HealthState,
    Outcome,
    Probe,
    Round,
    Sample,
    after_round,
    engine_due,
)
from cortexd.model import HealthPolicy


class Mode(Enum):
    """How the server is: what its endpoint says, what its engine does, cores used, tokens counted a second."""

    WELL = Outcome.OK, True, 0.01, 0.0
    WORKING = Outcome.OK, True, 1.0, 10.0
    BUSY = Outcome.TIMEOUT, False, 1.0, 10.0
    """It has so much to do that our token would come too late, too."""
    SLOW = Outcome.TIMEOUT, True, 1.0, 0.0
    """A server that counts nothing: only its CPU time shows that it works, and a token when it is asked for one."""
    DRIPPING = Outcome.UNFINISHED, False, 0.0, 5.0
    HUNG = Outcome.TIMEOUT, False, 0.0, 0.0
    SPINNING = Outcome.TIMEOUT, False, 1.0, 0.0
    REFUSING = Outcome.REFUSED, False, 0.0, 0.0
    FAILING = Outcome.SERVER_ERROR, False, 1.0, 10.0
    LYING = Outcome.OK, False, 0.01, 0.0
    """Its endpoint is well and its engine is dead."""

    @property
    def alive(self) -> bool:
        return self in (Mode.WELL, Mode.WORKING, Mode.BUSY, Mode.SLOW, Mode.DRIPPING)


class Simulation(RuleBasedStateMachine):
    """Rounds start every interval. Whatever changes, changes between two of them, at any time."""

    @initialize(
        interval=st.integers(1, 60),
        part=st.floats(0.05, 1),
        limit=st.integers(1, 5),
        excuse=st.integers(1, 900),
        probe=st.sampled_from(["http", "engine"]),
        most=st.integers(1, 4),
    )
    def begin(self, interval: int, part: float, limit: int, excuse: int, probe: str, most: int) -> None:
        self.policy = HealthPolicy(
            endpoint="/", interval=interval, timeout=interval * part, max_failures=limit, busy_timeout=excuse, probe=probe
        )  # fmt: skip
        self.now = self.due = 1000.0
        self.mode, self.since = Mode.WELL, 1000.0
        self.cpu = self.work = 0.0
        self.runs = 1
        self.ready = True
        self.slept = 50.0
        self.late = 0.0
        self.state = HealthState(run="run 1", suspended=self.slept)
        self.budget, self.most = Budget(), most
        self.in_a_row = 0
        """Runs that failed since a person started it or one was stable."""
        self.excused = 1000.0
        """When the last round began that was well, busy or void; or the server died, if that was later."""

    def pass_time(self, until: float) -> None:
        spent = until - self.now
        self.cpu += self.mode.value[2] * spent
        self.work += self.mode.value[3] * spent
        self.now = until

    @rule(mode=st.sampled_from(Mode), part=st.floats(0, 1))
    def become(self, mode: Mode, part: float) -> None:
        self.pass_time(self.now + (self.due - self.now) * part)
        if mode is not self.mode:
            self.mode, self.since = mode, self.now

    @rule(seconds=st.integers(2, 100_000))
    def suspend(self, seconds: int) -> None:
        """The monotonic clock stands still meanwhile."""
        self.slept += seconds

    @rule(intervals=st.floats(2.1, 50))
    def stall(self, intervals: float) -> None:
        """The machine is so overloaded, or stopped, that our loop comes late."""
        self.pass_time(self.due)
        self.late = self.policy.interval * intervals
        self.pass_time(self.due + self.late)

    @rule()
    def person_restarts(self) -> None:
        """And we have not noticed yet, or it is not ready yet. It may have been given up before."""
        self.tell("start")
        self.in_a_row = 0
        self.runs += 1
        self.mode, self.since = Mode.WELL, self.now

    def tell(self, kind: str, priority: Priority = Priority.INFO, **details: bool) -> None:
        run = f"run {self.runs}"
        self.budget.add(
            Event(model="m", kind=kind, message=kind, priority=priority, invocation_id=run, details=details)
        )

    @precondition(lambda self: not self.budget.gave_up)
    @rule()
    def crash(self) -> None:
        self.run_fails()

    @precondition(lambda self: not self.budget.gave_up and self.ready)
    @rule()
    def stay_ready_for_long(self) -> None:
        self.tell("stable")
        self.in_a_row = 0

    def run_fails(self) -> None:
        """It ended badly, or was killed: systemd starts the next one, unless the budget is spent, however it ended."""
        self.in_a_row += 1
        self.tell("ended", Priority.WARNING)
        assert self.budget.failed == self.in_a_row <= self.most
        if self.budget.spent(self.most):
            self.tell("gave-up", Priority.ERROR)
            self.ready = False
            return
        self.runs += 1
        self.mode, self.since = Mode.WELL, self.now
        self.tell("run", restart=True)

    @rule()
    def leave_ready(self) -> None:
        """It starts again, or stops."""
        self.ready = False

    @rule(times=st.integers(1, 60), noticed=st.integers(0, 9), killed=st.booleans())
    def rounds(self, times: int, noticed: int, killed: bool) -> None:
        """`killed`: systemd does as it is asked when a run is found dead; else the next round asks again."""
        if noticed and not self.ready and not self.budget.gave_up:
            self.ready, self.excused = True, self.now
        if noticed and self.state.run != f"run {self.runs}":
            self.state = HealthState(run=f"run {self.runs}", suspended=self.slept)
            self.excused = self.now
        for _ in range(times):
            if self.one_round() is Decision.RESTART and killed:
                assert not self.budget.gave_up and self.state.run == f"run {self.runs}", "that run, and no other"
                self.run_fails()

    def one_round(self) -> Decision:
        policy, began = self.policy, max(self.now, self.due)
        self.pass_time(began)
        outcome, generates, _, _ = self.mode.value
        asked = engine_due(self.state, policy, began)
        samples: tuple[Sample, ...] = ()
        probe = Probe(outcome=outcome, latency=0.001)
        overdue = probe.timed_out or (asked and not generates) or self.mode is Mode.FAILING
        if overdue:
            self.pass_time(began + policy.timeout / 2)
            first = self.sample()
            self.pass_time(began + policy.timeout)
            samples = (first, self.sample())
        if probe.timed_out:
            probe = replace(probe, latency=policy.timeout)
        engine = None
        if asked:
            # It has its own reason to be no more than the health endpoint says.
            found = Outcome.OK if generates else outcome if outcome is Outcome.REFUSED else Outcome.TIMEOUT
            engine = EngineCheck(probe=Probe(outcome=found), work=self.work if generates else None)
        current = f"run {self.runs}" if self.ready else ""
        verdict = after_round(
            self.state,
            policy,
            Round(
                at=began, run=current, probe=probe, samples=samples, engine=engine, late=self.late, suspended=self.slept
            ),
        )
        self.due, late, self.late = began + policy.interval, self.late, 0.0
        before, self.state = self.state, verdict.state
        if current != before.run:
            # A run that is gone, or is not ready: nothing is known, done or told.
            assert verdict.decision is Decision.NOTHING and verdict.state == before and not verdict.changes
            self.excused = self.now
            return Decision.NOTHING
        gap = self.slept - (before.suspended or 0.0) > 1 or late > 2 * policy.interval
        if self.mode.alive or gap:
            assert verdict.decision is Decision.NOTHING, self.mode
        if not self.state.failures or self.state.busy or self.state.history[-1].meaning != "failed":
            self.excused = max(began, self.since)
        self.excused = max(self.excused, self.since)
        assert (verdict.decision is Decision.RESTART) == (
            self.state.history[-1].meaning == "failed" and self.state.failures >= policy.max_failures
        )
        if verdict.decision is Decision.NOTHING and self.is_caught():
            patience = policy.max_failures * policy.interval + policy.timeout
            assert self.now - self.excused <= patience + 1e-6, (self.mode, self.now, self.excused)
        return verdict.decision

    def is_caught(self) -> bool:
        """Whether something is wrong that these settings are to find."""
        return not self.mode.alive and (self.mode is not Mode.LYING or self.policy.probe == "engine")

    def sample(self) -> Sample:
        return Sample(at=self.now, cpu=int(self.cpu * 1e9), work=self.work)

    @precondition(lambda self: self.mode is not Mode.WELL)
    @rule()
    def patience_has_an_end(self) -> None:
        """Excuses, too: whatever is dead, and stays so, is found dead in the end."""
        if not self.is_caught() or not self.ready or self.state.run != f"run {self.runs}":
            return
        policy = self.policy
        longest = policy.busy_timeout + ENGINE_EVERY + (policy.max_failures + 4) * policy.interval
        begun = self.now
        while self.state.failures < policy.max_failures:
            self.one_round()
            assert self.now - begun <= longest, (self.mode, self.state)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, database=None)
