"""The restart budget, counted from the audit log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortexd.budget import Budget, count
from cortexd.events import Event, Priority

STABLE = 600.0


def event(kind: str, run: str = "", at: float = 0, priority: Priority = Priority.INFO, restart: bool = True) -> Event:
    details = {"restart": restart} if kind == "run" else {}
    message = f"{kind} of {run}"
    return Event(
        model="m", kind=kind, message=message, priority=priority, details=details, invocation_id=run, time=int(at * 1e6)
    )


def failing(run: str, at: float, ready: float | None = None) -> list[Event]:
    """A run that fails at `at`, having been ready since `ready`."""
    became = [event("ready", run, ready)] if ready is not None else []
    return [event("run", run), *became, event("ended", run, at, Priority.WARNING)]


def test_failed_runs_in_a_row_add_up() -> None:
    events = [event("start"), *failing("1", 10), *failing("2", 30), *failing("3", 90, ready=40)]
    assert count(events, stable_seconds=STABLE) == Budget(3)


def test_a_run_counts_once_however_its_end_was_told() -> None:
    events = [*failing("1", 10), event("failed", "1", 11, Priority.ERROR)]
    assert count(events, stable_seconds=STABLE).failed == 1


def test_a_run_that_stayed_ready_clears_what_was_before_it_and_fails_itself() -> None:
    events = [*failing("1", 10), *failing("2", 20), *failing("3", 640, ready=40), *failing("4", 700)]
    assert count(events, stable_seconds=STABLE).failed == 2
    assert count(events[:-2], stable_seconds=STABLE).failed == 1
    assert count(events, stable_seconds=601).failed == 4


def test_a_person_clears_it() -> None:
    gave_up = [*failing("1", 1), *failing("2", 2), event("gave-up", "2", 3)]
    assert count(gave_up, stable_seconds=STABLE) == Budget(2, "gave-up of 2")
    for asked in ("start", "restart", "reset-failed"):
        assert count([*gave_up, event(asked)], stable_seconds=STABLE) == Budget()


def test_a_run_that_is_no_restart_clears_it_and_a_restart_does_not() -> None:
    """systemd counts restarts, through reloads too, and begins anew when a person or a boot starts the unit."""
    events = [*failing("1", 1), *failing("2", 2), event("gave-up", "2", 3)]
    assert count([*events, event("run", "3")], stable_seconds=STABLE).gave_up
    assert count([*events, event("run", "3", restart=False)], stable_seconds=STABLE) == Budget()
    old = Event(model="m", kind="run", message="of an older cortexd", invocation_id="3")
    assert count([*events, old], stable_seconds=STABLE).gave_up


def test_a_clean_end_is_no_failure() -> None:
    events = [*failing("1", 1), event("run", "2"), event("ended", "2", 2), event("stopped", "2", 2)]
    assert count(events, stable_seconds=STABLE).failed == 1


@given(st.lists(st.tuples(st.sampled_from(["fail", "clean", "start"]), st.integers(0, 2000))))
def test_it_is_the_length_of_the_last_streak(story: list[tuple[str, int]]) -> None:
    events: list[Event] = []
    expected, now = 0, 0
    for number, (what, lasted) in enumerate(story):
        run = f"r{number}"
        if what == "start":
            events.append(event("start"))
            expected = 0
            continue
        events += [event("run", run), event("ready", run, now)]
        now += lasted
        if what == "fail":
            expected = 1 if lasted >= STABLE else expected + 1
        events.append(event("ended", run, now, Priority.WARNING if what == "fail" else Priority.INFO))
    assert count(events, stable_seconds=STABLE).failed == expected


def test_a_new_run_after_a_given_up_unit_was_at_rest_clears_it_restart_or_not() -> None:
    """What fails once between a boot and our start is seen as a restart only."""
    events = [*failing("1", 1), *failing("2", 2), event("gave-up", "2", 3)]
    assert count([*events, event("stays-stopped", "2")], stable_seconds=STABLE) == Budget(2, "gave-up of 2", True)
    late = [*events, event("stays-stopped", "2"), event("ended", "2", 4, Priority.WARNING)]
    assert count(late, stable_seconds=STABLE).gave_up
    for began in (event("run", "3"), event("ended", "3", 5, Priority.WARNING)):
        budget = count([*events, event("stays-stopped", "2"), began], stable_seconds=STABLE)
        assert budget == Budget(0 if began.kind == "run" else 1)
    assert count([*events, event("run", "3")], stable_seconds=STABLE).gave_up, "not stopped yet: systemd's own"
