"""Verdicts, budget and restarts of the product against a simulated server, clock, systemd and person, in whatever order
hypothesis thinks of. What is right is reckoned from the simulated server, and not from what the product sees of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from enum import Enum

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cortexd.budget import GAVE_UP, STABLE
from cortexd.events import Event
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
from cortexd.model import HealthPolicy, RestartPolicy
from tests.health.world import PAUSE, WRITING, World

RETRY = 6.0
"""Seconds within which a refused stop is asked for again."""


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


class Trouble(Enum):
    """What keeps a round from saying anything about the server."""

    NONE = "none"
    UNASKED = "we could not ask"
    UNASKED_ENGINE = "we could not ask for a token"
    STALLED = "our loop stood still while the answer came"
    STALLED_LONG = "and for so long that the machine itself may have"
    RESUMED = "logind says that the machine has slept"
    RESUMED_UNASKED = "and then we could not ask"
    LATE = "our loop came late to the round"


STALLS = {Trouble.STALLED, Trouble.STALLED_LONG}
VOID = {Trouble.UNASKED, Trouble.UNASKED_ENGINE, Trouble.RESUMED_UNASKED, *STALLS}
GAPS = {Trouble.RESUMED, Trouble.RESUMED_UNASKED, Trouble.LATE, Trouble.STALLED_LONG}


class Simulation(RuleBasedStateMachine):
    """Rounds start every interval. Whatever changes, changes between two of them, at any time."""

    world: World | None = None

    @initialize(
        interval=st.integers(1, 60),
        part=st.floats(0.05, 1),
        limit=st.integers(1, 5),
        excuse=st.integers(1, 900),
        probe=st.sampled_from(["http", "engine"]),
        most=st.integers(1, 4),
        ripe=st.integers(5, 900),
        engine=st.sampled_from(["none", "sleeps", "answers"]),
        counters=st.booleans(),
    )
    def begin(
        self, interval: int, part: float, limit: int, excuse: int, probe: str, most: int, ripe: int, engine: str,
        counters: bool,
    ) -> None:  # fmt: skip
        self.policy = HealthPolicy(
            endpoint="/", interval=interval, timeout=interval * part, max_failures=limit, busy_timeout=excuse, probe=probe
        )  # fmt: skip
        self.restart = RestartPolicy(restart="always", restart_seconds=PAUSE, max_restarts=most, stable_after=ripe)
        self.engine, self.counters = engine, counters
        self.mode = self.habit = Mode.WELL
        self.cpu = self.work = self.slept = 0.0
        self.wrong: list[str] = []
        self.in_a_row = 0
        """Runs that failed since a person started it or one was well for long."""
        self.state = HealthState()
        self.due = self.since = self.spent_at = 0.0
        self.world = World(self.policy, self.restart, self)
        self.do(self.world.start())

    def teardown(self) -> None:
        if self.world is not None:
            self.world.close()

    def do(self, story: object) -> None:
        assert self.world is not None
        before = self.world.now
        self.world.run(story)
        self.used(before)

    def used(self, before: float) -> None:
        """What the server has used since."""
        assert self.world is not None
        self.cpu += self.mode.value[2] * (self.world.now - before)
        self.work += self.mode.value[3] * (self.world.now - before)

    async def pass_time(self, until: float) -> None:
        assert self.world is not None
        before = self.world.now
        await asyncio.sleep(max(until - before, 0))
        self.used(before)

    # What the world tells

    def on_run(self, run: str) -> None:
        """One to be probed from now on."""
        assert self.world is not None
        self.mode, self.since = self.habit, self.world.now
        self.state = HealthState(run=run, suspended=self.slept)
        self.due = self.well_since = self.world.now
        self.failures, self.excused_since = 0, float("inf")
        self.unexcused = self.world.now
        """When the last round was that was well, busy or void."""

    def on_failure(self) -> None:
        """It ended badly, by itself or killed, and systemd is about to start the next one."""
        assert self.world is not None
        self.in_a_row += 1
        if self.in_a_row == self.restart.max_restarts:
            self.spent_at = self.world.now

    def on_begin(self) -> None:
        """systemd starts the next one."""
        assert self.world is not None
        if self.in_a_row >= self.restart.max_restarts and self.world.now > self.world.systemd.refuses_until + RETRY:
            self.wrong.append(f"run {self.in_a_row + 1} of {self.restart.max_restarts} begins")

    def on_event(self, event: Event) -> None:
        assert self.world is not None
        if event.kind == GAVE_UP and self.in_a_row < self.restart.max_restarts:
            self.wrong.append(f"given up after {self.in_a_row} of {self.restart.max_restarts}")
        elif event.kind == STABLE:
            if self.world.now - self.well_since < self.restart.stable_after - 0.01:
                self.wrong.append(f"stable, well since {self.well_since} by {self.world.now}")
            self.in_a_row = 0

    @invariant()
    def nothing_is_wrong(self) -> None:
        if self.world is None:
            return
        assert not self.wrong, self.wrong
        assert self.world.model.budget.failed == self.in_a_row
        spent, refused = self.in_a_row >= self.restart.max_restarts, self.world.systemd.refuses_until
        if spent and self.world.now > max(self.spent_at, refused + RETRY) + 1:
            assert not self.world.state.running and self.world.model.gave_up, "a spent budget is the end"
        assert spent or not self.world.model.gave_up

    # What happens

    @rule(mode=st.sampled_from(Mode), part=st.floats(0, 1), always=st.booleans())
    def become(self, mode: Mode, part: float, always: bool) -> None:
        """`always`: and so are the runs that follow."""
        assert self.world is not None
        self.do(self.pass_time(self.world.now + max(self.due - self.world.now, 0) * part))
        if always:
            self.habit = mode
        if mode is not self.mode:
            self.mode, self.since = mode, self.world.now

    @rule(seconds=st.integers(2, 100_000))
    def suspend(self, seconds: int) -> None:
        """The monotonic clock stands still meanwhile."""
        self.slept += seconds

    @rule(seconds=st.integers(1, 2000))
    def refuse(self, seconds: int) -> None:
        """systemd does not answer us for a while."""
        assert self.world is not None
        self.world.systemd.refuses_until = self.world.now + seconds

    @rule()
    def person_starts(self) -> None:
        """It may have been given up before."""
        assert self.world is not None
        self.in_a_row = 0
        self.do(self.world.start())
        assert self.world.state.active_state == "active" and not self.world.model.gave_up

    @precondition(lambda self: not self.world.state.running)
    @rule()
    def person_starts_past_us(self) -> None:
        assert self.world is not None
        self.in_a_row = 0
        self.do(self.world.start_past_us())
        assert self.world.state.active_state == "active" and not self.world.model.gave_up

    @rule()
    def person_stops(self) -> None:
        assert self.world is not None
        self.do(self.world.stop())
        assert not self.world.state.running

    @precondition(lambda self: self.world.state.main_pid)
    @rule(times=st.integers(1, 5), waits=st.booleans(), refused=st.integers(0, 20))
    def crash(self, times: int, waits: bool, refused: int) -> None:
        """`waits`: nothing else happens until the next run; `refused`: seconds that systemd does not answer us from then on."""
        assert self.world is not None
        if refused:
            self.refuse(refused)
        for _ in range(times):
            if self.world.state.main_pid:
                self.do(self.ends(2 * PAUSE if waits else 0.2))

    async def ends(self, then: float) -> None:
        assert self.world is not None
        self.on_failure()
        self.world.systemd.crash(self.world.unit)
        await self.pass_time(self.world.now + then)

    @precondition(lambda self: self.world.state.main_pid and not self.world.model.gave_up)
    @rule()
    def crash_and_start_past_us(self) -> None:
        """Before the end is even written."""
        assert self.world is not None
        self.do(self.ends(WRITING / 2))
        self.in_a_row = 0
        self.do(self.world.start_past_us())
        assert self.world.state.active_state == "active" and not self.world.model.gave_up

    @rule(
        story=st.lists(
            st.tuples(
                st.none() | st.sampled_from(Mode),
                st.integers(1, 3) | st.integers(4, 60),
                st.just(Trouble.NONE) | st.sampled_from(Trouble),
                st.integers(1, 5),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def rounds(self, story: list[tuple[Mode | None, int, Trouble, int]]) -> None:
        """What the server becomes, for how many rounds, and what trouble there is each how many rounds."""
        for mode, times, trouble, often in story:
            if mode:
                self.become(mode, 0, False)
            for number in range(times):
                self.do(self.one_round(Trouble.NONE if (number + 1) % often else trouble))

    async def one_round(self, trouble: Trouble = Trouble.NONE) -> None:
        assert self.world is not None
        if not self.world.watching.run:
            await self.pass_time(self.world.now + self.policy.interval)
            return
        policy, slack = self.policy, max(self.policy.interval, 2 * self.policy.timeout)
        late = slack + 1 if trouble is Trouble.LATE else 0.0
        await self.pass_time(self.due + late)
        mode, run, began = self.mode, self.world.watching.run, self.world.now
        if not run:
            return
        asked = engine_due(self.state, policy, began)
        engine, generates = await self.check(mode, trouble) if asked else (None, False)
        probe, samples = Probe(outcome=mode.value[0], latency=0.001), ()  # type: tuple[Probe, tuple[Sample, ...]]
        if probe.timed_out or (engine and engine.failed) or mode is Mode.FAILING:
            await self.pass_time(began + policy.timeout / 2)
            first = self.sample()
            await self.pass_time(began + policy.timeout)
            samples = (first, self.sample())
        if probe.timed_out:
            probe = replace(probe, latency=policy.timeout)
        if trouble in STALLS:
            stood = min(0.6, slack) if trouble is Trouble.STALLED else slack + 1
            probe = Probe(outcome=Outcome.TIMEOUT, latency=policy.timeout + stood)
        elif trouble in (Trouble.UNASKED, Trouble.RESUMED_UNASKED):
            probe = Probe(outcome=Outcome.UNASKED)
        elif trouble is Trouble.UNASKED_ENGINE:
            engine = EngineCheck(probe=Probe(outcome=Outcome.UNASKED))
        before, current = (
            self.state,
            self.world.state.invocation_id if self.world.state.active_state == "active" else "",
        )
        resumed = trouble in (Trouble.RESUMED, Trouble.RESUMED_UNASKED)
        found = Round(
            at=began, run=current, probe=probe, samples=samples, engine=engine, late=late, suspended=self.slept,
            resumed=resumed,
        )  # fmt: skip
        verdict = after_round(before, policy, found)
        self.due = max(began + policy.interval, self.world.now)
        if current != run or before.run != run:
            # A run that is gone, or is not ready: nothing is known, done or told.
            assert before.run != run or (verdict.decision, verdict.state) == (Decision.NOTHING, before)
            return
        self.state = verdict.state
        self.reckon(mode, trouble, began, generates, asked, before)
        assert verdict.decision is (Decision.RESTART if self.is_dead else Decision.NOTHING), (mode, trouble)
        await self.world.observer.liveness.judged("m", before, verdict)
        await self.pass_time(self.world.now + 5 * WRITING)
        if self.state.history[-1].meaning == "ok" and self.world.now - self.well_since > self.restart.stable_after + 1:
            assert not self.in_a_row, "a run that stayed well clears those before it"

    async def check(self, mode: Mode, trouble: Trouble) -> tuple[EngineCheck, bool]:
        """What is found when a token is asked for, and whether that shows that it generates."""
        outcome, generates, _, _ = mode.value
        if self.engine == "none":
            return EngineCheck(), False
        if self.engine == "sleeps" and mode is Mode.WELL:
            return EngineCheck(asleep=True), False
        probe = Probe(outcome=Outcome.OK if generates else outcome if outcome is Outcome.REFUSED else Outcome.TIMEOUT)
        return EngineCheck(probe=probe, work=self.work if generates and self.counters else None), generates

    def reckon(
        self, mode: Mode, trouble: Trouble, began: float, generates: bool, asked: bool, before: HealthState
    ) -> None:
        """How many failures there are in a row, by what the server really does."""
        assert self.world is not None
        outcome, _, cores, tokens = mode.value
        dead_engine = asked and self.policy.probe == "engine" and self.engine != "none" and mode is Mode.LYING
        well = outcome is Outcome.OK and not dead_engine
        gap = trouble in GAPS or self.slept - (before.suspended or 0.0) > 1
        self.is_dead = False
        if trouble in VOID or (gap and not well):
            if gap:
                self.failures, self.excused_since = 0, float("inf")
            self.unexcused = self.world.now
            assert self.state.history[-1].meaning == "void" and self.state.failures == self.failures
            self.note_whether_well()
            return
        excusable = dead_engine or outcome in (Outcome.TIMEOUT, Outcome.UNFINISHED)
        just_changed = self.since > began - 2 * self.policy.interval - self.policy.timeout
        if well or (excusable and self.counters and tokens) or (excusable and generates):
            self.failures, self.excused_since, excused = 0, float("inf"), not well
        elif excusable and just_changed:
            # What it did before may excuse it or not.
            self.failures = self.state.failures
            self.excused_since = (
                min(self.excused_since, began) if self.state.excused_since is not None else float("inf")
            )
            excused = self.state.busy
        elif excusable and self.counters and cores >= 1 and began - self.excused_since < self.policy.busy_timeout:
            self.excused_since, excused = min(self.excused_since, began), True
        else:
            self.failures, excused = self.failures + 1, False
        if well or excused:
            self.unexcused = self.world.now
        told = self.state.failures, self.state.busy, self.state.history[-1].meaning
        assert told == (self.failures, excused, "ok" if well else "busy" if excused else "failed"), (mode, trouble)
        self.note_whether_well()
        self.is_dead = told[2] == "failed" and self.failures >= self.policy.max_failures
        patience = self.policy.max_failures * self.policy.interval + self.policy.timeout + 1
        assert self.is_dead or well or self.world.now - max(self.unexcused, self.since) <= patience

    def note_whether_well(self) -> None:
        assert self.world is not None
        if self.failures or self.excused_since < float("inf"):
            self.well_since = self.world.now

    def sample(self) -> Sample:
        assert self.world is not None
        known = self.counters
        return Sample(at=self.world.now, cpu=int(self.cpu * 1e9) if known else None, work=self.work if known else None)

    @precondition(lambda self: self.mode in (Mode.HUNG, Mode.SPINNING, Mode.REFUSING, Mode.FAILING))
    @rule()
    def patience_has_an_end(self) -> None:
        """Excuses, too: whatever is dead, and stays so, is ended; and if all that follow are, too, given up."""
        assert self.world is not None
        if not self.world.state.running:
            return
        self.habit = self.mode
        once = (
            self.policy.busy_timeout + ENGINE_EVERY + (self.policy.max_failures + 4) * self.policy.interval + 2 * PAUSE
        )
        refused = max(self.world.systemd.refuses_until - self.world.now, 0) + RETRY
        end = self.world.now + (self.restart.max_restarts + 1) * once + refused + 600
        while not self.world.model.gave_up or self.world.state.running:
            self.do(self.one_round())
            assert self.world.now < end, (self.mode, self.in_a_row)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, database=None)
