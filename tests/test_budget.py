"""The restart budget, counted from the audit log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortexd.budget import Budget
from cortexd.events import Event, Priority


def event(kind: str, run: str = "", priority: Priority = Priority.INFO, **details: object) -> Event:
    return Event(
        model="m", kind=kind, message=f"{kind} of {run}", priority=priority, details=details, invocation_id=run
    )


def failing(run: str, *, stable: bool = False) -> list[Event]:
    """A run that fails, having been ready for long or not."""
    became = [event("stable", run)] if stable else []
    return [event("run", run, restart=True), *became, event("ended", run, Priority.WARNING)]


def count(*events: Event) -> Budget:
    budget = Budget()
    for each in events:
        budget.add(each)
    return budget


def test_failed_runs_in_a_row_add_up() -> None:
    assert count(event("start"), *failing("1"), *failing("2"), *failing("3")).failed == 3


def test_a_run_counts_once_however_its_end_was_told() -> None:
    assert count(*failing("1"), event("failed", "1", Priority.ERROR)).failed == 1


def test_a_run_that_stayed_ready_clears_what_was_before_it_and_fails_itself() -> None:
    events = [*failing("1"), *failing("2"), *failing("3", stable=True), *failing("4")]
    assert count(*events).failed == 2
    assert count(*events[:-2]).failed == 1
    assert count(*events[:-3]).failed == 0


def test_a_person_clears_it() -> None:
    gave_up = [*failing("1"), *failing("2"), event("gave-up", "2")]
    assert count(*gave_up).failed == 2 and count(*gave_up).gave_up == "gave-up of 2"
    for asked in ("start", "restart", "reset-failed"):
        budget = count(*gave_up, event(asked, "2"))
        assert (budget.failed, budget.gave_up, budget.at_rest) == (0, "", False)


def test_a_run_that_is_no_restart_clears_it_and_a_restart_does_not() -> None:
    """systemd counts restarts, through reloads too, and begins anew when a person or a boot starts the unit."""
    events = [*failing("1"), *failing("2"), event("gave-up", "2")]
    assert count(*events, event("run", "3", restart=True)).gave_up
    cleared = count(*events, event("run", "3", restart=False))
    assert (cleared.failed, cleared.gave_up) == (0, "")
    assert count(*events, event("run", "3")).gave_up, "of an older cortexd"


def test_a_clean_end_is_no_failure() -> None:
    assert count(*failing("1"), event("run", "2", restart=True), event("ended", "2"), event("stopped", "2")).failed == 1


def test_events_of_other_kinds_say_nothing_of_runs() -> None:
    events = [*failing("1"), event("gave-up", "1"), event("stays-stopped", "1")]
    assert count(*events, event("cause", "unknown"), event("degraded", "unknown")).gave_up


def test_systemds_own_limit_is_remembered_until_somebody_starts_it() -> None:
    events = [*failing("1"), event("failed", "1", Priority.ERROR, start_limit=True)]
    assert count(*events).start_limit
    assert not count(*events, event("start")).start_limit
    assert not count(*events, *failing("2")).start_limit


@given(st.lists(st.sampled_from(["fail", "stable", "clean", "start"])))
def test_it_is_the_length_of_the_last_streak(story: list[str]) -> None:
    budget, expected = Budget(), 0
    for number, what in enumerate(story):
        run = f"r{number}"
        if what == "start":
            budget.add(event("start"))
            expected = 0
        elif what == "clean":
            budget.add(event("run", run, restart=True))
            budget.add(event("ended", run))
        else:
            for each in failing(run, stable=what == "stable"):
                budget.add(each)
            expected = 1 if what == "stable" else expected + 1
    assert budget.failed == expected
    assert len(budget._known) <= 2 * len(story)


def test_what_is_remembered_of_runs_that_go_well_has_an_end() -> None:
    budget = Budget()
    for number in range(1000):
        for each in failing(f"r{number}", stable=True):
            budget.add(each)
    assert len(budget._known) <= 2


def test_a_new_run_after_a_given_up_unit_was_at_rest_clears_it_restart_or_not() -> None:
    """What fails once between a boot and our start is seen as a restart only."""
    events = [*failing("1"), *failing("2"), event("gave-up", "2")]
    at_rest = count(*events, event("stays-stopped", "2"))
    assert (at_rest.failed, at_rest.gave_up, at_rest.at_rest) == (2, "gave-up of 2", True)
    assert count(*events, event("stays-stopped", "2"), event("ended", "2", Priority.WARNING)).gave_up
    for began, failed in ((event("run", "3", restart=True), 0), (event("ended", "3", Priority.WARNING), 1)):
        budget = count(*events, event("stays-stopped", "2"), began)
        assert (budget.failed, budget.gave_up) == (failed, "")
    assert count(*events, event("run", "3", restart=True)).gave_up, "not stopped yet: systemd's own"
