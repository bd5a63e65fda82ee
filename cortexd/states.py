"""What a person is told of a model: our State and one sentence why, from systemd's words and the probes'. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum

from cortexd.health.policy import HealthState
from cortexd.model import ModelSpec
from cortexd.systemd.protocol import UnitState

NOT_READY = "Not ready: "
"""How the waiter's last status begins when it gives up, and its only line in the log."""

BY_SYSTEMD = "with systemctl, or at the end of your session"
"""How systemd is told to stop a unit, where cortexd was not asked to."""

CRASHES = {
    signal.SIGSEGV: "it used memory that is not its own",
    signal.SIGABRT: "it gave up by itself",
    signal.SIGBUS: "a file that it has mapped has shrunk, or a disk is failing",
    signal.SIGILL: "its program needs instructions that this processor lacks",
    signal.SIGFPE: "it divided by zero",
    signal.SIGSYS: "it called what the sandbox forbids",
}
"""Signals that a program brings on itself, and what each means."""

_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3


class State(StrEnum):
    """A model's state. Ready, busy, degraded and unhealthy are those of a running server."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A state and why, in one sentence (empty where there is nothing to say)."""

    state: State
    reason: str = ""


def signal_name(number: int) -> str:
    """SIGKILL for 9, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_end(unit: UnitState) -> str:
    """How the last run ended, from Result and the main process's exit; empty if it ended well or never was."""
    if unit.result == "oom-kill":
        return "out of memory: the kernel killed it at its memory limit"
    if unit.result == "timeout":
        if unit.status_text.startswith(NOT_READY):
            return unit.status_text.removeprefix(NOT_READY)
        return "it did not start or stop within its time and was killed"
    if unit.result == "start-limit-hit":
        return "it was started too often in a short time"
    if unit.result == "protocol":
        return "systemd could not follow its main process"
    if unit.result == "resources":
        return "systemd could not prepare it (a missing file or folder, or too few resources)"
    if unit.exec_main_code == _CLD_EXITED and unit.exec_main_status:
        return f"the server exited with status {unit.exec_main_status}{_systemd_step(unit.exec_main_status)}"
    if unit.status_text.startswith(NOT_READY) and unit.result not in ("success", "signal", "core-dump"):
        return unit.status_text.removeprefix(NOT_READY)
    if unit.exec_main_code in (_CLD_KILLED, _CLD_DUMPED):
        dumped = " and dumped core" if unit.exec_main_code == _CLD_DUMPED else ""
        return f"the server was killed by {signal_name(unit.exec_main_status)}{dumped}"
    return "" if unit.result == "success" else f"systemd says {unit.result!r}"


def not_restarted(unit: UnitState) -> str:
    """What to add to how a run ended that systemd does not take for a failure, so that no other one comes."""
    return "; not restarted" + (f" (Restart={unit.restart})" if unit.restart else "")


def ended_well(unit: UnitState) -> bool:
    """Whether systemd sees no failure in how the main process ended: with status 0, by SIGTERM, or as SuccessExitStatus= says."""
    return unit.result == "success" and unit.exec_main_code != 0


def _systemd_step(status: int) -> str:
    """systemd's own exit statuses, for what fails before the program runs (systemd.exec(5))."""
    steps = {
        200: "its working folder cannot be entered",
        203: "its executable cannot be run",
        217: "the user cannot be set: this machine may refuse user namespaces",
        218: "capabilities cannot be dropped: the sandbox needs PrivateUsers",
        226: "its sandbox cannot be made: a path is missing, or this machine refuses user namespaces",
        243: "a credential is missing",
    }
    return f" ({steps[status]})" if status in steps else ""


def judge(
    unit: UnitState,
    health: HealthState,
    spec: ModelSpec,
    *,
    ending: str = "",
    cause: str = "",
    given_up: str = "",
    pause: float | None = None,
) -> Judgement:
    """The state of a model. `ending`: how this run is brought to its end (events.Ending.by), or empty.
    `cause`: why this run ended, where that is known better than systemd tells it. `given_up`: why it is restarted no more.
    `pause`: seconds before systemd starts it again, where that is not RestartSec."""
    active, sub = unit.active_state, unit.sub_state
    if active in ("inactive", "failed") and unit.job:
        # A queued start, or the moment within a restart when nothing runs.
        return Judgement(State.RESTARTING if unit.n_restarts else State.STARTING)
    if given_up and active in ("inactive", "failed", "deactivating"):
        return Judgement(State.FAILED, given_up)
    if active == "failed" and ending in ("stop", "systemd"):
        return Judgement(State.STOPPED)  # by a stop that had to kill it
    if active == "failed":
        return Judgement(State.FAILED, cause or describe_end(unit))
    if active == "deactivating":
        return Judgement(State.RESTARTING, health.reason) if ending == "health" else Judgement(State.STOPPING)
    if active in ("activating", "reloading", "refreshing"):
        if sub.startswith("auto-restart") or sub == "failed-before-auto-restart":
            seconds = spec.restart.restart_seconds if pause is None else pause
            coming = f"systemd starts it again {seconds:.3g} s after its end"
            why = cause or (health.reason if ending == "health" else describe_end(unit))
            return Judgement(State.RESTARTING, "; ".join(filter(None, (why, coming))))
        return Judgement(State.STARTING, unit.status_text)
    if active != "active":
        return Judgement(State.STOPPED, cause if ended_well(unit) or not unit.invocation_id else "")
    if health.run == unit.invocation_id and health.busy:
        return Judgement(State.BUSY, health.reason)
    if health.run == unit.invocation_id and health.failures:
        limit = spec.health.max_failures
        if health.failures >= limit:
            return Judgement(State.UNHEALTHY, health.reason)
        return Judgement(State.DEGRADED, f"{health.reason} ({health.failures} of {limit} failed probes in a row)")
    return Judgement(State.READY)
