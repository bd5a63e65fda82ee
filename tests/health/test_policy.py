"""The pure state machine, round by round."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd.health.policy import (
    ENGINE_EVERY,
    HISTORY,
    Change,
    Decision,
    EngineCheck,
    HealthState,
    Outcome,
    Probe,
    Round,
    Sample,
    Verdict,
    after_round,
    engine_due,
)
from cortexd.model import HealthPolicy

OK = Probe(outcome=Outcome.OK)
BAD = Probe(outcome=Outcome.REFUSED, reason="no connection: refused")
LATE = Probe(outcome=Outcome.TIMEOUT, reason="no answer within 10 s", latency=10)
POLICY = HealthPolicy(endpoint="/health", interval=30, timeout=10, max_failures=3, busy_timeout=600)
ENGINE = replace(POLICY, probe="engine")
FRESH = HealthState(run="r")


def cpu(at: float, used: float, cores: float) -> tuple[Sample, ...]:
    """Samples of a server that uses that many cores from `at` on for five seconds."""
    return Sample(at=at, cpu=int(used * 1e9)), Sample(at=at + 5, cpu=int((used + 5 * cores) * 1e9))


def work(*counts: float, at: float = 0) -> tuple[Sample, ...]:
    return tuple(Sample(at=at + number, work=count) for number, count in enumerate(counts))


def rounds(policy: HealthPolicy, *found: Round, state: HealthState = FRESH) -> Verdict:
    """What the last of these rounds comes to."""
    for each in found:
        verdict = after_round(state, policy, each)
        state = verdict.state
    return verdict


def at(number: int, found: Probe, *samples: Sample, **more: object) -> Round:
    """The round of that number, one every 30 s."""
    return replace(Round(at=30.0 * number, run="r", probe=found, samples=samples), **more)  # type: ignore[arg-type]


@given(
    outcomes=st.lists(st.sampled_from([o for o in Outcome if o is not Outcome.UNASKED]), max_size=60),
    limit=st.integers(1, 6),
)
@settings(deadline=None, database=None)
def test_a_run_is_condemned_after_enough_failures_in_a_row(outcomes: list[Outcome], limit: int) -> None:
    policy, state = replace(POLICY, max_failures=limit), FRESH
    for number, outcome in enumerate(outcomes):
        before = state
        verdict = after_round(state, policy, at(number, Probe(outcome=outcome, reason=f"reason {number}")))
        state = verdict.state
        in_a_row = 0
        while in_a_row <= number and outcomes[number - in_a_row] is not Outcome.OK:
            in_a_row += 1
        assert (state.run, state.probed, state.failures, state.busy) == ("r", True, in_a_row, False)
        assert state.reason == (f"reason {number}" if in_a_row else "")
        # And again by each one after them: should the run live on, it has not been ended.
        assert verdict.decision is (Decision.RESTART if in_a_row >= limit else Decision.NOTHING)
        assert (Change.DEGRADED in verdict.changes) == (in_a_row == 1)
        assert (Change.CONDEMNED in verdict.changes) == (in_a_row == limit)
        assert (Change.RECOVERED in verdict.changes) == (in_a_row == 0 and before.failures > 0)
        assert [p.outcome for p in state.history] == outcomes[: number + 1][-HISTORY:]


def test_a_limit_that_is_lowered_counts_at_once() -> None:
    verdict = after_round(replace(FRESH, failures=3), replace(POLICY, max_failures=2), at(0, BAD))
    assert (verdict.state.failures, verdict.decision, verdict.changes) == (4, Decision.RESTART, (Change.CONDEMNED,))


@pytest.mark.parametrize("run", ["", "another"])
@pytest.mark.parametrize("probe", [OK, BAD, LATE])
def test_a_round_about_a_run_that_is_gone_changes_nothing(run: str, probe: Probe) -> None:
    state = replace(FRESH, failures=2, reason="before")
    assert after_round(state, POLICY, at(0, probe, run=run)) == Verdict(state)


def test_only_time_outs_are_excused() -> None:
    for outcome in Outcome:
        verdict = rounds(POLICY, at(0, Probe(outcome=outcome), *work(1, 2), *cpu(0, 0, 4)))
        excusable = outcome in (Outcome.TIMEOUT, Outcome.UNFINISHED)
        assert verdict.state.busy == excusable
        nothing = excusable or outcome in (Outcome.OK, Outcome.UNASKED)
        assert verdict.state.failures == (0 if nothing else 1)


@pytest.mark.parametrize(
    ("samples", "excused"),
    [
        ((), False),
        (work(5), False),
        (work(5, 5), False),
        (work(5, 6), True),
        (work(7, 6), False),  # counted from the beginning again: its engine has died, if anything
        (work(7, 1, 2), True),
        (cpu(0, 9, 1), True),
        (cpu(0, 9, 0.05), True),
        (cpu(0, 9, 0.049), False),
        (cpu(0, 9, 0), False),
        (cpu(0, 9, -1), False),
        ((Sample(at=0, cpu=0), Sample(at=0, cpu=10**9)), False),
        ((*work(5, 5), *cpu(0, 9, 2)), True),
    ],
)
def test_what_counts_as_progress(samples: tuple[Sample, ...], excused: bool) -> None:
    assert rounds(POLICY, at(0, LATE, *samples)).state.busy == excused


def test_progress_since_the_last_probe_counts_too() -> None:
    """One look at the counters a round, and each time they have grown."""
    verdict = rounds(POLICY, at(0, LATE, *work(5)), at(1, LATE, *work(9)))
    assert (verdict.state.busy, verdict.state.failures, verdict.changes) == (True, 0, (Change.BUSY,))
    # But not since a probe that was answered: that was long ago.
    verdict = rounds(POLICY, at(0, LATE, *work(5)), at(1, OK), at(2, LATE, *work(9)))
    assert (verdict.state.busy, verdict.state.failures) == (False, 1)


def test_tokens_excuse_without_limit_and_clear_the_count() -> None:
    state = rounds(POLICY, at(0, LATE), at(1, LATE)).state
    assert state.failures == 2
    for number in range(2, 200):
        verdict = after_round(state, POLICY, at(number, LATE, *work(number, number + 1)))
        state = verdict.state
        assert (state.failures, state.busy, verdict.decision) == (0, True, Decision.NOTHING)
        assert verdict.changes == ((Change.BUSY,) if number == 2 else ())
    assert state.reason == "no answer within 10 s, but its own count of tokens and requests grows"
    verdict = after_round(state, POLICY, at(200, OK))
    assert verdict.changes == (Change.RECOVERED,) and not verdict.state.busy


def spinning(number: int, policy: HealthPolicy, state: HealthState, engine: EngineCheck) -> Verdict:
    """A round of a server that uses a core and answers nothing; the engine is asked when it is due."""
    asked = engine if engine_due(state, policy, 30.0 * number) else None
    return after_round(state, policy, at(number, LATE, *cpu(30.0 * number, 30.0 * number, 1), engine=asked))


@pytest.mark.parametrize(
    "engine", [EngineCheck(probe=LATE), EngineCheck(probe=BAD), EngineCheck(), EngineCheck(asleep=True)]
)
def test_cpu_time_alone_excuses_until_busy_timeout(engine: EngineCheck) -> None:
    """20 rounds take 600 s; the next three count, and no more are needed."""
    state = FRESH
    for number in range(20):
        verdict = spinning(number, POLICY, state, engine)
        state = verdict.state
        assert (state.busy, state.failures, verdict.decision) == (True, 0, Decision.NOTHING)
        assert verdict.changes == ((Change.BUSY,) if number == 0 else ())
    decisions = []
    for number in range(20, 23):
        verdict = spinning(number, POLICY, state, engine)
        state = verdict.state
        decisions.append((state.busy, state.failures, verdict.decision, verdict.changes))
    assert decisions == [
        (False, 1, Decision.NOTHING, (Change.DEGRADED,)),
        (False, 2, Decision.NOTHING, ()),
        (False, 3, Decision.RESTART, (Change.CONDEMNED,)),
    ]


def test_a_token_after_busy_timeout_is_a_new_excuse() -> None:
    state, asked = FRESH, 0
    for number in range(100):
        asked += engine_due(state, POLICY, 30.0 * number)
        verdict = spinning(number, POLICY, state, EngineCheck(probe=OK))
        state = verdict.state
        assert (state.busy, state.failures) == (True, 0)
    assert asked == 4  # once after 600 s each


def test_cpu_time_neither_counts_nor_clears() -> None:
    verdict = rounds(POLICY, at(0, LATE), at(1, LATE), at(2, LATE, *cpu(60, 0, 1)))
    assert (verdict.state.failures, verdict.state.busy) == (2, True)
    verdict = rounds(POLICY, at(3, LATE), state=verdict.state)
    assert (verdict.state.failures, verdict.decision) == (3, Decision.RESTART)


def test_an_answer_ends_the_excuse_and_its_clock() -> None:
    state = rounds(POLICY, at(0, LATE, *cpu(0, 0, 1)), at(1, OK), at(2, LATE, *cpu(60, 0, 1))).state
    assert not engine_due(state, POLICY, 600) and engine_due(state, POLICY, 660)


class TestEngine:
    def test_asked_for_a_token_every_five_minutes_at_most(self) -> None:
        state = rounds(ENGINE, at(0, OK)).state
        assert not engine_due(state, ENGINE, ENGINE_EVERY - 0.1)
        assert engine_due(state, ENGINE, ENGINE_EVERY)
        assert not engine_due(state, POLICY, 10 * ENGINE_EVERY)
        refused = EngineCheck(probe=Probe(outcome=Outcome.HTTP_ERROR))
        for alive in (EngineCheck(probe=OK), EngineCheck(generated=True), EngineCheck(asleep=True), refused):
            later = rounds(ENGINE, at(10, OK, engine=alive), state=state).state
            assert later.failures == 0
            assert not engine_due(later, ENGINE, 300 + ENGINE_EVERY - 0.1)
            assert engine_due(later, ENGINE, 300 + ENGINE_EVERY)

    def test_a_healthy_endpoint_over_a_dead_engine(self) -> None:
        """It is asked again every interval, and restarted after max_failures."""
        state = rounds(ENGINE, at(0, OK)).state
        dead = EngineCheck(probe=replace(LATE, reason="the engine generates no token within 10 s"))
        seen = []
        for number in range(10, 13):
            assert engine_due(state, ENGINE, 30.0 * number)
            verdict = after_round(state, ENGINE, at(number, OK, engine=dead))
            state = verdict.state
            seen.append((state.failures, verdict.decision))
        assert seen == [(1, Decision.NOTHING), (2, Decision.NOTHING), (3, Decision.RESTART)]
        assert state.reason == "the engine generates no token within 10 s"
        assert [p.asked for p in state.history] == ["http", "engine", "engine", "engine"]
        recovered = after_round(state, ENGINE, at(13, OK, engine=EngineCheck(probe=OK)))
        assert recovered.changes == (Change.RECOVERED,) and not engine_due(recovered.state, ENGINE, 420)

    def test_a_full_queue_is_no_failure(self) -> None:
        """The token waits behind others' requests: the counters grow meanwhile."""
        found = at(1, OK, *work(1, 2), engine=EngineCheck(probe=LATE))
        verdict = rounds(ENGINE, at(0, OK), found)
        assert (verdict.state.failures, verdict.state.busy) == (0, True)
        assert not engine_due(verdict.state, ENGINE, 60)

    def test_an_engine_that_spins_is_asked_until_the_excuse_is_over(self) -> None:
        state = rounds(ENGINE, at(0, OK)).state
        restarted = 0
        for number in range(10, 60):
            assert engine_due(state, ENGINE, 30.0 * number)
            samples = cpu(30.0 * number, 30.0 * number, 1)
            verdict = after_round(state, ENGINE, at(number, OK, *samples, engine=EngineCheck(probe=LATE)))
            state = verdict.state
            if verdict.decision is Decision.RESTART:
                restarted = number
                break
        assert restarted == 10 + 600 // 30 + 2

    def test_a_request_that_it_refuses_says_nothing(self) -> None:
        refused = EngineCheck(probe=Probe(outcome=Outcome.HTTP_ERROR, reason="answers 401"))
        verdict = rounds(ENGINE, at(0, OK), at(10, OK, engine=refused))
        assert (verdict.state.failures, verdict.changes) == (0, ())

    def test_with_http_alone_it_only_judges(self) -> None:
        found = at(1, OK, engine=EngineCheck(probe=LATE))
        assert rounds(POLICY, at(0, LATE, *cpu(0, 0, 1)), found).state.failures == 0


