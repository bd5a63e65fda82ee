"""What happened to a model's runs, read from two successive states of its unit. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cortexd.budget import AT_REST
from cortexd.events import Ending, Event, Priority
from cortexd.states import BY_SYSTEMD, CRASHES, describe_end, ended_well, not_restarted, signal_name
from cortexd.systemd.protocol import UnitState

NO_MORE_RUNS = "it was the last run that max_restarts allows"

AT_ITS_LIMIT = "systemd starts it no more: its own limit of starts is reached"

_IN_THE_PAUSE = "stopped while it waited for its next start"

_CLD_KILLED = 2

GOES_ON = "goes_on"
"""A detail of the event of a run's end, where systemd waits to start the next one."""

EXITED = "exited"
"""The event of a run that ended by itself and well, so that it is not restarted: no failure, and not what a server is for."""


def transitions(
    model: str, old: UnitState, new: UnitState, ending: Ending, *, is_last: bool = False
) -> Iterator[Event]:
    """The events between two states; states in between may have been missed, so each event stands on `new` alone.

    `ending`: how cortexd itself brings some run to its end; a stop is nobody's failure. `is_last`: its restart budget allows
    no run after this one, should it have failed.
    """
    by = ending if ending.run and ending.run in (new.invocation_id, old.invocation_id) else Ending()
    explained = by.by in ("stop", "gave-up")

    def event(kind: str, message: str, priority: Priority = Priority.INFO, run: str = "") -> Event:
        return Event(model=model, kind=kind, message=message, priority=priority, invocation_id=run or new.invocation_id)

    new_run = bool(new.invocation_id) and new.invocation_id != old.invocation_id
    paused = _is_paused(old)
    waited = paused and not new_run  # its end was told
    unseen = new_run and old.running and not paused
    if unseen and new.n_restarts > old.n_restarts and not explained:
        message = "it ended, which nobody saw; systemd has started it again"
        yield event("ended", message, Priority.WARNING, run=old.invocation_id)
    elif unseen and not new.n_restarts and not explained:
        yield event("stopped", f"started anew by systemd: {BY_SYSTEMD}", run=old.invocation_id)
    if new_run:
        yield replace(
            event("run", f"run begins (process {new.main_pid})" if new.main_pid else "run begins"),
            details={
                # systemd begins to count where it is asked for a start, and does not where it is asked in the pause.
                "restart": bool(new.n_restarts) and not (paused and new.n_restarts == old.n_restarts),
                "n_restarts": new.n_restarts,
            },
        )
    if new.active_state == "active" and (old.active_state != "active" or new_run):
        yield became_ready(model, new)
    if _is_paused(new) and not waited:
        why = describe_end(new) or "the server ended by itself"
        if not explained:
            coming = NO_MORE_RUNS if is_last else "systemd starts it again"
            told = event("ended", f"{_sender(new, why, by)}; {coming}", Priority.WARNING)
            yield replace(told, details={"why": how_it_ended(new, by), GOES_ON: True})
        elif by.by == "gave-up":
            yield event("ended", f"{why}; it is being stopped, since it is restarted no more")
    if (
        new.active_state == "failed"
        and (old.active_state != "failed" or new_run)
        and not explained
        and by.by != "systemd"
    ):
        limit = not new_run and _start_limit_hit(old, new)
        if old.sub_state == "auto-restart" and not new_run and not limit:  # 257; on 252 it is inactive then
            yield event("stopped", _IN_THE_PAUSE)
        else:
            said = "; ".join(filter(None, (_sender(new, describe_end(new), by), AT_ITS_LIMIT if limit else "")))
            why_limit = {"start_limit": True} if limit else {}
            yield replace(event("failed", said, Priority.ERROR), details={"why": how_it_ended(new, by), **why_limit})
    if by.by == "gave-up" and old.running and not new.running:
        if not waited:
            yield event("stopped", "stopped by cortexd, since it is restarted no more")
        yield event(AT_REST, "it is stopped and stays so")
    if new.active_state == "inactive" and old.running and not explained:
        if waited:
            yield event("stopped", _IN_THE_PAUSE)
        elif by.by == "systemd":
            yield event("stopped", f"stopped by systemd: {BY_SYSTEMD}")
        elif new.exec_main_code == _CLD_KILLED:
            yield event("ended", _sender(new, describe_end(new), by) + not_restarted(new), Priority.WARNING)
        elif ended_well(new):
            how = f"after {signal_name(by.signal)} (cortexctl kill)" if by.by == "kill" else "by itself"
            message = f"the server ended {how} with status {new.exec_main_status}{not_restarted(new)}"
            yield event(EXITED, message, Priority.WARNING)
        else:
            yield event("ended", describe_end(new) or "stopped before its server ran")
    elif new.active_state == "inactive" and old.running and by.by == "stop":
        yield event("stopped", _IN_THE_PAUSE if waited else "stopped")


