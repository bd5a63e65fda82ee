"""The restart budget: how many runs of a model have failed in a row, read from the audit log. Pure.

It is cortexd's own and lasts: systemd's start limit forgets at every reload, and a limit that counts starts in a window
never trips for a server that takes longer than the window to fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cortexd.events import Event, Priority

ASKED = ("start", "restart", "reset-failed")
"""Events of a person's asking, which clear the budget."""
FAILED_ENDS = ("ended", "failed")
"""Events of a run's end that nobody asked for; one that is no more than information was no failure."""
GAVE_UP = "gave-up"
"""The event of a budget that is spent."""
AT_REST = "stays-stopped"
"""The event of a unit that was stopped for that: whatever runs later was started by somebody."""
KINDS = (*ASKED, "run", "ready", *FAILED_ENDS, GAVE_UP, AT_REST)
"""What the budget is counted from."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Where a model stands."""

    failed: int = 0
    """Failed runs in a row."""
    gave_up: str = ""
    """Why it is restarted no longer, until a person starts it or the machine boots; empty while it is."""
    at_rest: bool = False
    """It was given up and its unit has been stopped since."""


def count(events: Iterable[Event], *, stable_seconds: float) -> Budget:
    """The budget after `events` of one model, oldest first; those of other kinds than KINDS are passed over.

    A run that stayed ready for `stable_seconds` clears what was before it, and so does a run that is no restart: a
    person's, with cortexctl or with systemctl, or a boot's. So does any run that is new after a given up model's unit was
    at rest, though systemd may have restarted it since.
    """
    failed: set[str] = set()
    ready: dict[str, int] = {}
    known: set[str] = set()
    gave_up, at_rest = "", False
    for event in events:
        run = event.invocation_id
        if at_rest and run and run not in known:
            failed, gave_up, at_rest = set(), "", False
        known.add(run)
        if event.kind in ASKED or (event.kind == "run" and event.details.get("restart") is False):
            failed, gave_up, at_rest = set(), "", False
        elif event.kind == "ready":
            ready[run] = event.time
        elif event.kind in FAILED_ENDS and event.priority is not Priority.INFO:
            if run in ready and event.time - ready[run] >= stable_seconds * 1e6:
                failed = set()
            failed.add(run)
        elif event.kind == GAVE_UP:
            gave_up, at_rest = event.message, False
        elif event.kind == AT_REST:
            at_rest = bool(gave_up)
    return Budget(len(failed), gave_up, at_rest)
