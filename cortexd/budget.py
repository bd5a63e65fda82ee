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
ENDS = ("ended", "failed")
"""Events of a run's end; one that is no more than information was no failure."""
GAVE_UP = "gave-up"
"""The event of a budget that is spent."""
KINDS = (*ASKED, "run", "ready", *ENDS, GAVE_UP)
"""What the budget is counted from."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Where a model stands."""

    failed: int = 0
    """Failed runs in a row."""
    gave_up: str = ""
    """Why it is restarted no longer, until a person starts it or the machine boots; empty while it is."""


def count(events: Iterable[Event], *, stable_seconds: float) -> Budget:
    """The budget after `events` of one model, oldest first; those of other kinds than KINDS are passed over.

    A run that stayed ready for `stable_seconds` clears what was before it, and so does a run that is no restart: a
    person's, with cortexctl or with systemctl, or a boot's.
    """
    failed: set[str] = set()
    ready: dict[str, int] = {}
    gave_up = ""
    for event in events:
        run = event.invocation_id
        if event.kind in ASKED or (event.kind == "run" and event.details.get("restart") is False):
            failed, gave_up = set(), ""
        elif event.kind == "ready":
            ready[run] = event.time
        elif event.kind in ENDS and event.priority is not Priority.INFO:
            if run in ready and event.time - ready[run] >= stable_seconds * 1e6:
                failed = set()
            failed.add(run)
        elif event.kind == GAVE_UP:
            gave_up = event.message
    return Budget(len(failed), gave_up)