def _is_paused(unit: UnitState) -> bool:
    """Whether its run is over, and systemd waits to start the next one. From 254 on that one has its name before the unit has
    left the pause (measured on 257); nothing has ended it then."""
    return unit.sub_state.startswith("auto-restart") and (unit.result != "success" or bool(unit.exec_main_code))


def follow_stop(ending: Ending, old: UnitState, new: UnitState) -> Ending:
    """The same ending, of what it is about now: where it keeps systemd from starting a run, systemd may have begun that one
    before it took the stop, and stops it, too. And a run that systemd was told to stop is being stopped, by whatever hand."""
    begun = new.invocation_id != old.invocation_id == ending.run and new.n_restarts > old.n_restarts
    if begun and ending.by == "gave-up":
        ending = replace(ending, run=new.invocation_id)
    if is_being_stopped(new) and not ending.stops(new.invocation_id):
        return Ending(new.invocation_id, "systemd")
    return ending


def ending_told(events: Iterable[Event]) -> Ending:
    """How a former cortexd saw a run brought to its end, from the events of that run, newest first. A stop comes before all."""
    found = Ending()
    for event in events:
        if event.kind == "stop":
            return Ending(event.invocation_id, "stop")
        if found.run:
            continue
        if event.kind == "stop-unclean":
            found = Ending(event.invocation_id, "systemd")
        elif event.kind == "health-restart":
            reason = event.message.partition("; it is killed")[0]
            found = Ending(event.invocation_id, "health", signal.SIGKILL, reason)
        elif event.kind == "kill":
            name = event.message.partition(" ")[0]
            found = Ending(event.invocation_id, "kill", getattr(signal.Signals.__members__.get(name), "value", 0))
    return found


def is_being_stopped(unit: UnitState) -> bool:
    """Whether systemd was told to stop it: nothing else ends a run by a job. One that had failed before shows that by its
    result, to which a stop adds nothing but that it took too long."""
    return unit.active_state == "deactivating" and bool(unit.job) and unit.result in ("success", "timeout")


def unclean(unit: UnitState, stop_seconds: float) -> str:
    """How a stop ended that left the unit failed."""
    if unit.result == "timeout":
        return f"it did not end within {stop_seconds} s and was killed"
    return f"it did not end cleanly: {describe_end(unit)}"


def became_ready(model: str, unit: UnitState) -> Event:
    """The event of a run that is ready, and how long that took where it can be told."""
    seconds = _load_seconds(unit)
    message = "ready" if seconds is None else f"ready after {seconds:.1f} s"
    details = {} if seconds is None else {"seconds": round(seconds, 3)}
    return Event(
        model=model, kind="ready", message=message, invocation_id=unit.invocation_id,
        details={"active_enter": unit.active_enter, **details},
    )  # fmt: skip


def was_an_end(passed: UnitState, new: UnitState) -> bool:
    """Whether a unit that was inactive or failed for a moment only was at its run's end: somebody has had it started, or
    reset-failed, at once. Else systemd passes through it, with a job or to a restart of its own."""
    started = new.invocation_id != passed.invocation_id or bool(new.job)
    reset = passed.active_state == "failed" and new.active_state == "inactive"
    its_own = new.sub_state.startswith("auto-restart") or new.n_restarts > passed.n_restarts
    return not passed.job and not its_own and (started or reset)


def _start_limit_hit(old: UnitState, new: UnitState) -> bool:
    """Whether systemd's own start limit has ended it: what it counts as a restart has begun no run (measured on 252)."""
    queued = old.sub_state == "auto-restart-queued"  # 254 and later: counted already
    return new.result == "start-limit-hit" or new.n_restarts > old.n_restarts or queued


def _load_seconds(unit: UnitState) -> float | None:
    """From the server's start to now, if that can be told: clocks are set."""
    seconds = (unit.state_change - unit.exec_main_start) / 1e6
    return seconds if unit.exec_main_start and 0 <= seconds < 86400 else None


def how_it_ended(unit: UnitState, ending: Ending) -> str:
    """How the last run ended, with what was said of it where cortexd killed it; empty if it ended well or never was."""
    ours = ending.run == unit.invocation_id and ending.by == "health" and ending.signal == unit.exec_main_status
    if ours and unit.exec_main_code == _CLD_KILLED and ending.reason:
        return f"cortexd killed it: {ending.reason}"
    return describe_end(unit)


def _sender(unit: UnitState, why: str, ending: Ending) -> str:
    """Who sent the signal that ended it, as far as that can be known: nobody records a signal's sender."""
    if unit.exec_main_code != _CLD_KILLED or unit.result not in ("signal", "success"):
        return why
    if unit.exec_main_status in CRASHES:
        return why
    if ending.signal != unit.exec_main_status:
        return why + " from outside"
    return why + {"health": " after failed health probes", "kill": " (cortexctl kill)"}[ending.by]
