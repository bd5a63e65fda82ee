"""What happened to a model's runs, read from two successive states of its unit. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cortexd.budget import AT_REST
from cortexd.events import Ending, Event, Priority
from cortexd.states import BY_SYSTEMD, CRASHES, describe_end, systemd_gave_up
from cortexd.systemd.protocol import UnitState

_CLD_KILLED = 2


def transitions(model: str, old: UnitState, new: UnitState, ending: Ending) -> Iterator[Event]:
    """The events between two states; states in between may have been missed, so each event stands on `new` alone.

    `ending`: how cortexd itself brings some run to its end; a stop is nobody's failure.
    """
    by = ending if ending.run and ending.run in (new.invocation_id, old.invocation_id) else Ending()
    explained = by.by in ("stop", "gave-up")

    def event(kind: str, message: str, priority: Priority = Priority.INFO, run: str = "") -> Event:
        return Event(model=model, kind=kind, message=message, priority=priority, invocation_id=run or new.invocation_id)

    new_run = bool(new.invocation_id) and new.invocation_id != old.invocation_id
    unseen = new_run and old.running and not old.sub_state.startswith("auto-restart")
    if unseen and new.n_restarts > old.n_restarts and not explained:
        message = "it ended, which nobody saw; systemd has started it again"
        yield event("ended", message, Priority.WARNING, run=old.invocation_id)
    if new_run:
        yield replace(
            event("run", f"run begins (process {new.main_pid})" if new.main_pid else "run begins"),
            details={
                "restart": bool(new.n_restarts),  # systemd begins to count where it is asked for a start
                "n_restarts": new.n_restarts,
            },
        )
    if new.active_state == "active" and (old.active_state != "active" or new_run):
        seconds = _load_seconds(new)
        told = event("ready", "ready" if seconds is None else f"ready after {seconds:.1f} s")
        details = {} if seconds is None else {"seconds": round(seconds, 3)}
        yield replace(told, details={"active_enter": new.active_enter, **details})
    restarts = new.sub_state.startswith("auto-restart") and not old.sub_state.startswith("auto-restart")
    if restarts and not explained:
        why = describe_end(new) or "the server ended by itself"
        yield event("ended", _sender(new, why, by) + "; systemd starts it again", Priority.WARNING)
    if new.active_state == "failed" and (old.active_state != "failed" or new_run) and not explained:
        limit = not new_run and _start_limit_hit(old, new)
        if old.sub_state == "auto-restart" and not new_run and not limit:  # 257; on 252 it is inactive then
            yield event("ended", "stopped while it waited for its next start")
        else:
            said = _sender(new, describe_end(new), by) + (systemd_gave_up(new) if limit else "")
            told = event("failed", said, Priority.ERROR)
            yield replace(told, details={"start_limit": True}) if limit else told
    if by.by == "gave-up" and old.running and not new.running:
        yield event(AT_REST, "it is stopped and stays so")
    if new.active_state == "inactive" and old.running and not explained:
        if old.active_state == "deactivating" and old.job:  # nothing else brings it there by a job
            yield event("stopped", f"stopped by systemd: {BY_SYSTEMD}")
        elif new.exec_main_code == _CLD_KILLED:
            yield event("ended", _sender(new, describe_end(new), by), Priority.WARNING)
        else:
            yield event("ended", describe_end(new) or "stopped, or ended by itself with status 0")
    elif new.active_state == "inactive" and old.running and by.by == "stop":
        yield event("stopped", "stopped")


def _start_limit_hit(old: UnitState, new: UnitState) -> bool:
    """Whether systemd's own start limit has ended it: what it counts as a restart has begun no run (measured on 252)."""
    queued = old.sub_state == "auto-restart-queued"  # 254 and later: counted already
    return new.result == "start-limit-hit" or new.n_restarts > old.n_restarts or queued


def _load_seconds(unit: UnitState) -> float | None:
    """From the server's start to now, if that can be told: clocks are set."""
    seconds = (unit.state_change - unit.exec_main_start) / 1e6
    return seconds if unit.exec_main_start and 0 <= seconds < 86400 else None


def _sender(unit: UnitState, why: str, ending: Ending) -> str:
    """Who sent the signal that ended it, as far as that can be known: nobody records a signal's sender."""
    if unit.exec_main_code != _CLD_KILLED or unit.result not in ("signal", "success"):
        return why
    if unit.exec_main_status in CRASHES:
        return why
    if ending.signal != unit.exec_main_status:
        return why + " from outside"
    return why + {"health": " after failed health probes", "kill": " (cortexctl kill)"}[ending.by]