class TestGaps:
    STATE = replace(FRESH, failures=2, reason="before", suspended=100.0)

    @pytest.mark.parametrize(
        "gap",
        [
            {"suspended": 103.0},
            {"suspended": 100.0, "resumed": True},
            {"suspended": 100.0, "late": 31.0},
            {"suspended": 100.0, "probe": replace(LATE, latency=41.0)},
        ],
    )
    def test_failures_within_a_gap_start_afresh(self, gap: dict[str, object]) -> None:
        verdict = after_round(self.STATE, POLICY, at(5, LATE, **gap))
        assert (verdict.decision, verdict.changes) == (Decision.NOTHING, (Change.AFRESH,))
        state = verdict.state
        assert (state.run, state.failures, state.probed, state.reason) == ("r", 0, False, "")
        assert [p.meaning for p in state.history] == ["void"]
        # And the next three in a row are as many as ever.
        again = rounds(POLICY, *(at(n, LATE, suspended=state.suspended) for n in (6, 7, 8)), state=state)
        assert again.decision is Decision.RESTART

    @pytest.mark.parametrize(
        "no_gap",
        [
            {"suspended": 100.9},
            {"suspended": 100.0, "late": 29.0},
            {"suspended": 100.0, "probe": replace(LATE, latency=10.5)},
        ],
    )
    def test_ordinary_unpunctuality_is_none(self, no_gap: dict[str, object]) -> None:
        assert after_round(self.STATE, POLICY, at(5, LATE, **no_gap)).decision is Decision.RESTART

    @pytest.mark.parametrize(
        "late",
        [
            {"probe": replace(LATE, latency=10.51)},
            {"probe": OK, "engine": EngineCheck(probe=replace(LATE, latency=12))},
            {"probe": Probe(outcome=Outcome.UNFINISHED, latency=12), "engine": EngineCheck()},
        ],
    )
    def test_a_time_out_that_our_own_loop_was_late_for_changes_nothing(self, late: dict[str, object]) -> None:
        """The answer may have been there; what failed before failed in its own time."""
        found = replace(Round(at=150, run="r", probe=OK, suspended=100.0), **late)  # type: ignore[arg-type]
        verdict = after_round(self.STATE, ENGINE, found)
        assert (verdict.state, verdict.decision, verdict.changes) == (self.STATE, Decision.NOTHING, ())
        assert verdict.state.history[-1].meaning == "void"
        assert after_round(verdict.state, ENGINE, at(6, BAD, suspended=100.0)).decision is Decision.RESTART

    def test_an_answer_that_came_late_and_is_bad_counts(self) -> None:
        """Only a time-out is one of ours: what is there to be read is the server's word."""
        late = at(5, replace(BAD, latency=12), suspended=100.0)
        assert after_round(self.STATE, POLICY, late).decision is Decision.RESTART

    @pytest.mark.parametrize("gap", [{"suspended": 3000.0, "resumed": True}, {"suspended": 3000.0}, {"resumed": True}])
    def test_a_resume_is_not_swallowed_by_a_round_that_could_not_ask(self, gap: dict[str, object]) -> None:
        unasked = Probe(outcome=Outcome.UNASKED, reason="cortexd could not ask: Too many open files")
        found = replace(Round(at=150, run="r", probe=unasked, suspended=100.0), **gap)  # type: ignore[arg-type]
        verdict = after_round(self.STATE, POLICY, found)
        assert (verdict.state.failures, verdict.changes) == (0, (Change.AFRESH,))
        after = at(6, BAD, suspended=found.suspended)
        assert rounds(POLICY, after, state=verdict.state).state.failures == 1

    def test_rounds_that_tell_nothing_are_told_once(self) -> None:
        """For whatever reason each; and again after one that told something."""
        unasked = Probe(outcome=Outcome.UNASKED, reason="no descriptors")
        told, state = [], rounds(POLICY, at(0, OK)).state
        for number in range(1, 50):
            probe = OK if number == 25 else [unasked, replace(LATE, latency=12), BAD][number % 3]
            verdict = after_round(state, POLICY, at(number, probe, resumed=probe is BAD))
            state = verdict.state
            assert bool(verdict.void) == (number != 25) and Change.AFRESH not in verdict.changes
            told += [(number, verdict.void)] * (Change.BLIND in verdict.changes)
        stood_still = ", and the machine or cortexd stood still"
        assert told == [(10, LATE.reason + stood_still), (35, BAD.reason + stood_still)]

    def test_an_answer_counts_all_the_same(self) -> None:
        verdict = after_round(self.STATE, POLICY, at(5, OK, suspended=5000.0))
        assert (verdict.state.probed, verdict.changes) == (True, (Change.RECOVERED,))
        assert after_round(verdict.state, POLICY, at(6, BAD, suspended=5000.0)).state.failures == 1


def test_states_that_look_the_same_are_equal() -> None:
    """So that a probe that changes nothing tells nobody."""
    first = rounds(POLICY, at(0, OK)).state
    assert rounds(POLICY, at(1, OK), state=first).state == first
    busy = rounds(POLICY, at(2, LATE, *work(1, 2)), state=first).state
    assert busy != first and rounds(POLICY, at(3, LATE, *work(2, 3)), state=busy).state == busy


def test_what_is_remembered() -> None:
    found = [
        at(0, OK, time=1), at(1, LATE, *work(1, 2), time=2), at(2, BAD, time=3), at(3, LATE, time=4, resumed=True),
    ]  # fmt: skip
    assert [(p.time, p.asked, p.outcome, p.latency, p.meaning) for p in rounds(POLICY, *found).state.history] == [
        (1, "http", Outcome.OK, 0, "ok"), (2, "http", Outcome.TIMEOUT, 10, "busy"),
        (3, "http", Outcome.REFUSED, 0, "failed"), (4, "http", Outcome.TIMEOUT, 10, "void"),
    ]  # fmt: skip
