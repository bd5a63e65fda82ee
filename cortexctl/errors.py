"""What a command can end with: the exit codes, written once, and the error that carries one."""

from __future__ import annotations

OK = 0
FAILURE = 1
USAGE = 2
NOT_ACTIVE = 3
NO_SUCH_MODEL = 4
INTERRUPTED = 130

EXIT_CODES = (
    (
        OK,
        "done; active (status, is-active), enabled (is-enabled), failed (is-failed), healthy or busy (health), "
        "can start (check), "
        "nothing to fix (doctor), all in force (security)",
    ),
    (
        FAILURE,
        "failed; not enabled (is-enabled), not failed (is-failed), failing or not ready (health), cannot start (check), "
        "something to fix (doctor), not all in force (security)",
    ),
    (USAGE, "wrong command line"),
    (NOT_ACTIVE, "not active (status, is-active)"),
    (NO_SUCH_MODEL, "no such model, or none that a pattern matches"),
    (INTERRUPTED, "interrupted; a job that was started goes on"),
)
"""Frozen: scripts rely on them. With several models the first failure decides."""


class CtlError(Exception):
    """A failure as one sentence. `name` is for scripts: the last part of cortexd's D-Bus error, or a word of ours."""

    def __init__(self, name: str, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.name = name
        self.message = message
        self.exit_code = exit_code


class DaemonError(CtlError):
    """A failure of the daemon or the bus, which ends the command: what holds for one model holds for all."""


class Interrupted(CtlError):
    """Ctrl-C while something goes on without us."""

    def __init__(self, message: str) -> None:
        super().__init__("Interrupted", message, INTERRUPTED)


def no_such_model(name: str) -> CtlError:
    """The daemon's own sentence, for a model that went away between two calls."""
    return CtlError("NoSuchModel", f"no model {name!r} is registered", NO_SUCH_MODEL)
