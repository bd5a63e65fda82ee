"""The restart budget: how many runs of a model have failed in a row, read from the audit log. Pure.

It is cortexd's own and lasts: systemd's start limit forgets at every reload, and a limit that counts starts in a window
never trips for a server that takes longer than the window to fail. No clock is read here: clocks are set.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cortexd.events import Event, Priority

ASKED = ("start", "restart", "reset-failed")
"""Events of a person's asking, which clear the budget."""
FAILED_ENDS = ("ended", "failed")
"""Events of a run's end that nobody asked for; one that is no more than information was no failure."""
STABLE = "stable"
"""The event of a run that has been ready for so long that the failures before it count no more."""
GAVE_UP = "gave-up"
"""The event of a budget that is spent."""
AT_REST = "stays-stopped"
"""The event of a unit that was stopped for that: whatever runs later was started by somebody. For ourselves, since to
people it says nothing that GAVE_UP does not."""
KINDS = (*ASKED, "run", STABLE, *FAILED_ENDS, GAVE_UP, AT_REST)
"""What the budget is counted from."""


@dataclass(slots=True)
class Budget:
    """Where a model stands, after the events that were added, in their order."""

    gave_up: str = ""
    """Why it is restarted no longer, until a person starts it or the machine boots; empty while it is."""
    at_rest: bool = False
    """It was given up and its unit has been stopped since."""
    start_limit: bool = False
    """systemd's own limit of starts has ended it."""
    why: str = ""
    """How the last failed run ended; empty where nobody knows."""
    _failed: set[str] = field(default_factory=set)
    _known: set[str] = field(default_factory=set)

    @property
    def failed(self) -> int:
        """Failed runs in a row."""
        return len(self._failed)

    def knows(self, run: str) -> bool:
        """Whether something was told of that run since it began to count."""
        return run in self._known

    def failed_with(self, run: str) -> int:
        """Failed runs in a row, this one among them."""
        return len(self._failed | {run})

    def spent(self, most: int) -> bool:
        """Whether so many failed runs in a row are all that it may have."""
        return self.failed >= most

    def add(self, event: Event) -> None:
        """Count an event; those of other kinds than KINDS are passed over.

        A run that was stable clears what was before it, and so does a run that is no restart: a person's, with cortexctl or
        with systemctl, or a boot's. So does any run that is new after a given up model's unit was at rest, though systemd may
        have restarted it since.
        """
        if event.kind not in KINDS:
            return
        run = event.invocation_id
        somebodys = self.at_rest and run and run not in self._known
        if somebodys or event.kind in ASKED or (event.kind == "run" and event.details.get("restart") is False):
            self.gave_up, self.at_rest = "", False
            self._forget()
        self._known.add(run)
        if event.kind == STABLE:
            self._forget()
        elif event.kind in FAILED_ENDS and event.priority is not Priority.INFO:
            self._failed.add(run)
            self.start_limit = bool(event.details.get("start_limit"))
            self.why = str(event.details.get("why", ""))
        elif event.kind == GAVE_UP:
            self.gave_up, self.at_rest = event.message, False
        elif event.kind == AT_REST:
            self.at_rest = bool(self.gave_up)

    def _forget(self) -> None:
        self.start_limit, self.why = False, ""
        self._failed.clear()
        self._known.clear()


def failed_runs(count: int) -> str:
    """How many runs failed, in words."""
    return "1 run failed" if count == 1 else f"{count} runs failed in a row"


def with_last(what: str, why: str) -> str:
    """How many runs failed, and why the last one did, which may be the only one; `why` may be empty."""
    joined = ", the last: " if what.endswith("in a row") else ": "
    return what + joined + why if why else what
